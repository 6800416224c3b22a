"""Where a sweep stands, told from its folder: counts, states, what next, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from raybench.cli.status import main
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.status import clock, sweep_status

T = 1_700_000_000.0
_CONFIG = {
    "name": "tiny",
    "backbones": [{"name": "a", "phases": [{"epochs": 3}, {"epochs": 1}]}],
    "search": {"trials_per_backbone": 5},
}


def _epoch(run: RunFolder, when: float, trial: str, epoch: int, accuracy: float) -> None:
    named = {"trial_id": trial, "backbone": "a", "epoch": epoch, "val_accuracy": accuracy}
    run.events.append("epoch", time=when, **named)


def _begun(root: Path) -> RunFolder:
    """Five trials asked for: one finished, one stopped after one epoch, one failed, one running."""
    run = RunFolder(str(root))
    run.open(_CONFIG, "d1gest")
    run.events.append("sweep_started", time=T, version="0")
    run.events.append("stage_started", time=T, stage="training", epochs=20)
    for trial, n in {"t0": 4, "t1": 1, "t2": 1, "t3": 2}.items():
        run.events.append("trial_started", time=T, trial_id=trial, backbone="a")
        for epoch in range(n):
            _epoch(run, T + 1, trial, epoch, 0.5 + epoch / 10)
    for trial, ending in {"t0": "finished", "t1": "stopped", "t2": "failed"}.items():
        run.events.append("trial_finished", time=T + 10, trial_id=trial, status=ending)
    unet = {"trial_id": "supervised_t0", "backbone": "unet-a", "task": "supervised"}
    run.events.append("epoch", time=T + 10, **unet, epoch=0, val_dice=0.1, val_accuracy=1.0)
    return run


def _explaining(run: RunFolder) -> None:
    run.events.append("stage_finished", time=T + 20, stage="training", seconds=20.0, epochs=20)
    run.events.append("stage_started", time=T + 20, stage="explaining", maps=10, known=1)
    first = pd.DataFrame({"image_id": ["x", "y"], "error": [None, "too dark"]})
    run.append("maps_t0_lime", first)
    # What failed was tried again, and came about; one of another table fails.
    run.append("maps_t0_lime", pd.DataFrame({"image_id": ["y"], "error": [None]}))
    run.append("maps_shared_lung", pd.DataFrame({"image_id": ["x"], "error": ["too dark"]}))
    run.append("maps_supervised_t0_unet", first)
    for _ in range(2):
        run.events.append("warning", time=T + 25, message="mind the gap")


def test_counts_while_it_trains(tmp_path: Path) -> None:
    with _begun(tmp_path / "run") as run:
        status = sweep_status(run, now=T + 28)
    assert (status.state, status.n_trials, status.since) == ("running", 5, 18.0)
    assert status.trials == {"running": 1, "finished": 1, "stopped": 1, "failed": 1}
    assert status.best == {"trial_id": "t0", "backbone": "a", "val_accuracy": 0.8, "epoch": 3}
    (training,) = status.stages
    assert (training.done, training.total, training.unit) == (4 + 4 + 4 + 2, 20, "epochs")
    assert training.rate == pytest.approx(14 / 28)
    assert training.seconds_left == pytest.approx(6 / (14 / 28))


def test_counts_while_it_explains(tmp_path: Path) -> None:
    with _begun(tmp_path / "run") as run:
        _explaining(run)
        status = sweep_status(run, now=T + 30)
    training, explaining = status.stages
    assert (training.state, training.done, training.seconds) == ("finished", 20, 20.0)
    assert (explaining.state, explaining.done, explaining.total) == ("running", 2, 10)
    assert explaining.rate == pytest.approx(0.1), "one was there before"
    assert explaining.seconds_left == pytest.approx(80)
    assert (status.maps, status.maps_failed) == (2, 1)
    assert status.warnings == ("mind the gap",)


def test_counts_while_it_looks_closer(tmp_path: Path) -> None:
    with _begun(tmp_path / "run") as run:
        _explaining(run)
        run.events.append("stage_finished", time=T + 40, stage="explaining", seconds=20.0, maps=10)
        run.events.append("stage_started", time=T + 50, stage="sanity", maps=8, known=1)
        rows = {"image_id": ["x", "y", "y"], "error": [None, "too dark", None]}
        run.append("sanity_t0_lime", pd.DataFrame(rows))
        status = sweep_status(run, now=T + 60)
    last = status.stages[-1]
    assert (last.name, last.state, last.done, last.total) == ("sanity", "running", 2, 8)
    assert last.rate == pytest.approx(0.1), "one was there before"
    assert last.seconds_left == pytest.approx(60)


def test_states_and_what_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "run"

    def said() -> str:
        assert main([str(root)]) == 0
        return capsys.readouterr().out

    run = _begun(root)
    assert "tiny: running, last event " in said()
    run.close()
    text = said()
    assert "tiny: interrupted" in text
    assert f"python -m raybench.sweep {root}/config.yaml --output {tmp_path} --resume" in text
    assert "4 of 5 begun" in text
    assert "1 unfinished" in text
    run.open(_CONFIG, "d1gest", resume=True)  # that somebody looked does not keep a sweep out
    _explaining(run)
    run.events.append("stage_finished", time=T + 40, stage="explaining", seconds=20.0, maps=10)
    run.mark_finished()
    run.write_file("report.html", b"<html>")
    text = said()  # it still holds the lock, but all is there
    assert text.startswith("tiny: finished\n")
    assert f"{root}/report.html" in text
    assert "--resume" not in text
    assert "mind the gap" in text
    run.close()
    before = sorted(p.name for p in root.iterdir())
    assert main([str(root), "--json", "--watch"]) == 0, "nothing to wait for"
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["maps"], found["next"]["read"]) == (
        "finished",
        2,
        f"{root}/report.html",
    )
    assert sorted(p.name for p in root.iterdir()) == before


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(__file__, tmp_path / "other" / "file.py")
    for folder in ("other", "none"):
        assert main([str(tmp_path / folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert "not a run folder" in line
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--watch", "0"])
    assert "expected 0.1 to 3600 seconds" in capsys.readouterr().err


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 59.4, 303, 7500)] == ["0 s", "59 s", "5:03 min", "2:05 h"]
