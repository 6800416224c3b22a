"""A small run folder, projected into MLflow's sqlite store: right, nested, and the same twice."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybench import track
from raybench.errors import TrackingError
from raybench.tracking import tracking_uri
from raybench.tracking.mlflow_projection import Projector, project
from raybench.tracking.run_folder import RunFolder
from tests.tracking.small_sweep import (
    CONFIG,
    N_EPOCHS,
    START,
    STATUS,
    TRIALS,
    begin,
    by_trial,
    client,
    closed_port,
    dump,
    end,
    files,
    scores,
)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that has to stay empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


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
    assert first.n_files == 4 + 3 + 2  # tables, figures, and two figures once more with their trial
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
