"""The memory benchmark runs and gives its ratio."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_worker_is_measured_over_few_and_many_images(tmp_path: Path) -> None:
    small = "-m benchmarks.memory --many 4 --few 2 --samples 10"
    files = ["--plot", str(tmp_path / "m.png"), "--json", str(tmp_path / "m.json")]
    run = subprocess.run(
        [sys.executable, *small.split(), *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "m.json").read_text())["models"]["test_efficientnet"]
    assert set(found["mib"]) == {"2 images", "4 images"}
    assert all(peak > 50 for (peak,) in found["mib"].values())
    assert 0.8 < found["ratios"][0]["value"] < 1.3
