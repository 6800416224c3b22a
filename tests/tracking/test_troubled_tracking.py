"""A tracking server that dies or hangs under a sweep: units and seconds counted, all shown in the
end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench import track
from raybench.tracking import live as live_module
from raybench.tracking import tracking_uri
from raybench.tracking.live import LiveProjection
from raybench.tracking.mlflow_projection import ProjectionReport
from raybench.tracking.run_folder import RunFolder
from tests.refusing import Refusing, Way, until
from tests.tracking.small_sweep import closed_port

UNITS, AT = 40, 13


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(str(tmp_path / "run"))
    folder.open({"name": "troubled"}, "d1")
    folder.events.append("sweep_started", version="0.1.0", config_digest="d1")
    return folder


def work(run: RunFolder, at: Any = None, pause: float = 0.02) -> tuple[float, float]:
    """Units that note an epoch and a row each; seconds of all, and of the longest."""
    begin, longest = time.monotonic(), 0.0
    for number in range(UNITS):
        if at is not None and number == AT:
            at()
        since = time.monotonic()
        time.sleep(pause)
        run.append("maps_a", pd.DataFrame({"unit": [number]}))
        run.events.append(
            "epoch", trial_id="t1", backbone="b", epoch=number, phase="all", train_loss=0.5
        )
        longest = max(longest, time.monotonic() - since)
    return time.monotonic() - begin, longest


def whole(run: RunFolder) -> None:
    found = run.read("maps_a").unit.tolist()
    lost, twice = UNITS - len(set(found)), len(found) - len(set(found))
    print(f"computed {len(found)}, lost {lost}, twice {twice}")
    assert (lost, twice) == (0, 0)


def test_a_server_that_hangs_from_the_start_delays_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = RunFolder(str(tmp_path / "alone"))
    alone.open({"name": "alone"}, "d1")
    without, _ = work(alone)
    monkeypatch.setattr(tracking_uri, "_SECONDS", 0.5)
    server = Refusing(closed_port())
    server.turn("hang")
    live = LiveProjection(run, server.url, every_seconds=0.01)
    seconds, longest = work(run)
    begin = time.monotonic()
    outcome = live.close()
    closed = time.monotonic() - begin
    server.close()
    print(f"{seconds:.1f} s, {without:.1f} s without; closed after {closed:.1f} s")
    assert server.n_refused > 0
    assert longest < 1.0
    assert seconds < without + 2.0
    assert closed < 4.0, "the attempt under way and the last one"
    assert isinstance(outcome, str)
    assert f"python -m raybench.track {run.path}" in outcome
    whole(run)


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """MLflow's own server; its port."""
    folder, port = tmp_path_factory.mktemp("mlflow"), closed_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            until(lambda: process.poll() is not None or _answers(port), 120)
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            yield port
        finally:
            os.killpg(process.pid, 15)
            process.wait(30)


def _answers(port: int) -> bool:
    try:
        tracking_uri.reach(f"http://127.0.0.1:{port}")
    except Exception:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("way", ["close", "hang", "503"])
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_goes_away_in_the_middle(
    run: RunFolder,
    mlflow_server: int,
    way: Way,
    comes_back: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_module, "_FIRST_PAUSE", 1.0)
    proxy = Refusing(mlflow_server)
    name = f"{run.path}"
    live = LiveProjection(run, proxy.url, name, every_seconds=0.1)
    # The first projection imports MLflow: that is not the server's doing.
    until(lambda: isinstance(live._outcome, ProjectionReport), 90)
    seconds, longest = work(run, lambda: proxy.turn(way), pause=0.1)
    until(lambda: proxy.n_refused > 0, 30)
    begin = time.monotonic()
    if comes_back:
        proxy.turn("serve")
        events = len(run.events.read())
        until(lambda: _shown(run, mlflow_server, name) == UNITS, 60)
        print(f"shown {time.monotonic() - begin:.1f} s after the server was back ({events} events)")
        begin = time.monotonic()
    outcome = live.close()
    closed = time.monotonic() - begin
    print(f"{way}: {seconds:.1f} s, longest unit {longest:.2f} s; closed after {closed:.1f} s")
    assert longest < 1.5
    assert closed < 40
    whole(run)
    assert isinstance(outcome, ProjectionReport) == comes_back
    if not comes_back:
        assert "python -m raybench.track" in str(outcome)
        proxy.turn("serve")
        begin = time.monotonic()
        assert track.main([str(run.path), "--uri", proxy.url, "--experiment", name]) == 0
        print(f"shown by the command in {time.monotonic() - begin:.1f} s")
    assert _shown(run, mlflow_server, name) == UNITS
    proxy.close()


def _shown(run: RunFolder, port: int, experiment: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{port}")
    found = client.get_experiment_by_name(experiment)
    for each in client.search_runs([found.experiment_id]):
        if "raybench.epoch_events" in each.data.tags:
            return len(client.get_metric_history(each.info.run_id, "train_loss"))
    return 0
