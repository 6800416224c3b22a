"""A small run folder, projected into MLflow's sqlite store: right, nested, and the same twice."""

from __future__ import annotations

import math
import os
import shutil
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench import track
from raybench.errors import RunFolderError, TrackingError
from raybench.tracking import tracking_uri
from raybench.tracking.metrics import metric_name
from raybench.tracking.mlflow_projection import Projector, check_uri, project
from raybench.tracking.run_folder import RunFolder

CONFIG: dict[str, Any] = {
    "name": "fake sweep (it's small)",
    "data": {"name": "phantom", "size": 64},
    "explainers": [{"name": "lime", "n_samples": 100}, {"name": "grad_cam"}, {"name": "lung"}],
    "note": "x" * 7000,
    "nothing": [],
}
TRIALS = {"t1": "vgg16", "t2": "vgg16", "t3": "densenet121", "t10": "densenet121"}
STATUS = {"t1": "finished", "t2": "stopped", "t3": "failed", "t10": "finished"}
N_EPOCHS = 3
START = 1_700_000_000.0
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def write_epoch(run: RunFolder, trial_id: str, epoch: int, when: float, loss: float) -> None:
    run.events.append(
        "epoch",
        time=when,
        trial_id=trial_id,
        backbone=TRIALS[trial_id],
        epoch=epoch,
        phase="head",
        lr=1e-3,
        train_loss=loss,
        train_accuracy=0.5 + epoch / 10,
        val_loss=math.nan if (trial_id, epoch) == ("t3", 1) else loss * 2,
        val_accuracy=0.4 + epoch / 10,
        seconds=1.25,
    )


def scores() -> pd.DataFrame:
    random = np.random.default_rng(0)
    found = [
        {
            "trial_id": trial_id,
            "backbone": TRIALS[trial_id],
            "image_id": f"phantom_{image}",
            "split": split,
            "label": "COVID-19",
            "predicted": "COVID-19",
            "explainer": explainer,
            "threshold_rule": rule,
            "threshold": 0.5,
            "iou": random.random(),
            "dice": random.random(),
            "hausdorff": math.nan if image == 2 else random.random() * 100,
            "seconds": 2.0 + image,
            "n_forward": 100 if explainer == "lime" else 1,
            "error": "too dark" if image == 3 else None,
        }
        for trial_id in ("t1", "t10")
        for split in ("Val", "Test")
        for explainer in ("lime", "grad_cam", "lung")
        for image in range(5)
        for rule in ("fixed", "val")
        if (image, rule) != (0, "val")  # not every rule has a threshold for every image
    ]
    return pd.DataFrame(found)


def begin(root: Path) -> RunFolder:
    """A sweep on its way: all trials have begun, one has ended."""
    run = RunFolder(str(root))
    run.open(CONFIG, "d1gest", overwrite=True)
    run.events.append("sweep_started", time=START, version="0.1.0", config_digest="d1gest")
    for i, (trial_id, backbone) in enumerate(TRIALS.items()):
        run.events.append(
            "trial_started",
            time=START + 10 * i,
            trial_id=trial_id,
            backbone=backbone,
            hyperparameters={"head.lr": 1e-3 * (i + 1), "optimiser": "adam"},
        )
        for epoch in range(N_EPOCHS):
            write_epoch(run, trial_id, epoch, START + 10 * i + epoch, 1.0 / (epoch + 1))
    run.events.append("trial_finished", time=START + 50, trial_id="t1", status="finished")
    return run


def end(run: RunFolder) -> None:
    """The rest of the sweep. `t2` was resumed: its last epoch occurs a second time."""
    write_epoch(run, "t2", N_EPOCHS - 1, START + 60, 0.125)
    for trial_id, status in list(STATUS.items())[1:]:
        error = "out of memory" if status == "failed" else None
        run.events.append(
            "trial_finished", time=START + 70, trial_id=trial_id, status=status, error=error
        )
    run.events.append("stage_finished", time=START + 80, stage="explain", seconds=12.5, images=5)
    run.write_csv(
        "trials.csv",
        pd.DataFrame(
            {
                "trial_id": list(TRIALS),
                "backbone": list(TRIALS.values()),
                "best": [True, False, False, True],
                "val_accuracy": [0.6, 0.5, math.nan, 0.7],
                "test_accuracy": [0.55, math.nan, math.nan, 0.65],
                "test_accuracy_low": [0.5, math.nan, math.nan, 0.6],
                "test_n": [12, 12, 12, 12],
                "test_note": ["a", "b", "c", "d"],
            }
        ),
    )
    table = scores()
    run.write_parquet("scores.parquet", table)
    means = table[table["split"] == "Test"].groupby(["backbone", "explainer", "threshold_rule"])
    run.write_csv("leaderboard.csv", means[["iou", "dice"]].mean().reset_index())
    for name in ("leaderboard.png", "curves_t1.png", "curves_t10.png"):
        run.write_figure(name, PNG)
    run.events.append("sweep_finished", time=START + 90)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that has to stay empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri.default(root))


def dump(root: Path) -> dict[str, list[Any]]:
    """Every row that a projection writes."""
    with sqlite3.connect(root / "mlflow.db") as database:
        tables = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics")
        found = {t: sorted(map(str, database.execute(f"SELECT * FROM {t}"))) for t in tables}
    database.close()
    return found


def files(root: Path) -> list[str]:
    below = root / "mlflow-artifacts"
    return sorted(str(p.relative_to(below)) for p in below.rglob("*") if p.is_file())


def by_trial(root: Path) -> dict[str | None, Any]:
    api = client(root)
    experiment = api.get_experiment_by_name(CONFIG["name"])
    runs = api.search_runs([experiment.experiment_id])
    found = {run.data.tags.get("raybench.trial_id"): run for run in runs}
    assert len(found) == len(runs) == 5
    return found


def test_a_finished_sweep(tmp_path: Path, elsewhere: Path) -> None:
    root = tmp_path / "a run's folder"
    run = begin(root)
    end(run)
    report = project(run)
    assert (report.n_trials, report.experiment) == (4, CONFIG["name"])
    runs = by_trial(root)

    parent = runs[None]
    assert parent.info.run_id == report.parent_run_id
    assert (parent.info.run_name, parent.info.status) == (CONFIG["name"], "FINISHED")
    assert (parent.info.start_time, parent.info.end_time) == (START * 1000, START * 1000 + 90_000)
    assert parent.data.params["explainers.0.n_samples"] == "100"
    assert len(parent.data.params["note"]) == 6000
    assert parent.data.tags["raybench.version"] == "0.1.0"
    board = run.read_csv("leaderboard.csv").set_index(["backbone", "explainer", "threshold_rule"])
    found = {k: v for k, v in parent.data.metrics.items() if k.startswith("iou/")}
    assert found == {f"iou/{'.'.join(k)}": v for k, v in board["iou"].items()}
    assert parent.data.metrics["stage_seconds/explain"] == 12.5

    for trial_id, backbone in TRIALS.items():
        child = runs[trial_id]
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.run_name == f"{trial_id} {backbone}"
        assert child.info.status == ("FAILED" if trial_id == "t3" else "FINISHED")
        assert child.data.tags["status"] == STATUS[trial_id]
        assert child.data.tags["best"] == ("true" if trial_id in {"t1", "t10"} else "false")
        assert child.data.params["backbone"] == backbone
        assert child.data.params["optimiser"] == "adam"
    assert runs["t10"].data.params["head.lr"] == "0.004"
    assert runs["t3"].data.tags["error"] == "out of memory"
    assert list(elsewhere.iterdir()) == []


def test_metrics_are_those_of_the_folder(tmp_path: Path, elsewhere: Path) -> None:
    run = begin(tmp_path / "run")
    end(run)
    project(run)
    api, runs = client(run.path), by_trial(run.path)

    def curve(trial_id: str, key: str) -> list[tuple[int, float, float]]:
        history = api.get_metric_history(runs[trial_id].info.run_id, key)
        return sorted((m.step, m.value, m.timestamp / 1000) for m in history)

    assert curve("t1", "train_loss") == [(e, 1 / (e + 1), START + e) for e in range(N_EPOCHS)]
    assert curve("t2", "train_loss")[-1] == (2, 0.125, START + 60)  # the last occurrence only
    assert len(curve("t2", "train_loss")) == N_EPOCHS
    assert [step for step, _, _ in curve("t3", "val_loss")] == [0, 2]  # NaN cannot be drawn
    assert curve("t1", "epoch_seconds")[0][1] == 1.25

    shown = runs["t10"].data.metrics
    assert (shown["classification/val_accuracy"], shown["val_accuracy"]) == (0.7, 0.4 + 2 / 10)
    assert shown["classification/test_n"] == 12
    assert shown["classification/test_accuracy_low"] == 0.6
    assert "classification/test_note" not in shown
    assert "classification/test_accuracy_low" not in runs["t2"].data.metrics
    assert "classification/test_accuracy" not in runs["t2"].data.metrics
    table = scores()
    good = table[(table["trial_id"] == "t10") & table["error"].isna()]
    for metric in ("iou", "dice", "hausdorff"):
        for split in ("Val", "Test"):
            for explainer in ("lime", "grad_cam", "lung"):
                for rule in ("fixed", "val"):
                    rows = good[
                        (good["split"] == split)
                        & (good["explainer"] == explainer)
                        & (good["threshold_rule"] == rule)
                    ]
                    expected = float(np.nanmean(rows[metric].to_numpy()))
                    name = f"{metric}_{split.lower()}/{explainer}.{rule}"
                    assert shown[name] == pytest.approx(expected, rel=1e-12)
    assert shown["seconds_per_image/lime"] == pytest.approx(np.mean([2, 3, 4, 6]))
    assert (shown["n_forward_per_image/lime"], shown["n_forward_per_image/lung"]) == (100, 1)
    assert not any(key.startswith("iou") for key in runs["t2"].data.metrics)


def test_projecting_again_adds_nothing(tmp_path: Path, elsewhere: Path) -> None:
    run = begin(tmp_path / "run")
    end(run)
    first = project(run)
    rows, sent = dump(run.path), files(run.path)
    assert first.n_metrics > 50
    assert first.n_files == 3 + 3 + 2  # tables, figures, and two figures once more with their trial
    again = project(run)
    assert (again.n_metrics, again.n_files) == (0, 0)
    assert (dump(run.path), files(run.path)) == (rows, sent)
    t10 = by_trial(run.path)["t10"].info.run_id
    assert [f for f in sent if f.startswith(t10)] == [f"{t10}/artifacts/figures/curves_t10.png"]
    assert list(elsewhere.iterdir()) == []


def test_as_the_sweep_goes_on_the_rest_is_added(tmp_path: Path, elsewhere: Path) -> None:
    live = begin(tmp_path / "live")
    projector = Projector(live)
    projector.project()
    runs = by_trial(live.path)
    assert runs[None].info.status == "RUNNING"
    assert [runs[t].info.status for t in TRIALS] == ["FINISHED", "RUNNING", "RUNNING", "RUNNING"]
    end(live)
    projector.project()
    afterwards = begin(tmp_path / "afterwards")
    end(afterwards)
    project(afterwards)
    one, other = by_trial(live.path), by_trial(afterwards.path)
    for trial_id in one:
        assert one[trial_id].data.metrics == other[trial_id].data.metrics
        assert one[trial_id].data.params == other[trial_id].data.params
        assert one[trial_id].info.status == other[trial_id].info.status
        assert one[trial_id].info.end_time == other[trial_id].info.end_time
    # A figure that changes is sent once more, with its new value on top.
    table = live.read_csv("trials.csv").assign(test_accuracy=0.99)
    os.utime(live.path / "trials.csv")
    live.write_csv("trials.csv", table)
    report = projector.project()
    assert (report.n_metrics, report.n_files) == (4, 1)
    assert by_trial(live.path)["t1"].data.metrics["classification/test_accuracy"] == 0.99


def test_a_projection_cut_short_is_made_whole(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    whole = begin(tmp_path / "whole")
    end(whole)
    project(whole)
    run = begin(tmp_path / "cut")
    end(run)
    batch, calls = MlflowClient.log_batch, 0

    def failing(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:  # the points of the first trial are in, the tag that says so is not
            raise ConnectionError("the cable was pulled")
        return batch(self, *arguments, **named)

    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", failing)
        with pytest.raises(TrackingError, match="the cable was pulled"):
            project(run)
    assert {path: path.read_bytes() for path in before} == before
    project(run)
    assert [row.split(",")[0] for row in dump(run.path)["metrics"]] == [
        row.split(",")[0] for row in dump(whole.path)["metrics"]
    ]
    assert {k: v.data.metrics for k, v in by_trial(run.path).items()} == {
        k: v.data.metrics for k, v in by_trial(whole.path).items()
    }


def test_one_store_for_several_sweeps(tmp_path: Path, elsewhere: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    one, other = begin(tmp_path / "one"), RunFolder(str(tmp_path / "other"))
    other.open({"name": "other"}, "d2", overwrite=True)
    other.events.append("sweep_started", version="0.1.0", config_digest="d2")
    reports = [project(run, uri, "all of them") for run in (one, other, one, other)]
    assert reports[0].parent_run_id == reports[2].parent_run_id != reports[1].parent_run_id
    # The same sweep from scratch, after --overwrite, is another run: histories must not mix.
    one.close()
    one.open(CONFIG, "d1gest", overwrite=True)
    one.events.append("sweep_started", version="0.1.0", config_digest="d1gest")
    assert project(one, uri, "all of them").parent_run_id != reports[0].parent_run_id
    assert not (tmp_path / "one" / "mlflow.db").exists()
    assert list(elsewhere.iterdir()) == []


def test_a_moved_folder_does_not_write_where_it_was(tmp_path: Path, elsewhere: Path) -> None:
    run = begin(tmp_path / "before")
    project(run)
    run.close()
    shutil.move(tmp_path / "before", tmp_path / "after")
    with pytest.raises(TrackingError, match=r"was moved .* remove mlflow\.db"):
        project(RunFolder(str(tmp_path / "after")))
    assert not (tmp_path / "before").exists()


def test_names_that_mlflow_would_refuse() -> None:
    from mlflow.utils.validation import _validate_metric_name

    names = [
        metric_name(*parts)
        for parts in (("iou/..", ".."), ("", "a"), ("Größe (px)", "a\nb"), ("x" * 300,), ("y:z",))
    ]
    assert names[0] == "iou_../__"
    assert metric_name("x" * 300) != metric_name("x" * 301)
    for name in names:
        _validate_metric_name(name)


@pytest.mark.parametrize("uri", ["gopher://x", "./mlruns", "file:///tmp/mlruns", "sqlite://", ""])
def test_unknown_schemes(uri: str) -> None:
    with pytest.raises(TrackingError, match="expected"):
        check_uri(uri)


def test_stores_that_are_not_there(tmp_path: Path) -> None:
    check_uri(f"sqlite:///{tmp_path}/new.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrackingError, match="no folder"):
        check_uri(f"sqlite:///{tmp_path}/missing/new.db")
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(TrackingError, match="not a sqlite database"):
        check_uri(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(RunFolderError, match="not a run folder"):
        project(RunFolder(str(tmp_path)))


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return int(port)


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql"])
def test_a_dead_server_is_told_at_once(scheme: str) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1.*answers") as caught:
        check_uri(f"{scheme}://someone:hidden@127.0.0.1:{closed_port()}")
    assert time.monotonic() - start < 10
    assert "hidden" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_uri, "_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TrackingError):
            check_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 3


def test_the_command(tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(tmp_path / "run")
    assert track.main([str(run.path)]) == 0  # the sweep still holds its lock
    out = capsys.readouterr().out
    assert "4 trials (not finished yet" in out
    assert f"ui --backend-store-uri {tracking_uri.default(run.path)} --host 127.0.0.1 " in out
    assert track.main([str(tmp_path)]) == 2
    assert track.main([str(run.path), "--uri", f"http://127.0.0.1:{closed_port()}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line[:7] for line in lines] == ["error: ", "error: "]
    assert list(elsewhere.iterdir()) == []


def test_two_projections_at_once_make_one_set_of_runs(tmp_path: Path, elsewhere: Path) -> None:
    run = begin(tmp_path / "run")
    threads = [threading.Thread(target=project, args=(RunFolder(str(run.path)),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(by_trial(run.path)) == 5
