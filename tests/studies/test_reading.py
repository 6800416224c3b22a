"""Finished runs read back: the same tables, the sweeps' own comparisons, clear refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from raybench.errors import DataError, RunFolderError, TrackingError
from raybench.report.paired_scatter import paired_scatter
from raybench.report.style import png
from raybench.studies.comparing_two import Selection, compare_two
from raybench.studies.reading import Runs, read_runs
from raybench.tracking.mlflow_reading import read_mlflow
from raybench.tracking.run_folder import RunFolder

LIME = Selection("lime", backbone="test_resnet")
LUNG = Selection("whole_lung", backbone="test_resnet")


@pytest.fixture(scope="module")
def runs(small_sweep: Path) -> Runs:
    return read_runs(str(small_sweep))


@pytest.fixture
def other(small_sweep: Path, tmp_path: Path) -> Path:
    """The same sweep under another name."""
    folder = tmp_path / "other"
    shutil.copytree(small_sweep, folder, ignore=shutil.ignore_patterns("mlflow*", "parts"))
    text = (folder / "config.yaml").read_text()
    assert "\nname: tiny\n" in f"\n{text}"
    (folder / "config.yaml").write_text(text.replace("name: tiny\n", "name: other\n"))
    return folder


def test_the_tables_are_the_folders(small_sweep: Path, other: Path) -> None:
    both = read_runs(str(small_sweep), str(other))
    assert list(both.folders) == ["tiny", "other"]
    for frame, name in (
        (both.trials, "trials.csv"),
        (both.leaderboard, "leaderboard.csv"),
        (both.comparisons, "comparisons.csv"),
    ):
        assert frame.columns[0] == "run"
        own = pd.read_csv(small_sweep / name, dtype={"trial_id": str})
        found = frame[frame.run == "other"].drop(columns="run").reset_index(drop=True)
        pd.testing.assert_frame_equal(found, own, check_dtype=False)
    assert len(both.scores) == 2 * len(pd.read_parquet(small_sweep / "scores.parquet"))
    wanted = "test_resnet (tiny)", "test_efficientnet (other)"
    titles = {ax.get_title() for ax in both.bars("val").axes}
    assert set(wanted) <= titles
    legend = both.bars().legends[0].get_texts()
    assert any("fixed" in text.get_text() for text in legend)
    assert all("fixed" not in t.get_text() for t in both.bars("val").legends[0].get_texts())
    assert len(both.curves("other").axes) == 4
    for backbone in ("test_resnet", "test_efficientnet"):
        trial = own_trial(small_sweep, backbone)
        picture = small_sweep / "figures" / f"infection_maps_{trial}.png"
        assert both.infection_maps("tiny", backbone) == picture.read_bytes()
        wide = both.by_image("other", backbone, "fixed", "dice")
        row = both.leaderboard.query(
            "run == 'other' and backbone == @backbone and threshold_rule == 'fixed'"
        ).set_index("explainer")
        assert wide.mean().to_dict() == pytest.approx(row.dice.to_dict())
    first, second = both.backbones("tiny")
    trials = pd.read_csv(small_sweep / "trials.csv").query("best").set_index("backbone")
    assert trials.val_accuracy[first] >= trials.val_accuracy[second]
    assert both.infection_maps("tiny") == both.infection_maps("tiny", first)
    board = both.board("fixed")
    for _, part in board.groupby(["run", "backbone"]):
        assert part.iou.is_monotonic_decreasing
    assert board.run.is_monotonic_increasing
    assert len(board) == (both.leaderboard.threshold_rule == "fixed").sum()


def own_trial(folder: Path, backbone: str) -> str:
    trials = pd.read_csv(folder / "trials.csv").query("best").set_index("backbone")
    return str(trials.trial_id[backbone])


@pytest.mark.parametrize("metric", ["iou", "dice"])
def test_a_comparison_is_the_sweeps_own(runs: Runs, metric: str) -> None:
    for rule in ("fixed", "val"):
        a, b = (Selection(s.explainer, "tiny", s.backbone, rule) for s in (LIME, LUNG))
        found = compare_two(runs, a, b, metric)
        pairs = runs.comparisons
        (row,) = pairs[
            (pairs.backbone == "test_resnet")
            & (pairs.threshold_rule == rule)
            & (pairs.metric == metric)
            & pairs.explainer.isin(["lime", "whole_lung"])
            & pairs.other.isin(["lime", "whole_lung"])
        ].to_dict("records")
        turn = 1 if row["explainer"] == "lime" else -1
        assert found.test.difference == pytest.approx(turn * row["difference"])
        ends = sorted((turn * row["low"], turn * row["high"]))
        assert (found.test.low, found.test.high) == pytest.approx(ends)
        assert found.test.p == pytest.approx(row["p"])
        assert found.test.n_groups == row["n_groups"]
        assert found.names == ("lime", "whole_lung")
        assert "one test, not corrected" in found.text
        assert "by image: patients are not known" in found.text
        assert found.table.difference.mean() == pytest.approx(found.test.difference)


def test_sweeps_are_compared_image_by_image(small_sweep: Path, other: Path) -> None:
    both = read_runs(str(small_sweep), str(other))
    mine, theirs = (Selection("lime", run, "test_resnet") for run in ("tiny", "other"))
    found = compare_two(both, mine, theirs)
    assert (found.test.difference, found.test.p) == (0.0, 1.0)
    assert found.names == ("tiny test_resnet lime", "other test_resnet lime")
    figure = found.figure()
    assert png(figure).startswith(b"\x89PNG")
    assert "0 of 3 images above the line" in figure.axes[0].texts[0].get_text()


def test_patients_count_once_where_the_data_set_knows_them(
    small_sweep: Path, other: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load((other / "config.yaml").read_text())
    data = tmp_path / "data"
    shutil.copytree(config["data"]["root"], data)
    names = [f"covid_{i}.png" for i in range(1, 5)]
    lines = [f"Test,COVID-19,{name},one" for name in names]
    (data / "index.csv").write_text("\n".join(["split,cls,name,patient", *lines]))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace(config["data"]["root"], str(data)))
    one = read_runs(str(other))
    found = compare_two(one, LIME, LUNG)
    assert (found.test.n, found.test.n_groups) == (3, 1)
    assert "3 images of 1 patient" in found.text
    assert compare_two(one, LIME, LUNG, by_patient=False).test.n_groups == 3
    shutil.rmtree(data)
    with pytest.raises(DataError):
        compare_two(one, LIME, LUNG)
    assert "one" not in compare_two(one, LIME, LUNG, by_patient=False).table.to_csv().split(",")


def test_what_is_not_there_is_named(runs: Runs, small_sweep: Path, tmp_path: Path) -> None:
    for one, said in (
        (Selection("lime"), "backbone: expected one of test_.*, test_.*, found ''"),
        (Selection("lyme", backbone="test_resnet"), "explainer: expected one of .*lime.*'lyme'"),
        (Selection("lime", "else"), "run: expected one of tiny, found 'else'"),
        (Selection("lime", "", "test_resnet", "otsu"), "threshold_rule: .*fixed.*found 'otsu'"),
    ):
        with pytest.raises(RunFolderError, match=said):
            compare_two(runs, one, LUNG)
    with pytest.raises(RunFolderError, match="metric: expected one of iou, "):
        compare_two(runs, LIME, LUNG, "seconds")
    with pytest.raises(RunFolderError, match=r"backbone: expected one of .*, found 'vgg16'"):
        runs.infection_maps(backbone="vgg16")
    with pytest.raises(RunFolderError, match="a run named 'tiny' already"):
        read_runs(str(small_sweep), str(small_sweep))
    with pytest.raises(RunFolderError, match="at least one run folder"):
        read_runs()
    unfinished = RunFolder(str(tmp_path / "open"))
    with unfinished:
        unfinished.open({"name": "open"}, "0")
    with pytest.raises(RunFolderError, match="not finished"):
        read_runs(str(tmp_path / "open"))
    with pytest.raises(ValueError, match="at least one image"):
        paired_scatter((np.array([np.nan]), np.ones(1)), ("a", "b"), "IoU")


def test_mlflow_says_what_the_tables_say(small_sweep: Path, runs: Runs, tmp_path: Path) -> None:
    stored = read_mlflow(str(small_sweep))
    assert list(stored.columns[:6]) == [
        *("experiment", "run", "trial_id", "backbone", "best", "status"),
    ]
    assert (stored.trial_id == "").sum() == 1, "the sweep"
    trials = stored[stored.trial_id != ""].set_index("trial_id")
    own = runs.trials.set_index("trial_id").loc[trials.index]
    assert trials.best.tolist() == own.best.tolist()
    np.testing.assert_allclose(trials["classification/val_accuracy"], own.val_accuracy)
    board = runs.leaderboard[runs.leaderboard.threshold_rule == "val"]
    for row in board[board.explainer == "lime"].itertuples():
        assert trials.loc[row.trial_id, "iou_test/lime.val"] == pytest.approx(row.iou)
    assert trials["param.backbone"].tolist() == own.backbone.tolist()
    assert len(read_mlflow(f"sqlite:///{small_sweep}/mlflow.db", "tiny")) == len(stored)
    with pytest.raises(TrackingError, match=r"expected an experiment 'none', found .*'tiny'"):
        read_mlflow(str(small_sweep), "none")
    with pytest.raises(TrackingError, match=r"python -m raybench.track"):
        read_mlflow(str(tmp_path))
    assert not list(tmp_path.iterdir()), "no store is made by looking"
