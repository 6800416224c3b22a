"""A whole sweep with its images and outputs in a bucket, over Ray and Tune. A few minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybench.data import Phantom
from raybench.data.phantom import write_phantoms
from raybench.storage import Storage
from raybench.tracking.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
BACKBONE = {
    "name": "test_efficientnet",
    "weights": "none",
    "input_size": 64,
    "batch_size": 8,
    "phases": [{"unfreeze": "full", "epochs": 3, "lr": {"low": 1e-3, "high": 1e-2}}],
}


def start(study: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raybench.sweep", str(study), *more],
        cwd=ROOT,
        # A Ray of its own: workers of one that runs already do not know where the bucket is.
        env=os.environ | {"RAY_ADDRESS": "local"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_a_sweep_in_a_bucket_equals_the_local_one(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    phantoms = Phantom(name="phantom", n_train=6, n_val=3, n_test=3, size=64)
    write_phantoms(phantoms, Storage(f"{s3}/phantoms"))
    write_phantoms(phantoms, Storage(str(tmp_path / "phantoms")))
    study = tmp_path / "sweep.yaml"
    explainers = [{"name": "lime", "n_samples": 60}, {"name": "grad_cam"}, {"name": "whole_lung"}]
    config = {
        "name": "tiny",
        "data": {"name": "covid_qu_ex", "root": str(tmp_path / "phantoms")},
        "backbones": [BACKBONE],
        "search": {"trials_per_backbone": 2, "max_concurrent": 1},
        "explain": {"panels": 1, "explainers": explainers},
    }
    study.write_text(yaml.safe_dump(config))
    said, _ = start(study, "--output", str(tmp_path / "near")).communicate(timeout=400)
    near = RunFolder(str(tmp_path / "near" / "tiny"))
    assert near.is_finished, said[-4000:]

    there = ("--data.root", f"{s3}/phantoms", "--output", f"{s3}/swept")
    far = RunFolder(f"{s3}/swept/tiny")
    process, end = start(study, *there), time.monotonic() + 300
    while not any(e["kind"] == "epoch" and e["trial_id"] == "t0001" for e in far.events.read()):
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    said, _ = start(study, *there, "--resume").communicate(timeout=400)
    assert far.is_finished, said[-4000:]
    epochs = pd.DataFrame([e for e in far.events.read() if e["kind"] == "epoch"])
    assert not epochs.duplicated(["trial_id", "epoch"]).any(), "no epoch is trained twice"
    assert not {"tune", ".lock"} & set(far.storage.names())
    for name in ("trials.csv", "leaderboard.csv", "comparisons.csv"):
        a, b = (folder.read_csv(name) for folder in (near, far))
        assert len(a)
        skip = [c for c in ("seconds",) if c in a]
        pd.testing.assert_frame_equal(a.drop(columns=skip), b.drop(columns=skip), check_exact=True)
