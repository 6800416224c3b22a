"""The race against the peers runs, and every ratio that is claimed comes out of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_small_race_gives_every_ratio(tmp_path: Path) -> None:
    command = "-m benchmarks.peers --models test_efficientnet --samples 40 --peer-samples 20"
    small = "--cams 4 --rounds 2 --batches 4 8 --workers 1"
    files = ["--plot", str(tmp_path / "p.png"), "--json", str(tmp_path / "p.json")]
    run = subprocess.run(
        [sys.executable, *command.split(), *small.split(), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "raybench by lime" in run.stdout
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "p.json").read_text())["models"]["test_efficientnet"]
    for rates in (found["lime"], found["grad_cam"]):
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in rates.values())
    # the peers (3), raybench and bare in two batch sizes by two backends, equal ones once
    assert len(found["lime"]) == 3 + 2 * 3 + 1
    assert len(found["ratios"]) == 8
    assert all(ratio["value"] > 0 for ratio in found["ratios"])
