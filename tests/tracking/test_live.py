"""The live projection: it follows a sweep, and a dead server costs the sweep nothing."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raybench.errors import TrackingError
from raybench.tracking import live as live_module
from raybench.tracking import tracking_uri
from raybench.tracking.live import LiveProjection
from raybench.tracking.mlflow_projection import ProjectionReport, Projector
from raybench.tracking.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(str(tmp_path / "run"))
    folder.open({"name": "live"}, "d1")
    folder.events.append("sweep_started", version="0.1.0", config_digest="d1")
    return folder


def epoch(run: RunFolder, number: int) -> None:
    run.events.append(
        "epoch", trial_id="t1", backbone="vgg16", epoch=number, phase="all", train_loss=0.5
    )


def until(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_it_follows_the_sweep_and_ends_with_all_of_it(run: RunFolder) -> None:
    from mlflow import MlflowClient

    live = LiveProjection(run, every_seconds=0.05)
    epoch(run, 0)
    client = MlflowClient(tracking_uri.default(run.path))

    def trials() -> list[Any]:
        experiment = client.get_experiment_by_name("live")
        found = client.search_runs([experiment.experiment_id]) if experiment else []
        return [r for r in found if "raybench.epoch_events" in r.data.tags]

    until(trials)
    assert trials()[0].info.status == "RUNNING"
    for number in range(1, 20):
        epoch(run, number)
    run.events.append("trial_finished", trial_id="t1", status="finished", error=None)
    run.mark_finished()
    report = live.close()
    assert isinstance(report, ProjectionReport)
    (trial,) = trials()
    assert trial.info.status == "FINISHED"
    history = client.get_metric_history(trial.info.run_id, "train_loss")
    assert sorted(point.step for point in history) == list(range(20))
    assert client.get_run(report.parent_run_id).info.status == "FINISHED"
    assert live.close() == report


def test_a_dead_server_costs_the_sweep_nothing(
    run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    uri = f"http://someone:hidden@127.0.0.1:{closed_port()}"
    live = LiveProjection(run, uri, "an experiment", every_seconds=0.01)
    longest = 0.0
    for number in range(50):
        begin = time.monotonic()
        epoch(run, number)
        longest = max(longest, time.monotonic() - begin)
        time.sleep(0.005)
    assert longest < 1.0
    until(lambda: any(e["kind"] == "warning" for e in run.events.read()))
    begin = time.monotonic()
    outcome = live.close(timeout=20)
    assert time.monotonic() - begin < 10
    assert isinstance(outcome, str)
    assert "no tracking server answers" in outcome
    assert f"python -m raybench.track {run.path} --uri" in outcome
    assert "--experiment 'an experiment'" in outcome
    warnings = [e["message"] for e in run.events.read() if e["kind"] == "warning"]
    assert len(warnings) == len(caplog.records) == 1
    assert "hidden" not in outcome + warnings[0] + caplog.text


def test_the_breaker_waits_longer_each_time_and_closes_after_a_success(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "_FIRST_PAUSE", 0.1)
    monkeypatch.setattr(live_module, "_LONGEST_PAUSE", 0.4)
    report = ProjectionReport("u", "e", "1", "p", 0, 0, 0, 0.0)
    attempts: list[float] = []

    def flaky(self: Projector) -> ProjectionReport:
        attempts.append(time.monotonic())
        if len(attempts) <= 4:
            raise TrackingError("down") if len(attempts) % 2 else ValueError("a bug")
        return report

    monkeypatch.setattr(Projector, "project", flaky)
    live = LiveProjection(run, every_seconds=0.01)
    until(lambda: len(attempts) >= 5)
    pauses = [b - a for a, b in itertools.pairwise(attempts)][:4]
    for pause, expected in zip(pauses, (0.1, 0.2, 0.4, 0.4), strict=True):
        assert expected <= pause < expected + 0.3
    time.sleep(0.1)
    assert len(attempts) == 5  # no news, no projection
    epoch(run, 0)
    until(lambda: len(attempts) == 6)
    assert live.close(final=False) == report
    assert len(attempts) == 6


def test_closing_does_not_wait_for_a_server_that_hangs(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def hang(self: Projector) -> ProjectionReport:
        go_on.wait(30)
        raise TrackingError("gone")

    monkeypatch.setattr(Projector, "project", hang)
    live = LiveProjection(run, every_seconds=0.01)
    begin = time.monotonic()
    outcome = live.close(timeout=0.2)
    assert time.monotonic() - begin < 2
    assert isinstance(outcome, str)
    assert f"python -m raybench.track {run.path}" in outcome
    go_on.set()
