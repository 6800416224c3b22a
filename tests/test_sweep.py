"""The main job from the command line, on phantoms: whole, killed and resumed, asked again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench.data import CovidQuEx
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.models.checkpoint import read_card
from raybench.models.classifier import Classifier
from raybench.tracking.run_folder import RunFolder
from tests.small_study import EXPLAINERS, finish, start
from tests.test_soak import workers_of


@pytest.fixture(scope="module")
def study(small_study: Path) -> Path:
    """A sweep file, its data beside it."""
    return small_study


def _kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < end, "the moment to kill it never came"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def _interrupt_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Ctrl-C: it ends soon, and says how to go on."""
    end = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the sweep ended before it could be interrupted"
        assert time.monotonic() < end, "the moment to interrupt it never came"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert time.monotonic() - begin < 20, "10 s on a machine that does nothing else"
    assert process.returncode == 130
    assert "go on with the same command and --resume" in said


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return [e for e in events if e["kind"] == kind]


@pytest.fixture(scope="module")
def whole(small_sweep: Path) -> Path:
    """The run folder of an uninterrupted sweep."""
    return small_sweep


def test_the_run_folder_holds_everything(whole: Path) -> None:
    trials = pd.read_csv(whole / "trials.csv")
    scores = pd.read_parquet(whole / "scores.parquet")
    board = pd.read_csv(whole / "leaderboard.csv")
    assert list(trials.status) == ["finished"] * 4
    assert dict(trials.groupby("backbone").best.sum()) == {"test_efficientnet": 1, "test_resnet": 1}
    assert trials.test_accuracy.notna().tolist() == trials.best.tolist()
    for name in ("val_accuracy", "test_accuracy", "test_recall_Normal", "test_loss"):
        found = trials[trials.best]
        assert found[f"{name}_low"].le(found[name]).all(), name
        assert found[f"{name}_high"].ge(found[name]).all(), name
        assert trials[~trials.best][[f"{name}_low", f"{name}_high"]].isna().all(axis=None), name
    assert list(scores.columns) == [
        *("trial_id", "backbone", "image_id", "split", "label", "predicted", "explainer"),
        *("threshold_rule", "threshold", "iou", "dice", "hausdorff"),
        *("precision", "recall", "specificity", "hd95", "assd", "nsd", "hausdorff_outline"),
        *("hit_rate", "mass_accuracy", "rank_accuracy", "pixel_auroc", "pixel_ap"),
        *("outside_lungs", "pixel_auroc_lungs", "pixel_ap_lungs"),
        *("severity", "severity_truth", "severity_error", "seconds", "n_forward", "error"),
    ]
    best = set(trials[trials.best].trial_id)
    # 2 best trials: 5 explainers on 5 images; 2 others: 4 cheap ones on the 2 of Val; 2 rules each
    tuned = scores.explainer.str.endswith("_tuned")
    assert (~tuned).sum() == (2 * 5 * 5 + 2 * 4 * 2) * 2
    assert set(scores[scores.split == "Test"].trial_id) == best
    assert set(scores[scores.explainer == "lime"].trial_id) == best
    assert set(scores[scores.explainer == "lime_tuned"].trial_id) == best
    assert set(scores[tuned].explainer) == {f"{name}_tuned" for name in EXPLAINERS}
    assert set(scores.trial_id) == set(trials.trial_id)
    assert scores.error.isna().all()
    assert scores[scores.explainer == "lime"].n_forward.between(2, 120).all()
    assert (~board.explainer.str.endswith("_tuned")).sum() == 2 * 5 * 2
    _expect_search(whole, scores, best)
    assert (board.n == 3).all()
    for name in ("config.yaml", "mlflow.db", "predictions.parquet", "events.jsonl"):
        assert (whole / name).exists(), name
    pictures = {p.name for p in (whole / "figures").glob("*.png")}
    assert {"training_curves.png", "explainers.png", "pareto.png"} <= pictures
    kinds = ("roc", "precision_recall", "confusion", "reliability", "infection_maps")
    assert all(f"{kind}_{t}.png" in pictures for t in best for kind in kinds)
    assert len(list((whole / "checkpoints").glob("*.safetensors"))) == 4


def _expect_search(whole: Path, scores: pd.DataFrame, best: set[str]) -> None:
    """What the search says of its winners on Val is what scoring their maps says."""
    trials = pd.read_csv(whole / "explainer_search.csv")
    assert len(trials) == 2 * (2 * 2 + 3)  # 2 settings of 2 explainers of each model, 3 of none
    assert set(trials.trial_id) == best | {"shared"}
    for row in trials[trials.winner].to_dict("records"):
        rule = json.loads(row["parameters"]).get("threshold_rule", "val")
        part = scores[
            (scores.explainer == f"{row['explainer']}_tuned")
            & (scores.threshold_rule == rule)
            & (scores.split == "Val")
            & (
                scores.trial_id.isin(best)
                if row["trial_id"] == "shared"
                else scores.trial_id == row["trial_id"]
            )
        ]
        assert part.iou.mean() == pytest.approx(row["val_iou"], abs=1e-12)
        assert part.threshold.unique() == pytest.approx(row["threshold"])


def test_every_trial_is_judged_on_images_preprocessed_as_its_own_were(
    study: Path, whole: Path
) -> None:
    data = CovidQuEx(name="covid_qu_ex", root=str(study.parent / "data"))
    images = {r.image_id: data.load(r) for r in data.records() if r.split == "Val"}
    predictions = pd.read_parquet(whole / "predictions.parquet")
    trials = pd.read_csv(whole / "trials.csv")
    assert trials.erase_border.nunique() == 4
    for trial in trials.to_dict("records"):
        path = whole / "checkpoints" / f"{trial['trial_id']}.safetensors"
        preprocess = Preprocess.model_validate(read_card(str(path)).preprocess)
        assert (preprocess.clahe, preprocess.erase_border) == (
            trial["clahe"],
            pytest.approx(trial["erase_border"]),
        )
        rows = predictions[
            (predictions.trial_id == trial["trial_id"]) & (predictions.split == "Val")
        ]
        pixels = np.stack(
            [resize_gray(preprocess.apply(images[i]), (64, 64)) for i in rows.image_id]
        )
        found = Classifier.from_checkpoint(path.read_bytes()).predict(pixels)
        kept = rows[[f"p_{c}" for c in data.classes]].to_numpy()
        np.testing.assert_allclose(found, kept, atol=1e-5)


def test_the_log_says_what_the_centre_prior_is(whole: Path) -> None:
    (event,) = _events(whole, "centre_prior")
    assert (event["source"], event["n_masks"]) == ("train", 8)


def test_the_skipped_image_is_named_in_the_result(whole: Path) -> None:
    warnings = _events(whole, "warning")
    assert len(warnings) == 1
    assert "1 of 45 images were left out" in warnings[0]["message"]


def test_mlflow_holds_a_run_a_trial_under_a_parent(whole: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{whole}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if r.data.tags["kind"] == "trial"]
    assert len(parents) == 1
    board = pd.read_csv(whole / "leaderboard.csv")
    assert sum(r.data.tags["kind"] == "explanation" for r in runs) == len(board)
    assert len(children) == 4
    scores = pd.read_parquet(whole / "scores.parquet")
    for child in children:
        trial = child.data.tags["raybench.trial_id"]
        assert len(client.get_metric_history(child.info.run_id, "val_accuracy")) >= 3
        part = scores[(scores.trial_id == trial) & (scores.split == "Val")]
        mean = part[(part.explainer == "grad_cam") & (part.threshold_rule == "val")].iou.mean()
        assert child.data.metrics["iou_val/grad_cam.val"] == pytest.approx(mean)
        is_best = child.data.tags["best"] == "true"
        assert ("tuned_lime_surrogate.kernel_width" in child.data.params) == is_best
        assert ("tuned_val_iou/lime" in child.data.metrics) == is_best


def test_killed_interrupted_and_resumed_it_computes_nothing_twice_and_gives_the_same(
    study: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    process = start(study, tmp_path)
    _kill_when(process, lambda: any(e["trial_id"] == "t0001" for e in _events(run, "epoch")))
    resumed, n_before = time.time(), len(_events(run, "epoch"))
    process = start(study, tmp_path, "--resume")
    first_lime = run / "parts"
    # It went on with its trials before: Tune's own handler of Ctrl-C must not have stayed.
    _interrupt_when(process, lambda: len(list(first_lime.glob("maps_t*_lime/*.parquet"))) > 0)
    folder = RunFolder(str(run))
    tables = {p.parent.name for p in first_lime.glob("maps_*/*.parquet")}  # a folder may be empty
    kept = {t: folder.read(t)[["image_id", "seconds"]] for t in tables}
    checkpoints = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").iterdir()}
    seconds = _events(run, "epoch")[n_before]["time"] - resumed
    print(f"{seconds:.1f} s from --resume until the next epoch was done")
    assert 0 < seconds < 120, "on a machine that does much else"
    maps, again = set((run / "parts").rglob("*.parquet")), time.time()
    finish(start(study, tmp_path, "--resume"))

    new = [p.stat().st_mtime for p in (run / "parts").rglob("*.parquet") if p not in maps]
    print(f"{min(new) - again:.1f} s from --resume until the next rows were kept")
    assert 0 < min(new) - again < 120
    epochs = pd.DataFrame(_events(run, "epoch"))
    assert (epochs.groupby("trial_id").epoch.nunique() == 3).all()
    assert not epochs.duplicated(["trial_id", "epoch"]).any()
    assert {p: p.stat().st_mtime_ns for p in (run / "checkpoints").iterdir()} == checkpoints
    folder = RunFolder(str(run))
    for table in (run / "parts").glob("maps_*"):
        now = folder.read(table.name)
        assert not now.image_id.duplicated().any(), table.name
        if table.name in kept:  # a map made anew would have taken another time
            assert len(kept[table.name].merge(now)) == len(kept[table.name]), table.name
    _same_results(whole, run)


@pytest.mark.slow
def test_a_worker_killed_while_it_trains_costs_one_epoch_at_most(
    study: Path, ray_cluster: None, tmp_path: Path
) -> None:
    run, process = tmp_path / "tiny", start(study, tmp_path)
    killed: list[float] = []

    def trained() -> bool:
        n_epochs = len(_events(run, "epoch"))
        if n_epochs and not killed:
            for pid in workers_of(os.getpid()):  # the session's Ray is this process's
                os.kill(pid, signal.SIGKILL)
                killed.append(time.time())
        return bool(_events(run, "trial_finished"))

    _kill_when(process, trained)
    (trial,) = {e["trial_id"] for e in _events(run, "trial_finished")}
    epochs = [e for e in _events(run, "epoch") if e["trial_id"] == trial]
    found = Counter(e["epoch"] for e in epochs)
    assert len(killed) == 1
    assert sorted(found) == [0, 1, 2], "none is lost"
    assert sum(found.values()) - len(found) <= 1, "the one under way"
    seconds = min(e["time"] for e in epochs if e["time"] > killed[0]) - killed[0]
    print(f"{seconds:.1f} s until a new worker had done an epoch; {dict(found)} times each")
    assert seconds < 120, "on a machine that does much else"


def _same_results(one: Path, other: Path) -> None:
    a, b = (pd.read_csv(p / "trials.csv") for p in (one, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    a, b = (pd.read_csv(p / "explainer_search.csv").drop(columns="seconds") for p in (one, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    closer = ("faithfulness.csv", "sanity.csv", "stability.csv")
    for name in ("comparisons.csv", "strata.csv", *closer):
        a, b = (pd.read_csv(p / name) for p in (one, other))
        assert len(a)
        pd.testing.assert_frame_equal(a, b, check_exact=True)
    keys = ["trial_id", "explainer", "threshold_rule", "image_id"]
    a, b = (
        pd.read_parquet(p / "scores.parquet")
        .drop(columns="seconds")
        .sort_values(keys, ignore_index=True)
        for p in (one, other)
    )
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_a_finished_folder_shows_its_result_and_other_settings_are_refused(
    study: Path, whole: Path
) -> None:
    before = (whole / "scores.parquet").stat().st_mtime_ns
    said = finish(start(study, whole.parent))
    assert "tiny is finished" in said
    assert "whole_lung" in said
    process = start(study, whole.parent, "--seed", "1")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "seed: 0 there, 1 here" in said
    assert "--overwrite" in said
    assert (whole / "scores.parquet").stat().st_mtime_ns == before


def test_explaining_in_process_goes_on_where_ray_stopped_and_gives_the_same_scores(
    study: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(whole, run)
    for kind in ("maps", "faithfulness", "sanity", "stability"):
        for table in (run / "parts").glob(f"{kind}_*"):
            shutil.rmtree(table)
    (run / "mlflow.db").unlink()
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    judged = next(i for i, e in enumerate(events) if '"explaining"' in e)
    (run / "events.jsonl").write_text("".join(events[:judged]))
    finish(start(study, tmp_path, "--resume", "--execution.mode", "local"))
    assert len(_events(run, "epoch")) == len(_events(whole, "epoch"))
    _same_results(whole, run)
