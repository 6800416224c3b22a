"""A whole quickstart sweep while a random worker is killed every 30 seconds. About ten minutes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from raybench.tracking.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
EVERY = float(os.environ.get("RAYBENCH_SOAK_SECONDS", "30"))


def start(output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raybench.sweep", "sweeps/quickstart.yaml"]
    return subprocess.Popen(
        [*command, "--output", str(output), "--search.max_concurrent", "1"],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def workers_of(driver: int) -> list[int]:
    """Processes of this driver's Ray that train or explain: actors, by the title Ray gives them."""
    parents, titles = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            titles[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
            parents[int(path.name)] = int(fields[1])
        except OSError:
            continue

    def ours(pid: int) -> bool:
        while pid in parents:
            if pid == driver:
                return True
            pid = parents[pid]
        return False

    kinds = ("ray::_Worker", "ray::ImplicitFunc", "ray::_trial")
    return [pid for pid, title in titles.items() if title.startswith(kinds) and ours(pid)]


@pytest.mark.slow
def test_a_sweep_whose_workers_are_killed_all_along_ends_with_the_same_figures(
    tmp_path: Path,
) -> None:
    calm = start(tmp_path / "calm")
    assert calm.wait(900) == 0
    rough, killed = start(tmp_path / "rough"), 0
    rng, last, end = random.Random(0), time.monotonic(), time.monotonic() + 1800
    while rough.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.2)
        if time.monotonic() - last > EVERY and (found := workers_of(rough.pid)):
            os.kill(rng.choice(found), signal.SIGKILL)
            killed, last = killed + 1, time.monotonic()
    assert rough.returncode == 0
    assert killed >= 2, "it was too short to say anything"
    one, other = (RunFolder(str(tmp_path / n / "quickstart")) for n in ("calm", "rough"))
    epochs = pd.DataFrame([e for e in other.events.read() if e["kind"] == "epoch"])
    n_twice = int(epochs.duplicated(["trial_id", "epoch"]).sum())
    print(f"{killed} workers killed, {len(epochs)} epochs, {n_twice} reported twice")
    assert n_twice <= killed
    for name in ("trials.csv", "comparisons.csv", "strata.csv"):
        a, b = (run.read_csv(name) for run in (one, other))
        assert len(a)
        pd.testing.assert_frame_equal(a, b, check_exact=True, obj=name)
    a, b = (run.read_parquet("scores.parquet").drop(columns="seconds") for run in (one, other))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
