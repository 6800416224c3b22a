"""The study's figures: complete, as printed, beside ours only where the data are the study's."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from raybench.config import SweepConfig, load_config
from raybench.data.covid_qu_ex import CovidQuEx
from raybench.models.backbones import backbone
from raybench.report.published import COLUMNS, NAME, has_the_studys_counts, published
from raybench.studies import summary
from raybench.studies.context import Context
from raybench.studies.published_stage import write_published
from raybench.tracking.run_folder import RunFolder
from raybench.types import SPLITS, XrayRecord

COUNTS = {
    "COVID-19": (1864, 466, 583),
    "Non-COVID": (932, 233, 291),
    "Normal": (932, 233, 292),
}
SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def records(counts: dict[str, tuple[int, int, int]]) -> tuple[XrayRecord, ...]:
    return tuple(
        XrayRecord(f"{split}/{label}/{i}.png", split, label, "")
        for label, of_splits in counts.items()
        for split, n in zip(SPLITS, of_splits, strict=True)
        for i in range(n)
    )


def context_at(folder: Path, config: SweepConfig, known: tuple[XrayRecord, ...]) -> Context:
    return Context(config, RunFolder(str(folder)), config.data, known, {"Val": (), "Test": ()})


def test_the_figures_are_complete_and_of_known_names() -> None:
    three, two = published(3), published(2)
    assert list(three.columns) == list(COLUMNS)
    assert (len(three), len(two)) == (7 * 4 + 3 * 6, 5 + 3 * 2)
    assert len(published(4)) == 0
    for frame in (three, two):
        assert not frame.duplicated(["backbone", "explainer", "metric"]).any()
        assert set(frame.metric[frame.explainer != ""]) == {"iou", "dice", "hausdorff"}
        assert all(backbone(name).name == name for name in frame.backbone)
        shares = frame[~frame.metric.isin(["hausdorff", "parameters_millions"])]
        assert shares.value.between(0, 1).all()
    # Means over classes and Dice against IoU: what a slip of the pen would break.
    wide = three[three.explainer == ""].pivot(index="backbone", columns="metric", values="value")
    of_classes = wide[[c for c in wide if c.startswith("precision_")]].mean(axis=1)
    assert (of_classes - wide.precision).abs().max() < 0.0151, "means of rounded figures"
    maps = pd.concat([three, two])
    maps = maps[maps.explainer != ""]
    means = maps.pivot(index=["backbone", "explainer", "n_classes"], columns="metric")["value"]
    highest = 2 * means.iou / (1 + means.iou)  # Dice of the mean IoU; means lie below it
    assert (means.dice < highest).all()
    assert (means.dice > 0.9 * highest - 0.02).all()


def test_what_the_sweep_files_expect_is_what_is_published() -> None:
    """The comment of each sweep file quotes them, and each backbone of it has figures."""
    for name, n_classes in (("covid-qu-ex.yaml", 3), ("covid-qu-ex-two-class.yaml", 2)):
        text = (SWEEPS / name).read_text()
        maps = published(n_classes).query("explainer != ''")
        for (_, _), rows in maps.groupby(["backbone", "explainer"]):
            # Halves go up: 0.2355 is quoted as 0.236.
            value = {m: v + 1e-9 for m, v in zip(rows.metric, rows.value, strict=True)}
            told = (f"{value['iou']:.3f}", f"{value['dice']:.3f}", f"{value['hausdorff']:.1f}")
            assert " / ".join(told) in text
    config = load_config(SWEEPS / "covid-qu-ex.yaml", [("data.root", "x")])
    assert {r.name for r in config.recipes} == set(published(3).backbone)


@pytest.mark.parametrize("n", [291, 292])
def test_the_studys_data_are_known_by_their_counts(n: int) -> None:
    counts: dict[tuple[str, str], int] = {
        (split, label): of[i] for label, of in COUNTS.items() for i, split in enumerate(SPLITS)
    }
    counts["Test", "Non-COVID"], counts["Test", "Normal"] = n, 583 - n
    three = ("Normal", "COVID-19", "Non-COVID")
    assert has_the_studys_counts(counts, three)
    assert has_the_studys_counts(counts, three[1:])
    assert not has_the_studys_counts(counts, ("COVID-19", "Normal")), "the study's two are others"
    for key in counts:
        assert not has_the_studys_counts(counts | {key: counts[key] - 1}, three), key
    assert not has_the_studys_counts({}, three)


def _two_classes(raw: dict[str, Any]) -> None:
    raw["data"]["classes"] = ["COVID-19", "Non-COVID"]


def _lung_subset(raw: dict[str, Any]) -> None:
    raw["data"]["subset"] = "lung"


def _another_reader(raw: dict[str, Any]) -> None:
    raw["data"] = {"name": "phantom", "n_train": 932, "n_val": 233, "n_test": 292}


def _explains_another(raw: dict[str, Any]) -> None:
    raw["data"]["explain"] = {"name": "covid_qu_ex", "root": "elsewhere"}


@pytest.mark.parametrize(
    ("change", "written"),
    [
        (None, 46),
        (_two_classes, 11),
        (_lung_subset, 0),
        (_another_reader, 0),
        (_explains_another, 0),
    ],
)
def test_they_are_written_where_the_data_are_the_studys(
    tmp_path: Path, change: Callable[[dict[str, Any]], None] | None, written: int
) -> None:
    raw: dict[str, Any] = {
        "name": "any-name",
        "data": {"name": "covid_qu_ex", "root": "anywhere"},
        "backbones": [{"name": "vgg16", "phases": [{"epochs": 1, "lr": 1e-3}]}],
    }
    if change is not None:
        change(raw)
    config = SweepConfig.model_validate(raw)
    known = records({label: COUNTS[label] for label in config.data.classes})
    context = context_at(tmp_path, config, known)
    assert write_published(context) == (written > 0)
    found = context.run.read_csv(NAME)
    assert len(found) == written
    if written:
        n_classes = len(config.data.classes)
        pd.testing.assert_frame_equal(found.fillna({"explainer": ""}), published(n_classes))
        assert set(found.n_classes) == {n_classes}
        # One image that does not open, and the data are not the study's any more.
        context.run.storage.remove(NAME)
        assert not write_published(replace(context, records=known[1:]))
        assert context.run.read_csv(NAME).empty


def test_a_sample_in_the_same_layout_is_not_the_studys(cxr: Path, tmp_path: Path) -> None:
    data = CovidQuEx.model_validate({"name": "covid_qu_ex", "root": str(cxr)})
    raw = {
        "name": "covid-qu-ex",
        "data": {"name": "covid_qu_ex", "root": str(cxr)},
        "backbones": [{"name": "vgg16", "phases": [{"epochs": 1, "lr": 1e-3}]}],
    }
    context = context_at(tmp_path, SweepConfig.model_validate(raw), tuple(data.records()))
    assert not write_published(context)


@pytest.mark.parametrize("is_study", [True, False])
def test_the_summary_shows_them_beside_ours(tmp_path: Path, is_study: bool) -> None:
    run = RunFolder(str(tmp_path))
    trial = {"trial_id": "t0", "status": "finished", "n_epochs": 3, "best": True}
    backbones = ["densenet121", "test_resnet"]
    trials = pd.DataFrame([trial | {"backbone": b, "test_accuracy": 0.8} for b in backbones])
    row = {"explainer": "lime", "threshold_rule": "val", "threshold": 0.3, "n": 9, "n_forward": 5}
    means = {"iou": 0.31, "dice": 0.41, "hausdorff": 50.0}
    board = pd.DataFrame([row | means | {"backbone": b} for b in backbones])
    run.write_csv("trials.csv", trials)
    run.write_csv("leaderboard.csv", board)
    if is_study:
        run.write_csv(NAME, published(3))
    said = io.StringIO()
    summary.show(run, Console(file=said, width=130))
    lines = [" ".join(line.split()) for line in said.getvalue().splitlines()]
    wanted = [
        "published densenet121 - - - - 0.890 - 0.970",
        "lime (published) fixed 0.50 583 0.334 0.466 93.0 - -",
        "lime val 0.30 9 0.310 0.410 50.0 - 5",
        "grad_cam (published) fixed 0.60 583 0.126 0.196 126.3 - -",
    ]
    if is_study:
        of_both = [line for line in lines if line in wanted]
        assert of_both == [*wanted, wanted[2]], "ordered by IoU; nothing for the other backbone"
        assert sum("(published)" in line for line in lines) == 2
        assert any(line.startswith(NAME) for line in lines)
    else:
        assert not any("published" in line for line in lines)
