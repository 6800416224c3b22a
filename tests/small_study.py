"""One small sweep for all tests that need a finished one: its data, its file, how it is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
EXPLAINERS = ["lime", "grad_cam", "whole_lung", "centre_prior", "random_superpixels"]


def write_study(folder: Path) -> Path:
    """A small data set on disk with one image that does not open, and a sweep file for it."""
    from raybench.data import Phantom
    from raybench.data.phantom import write_phantoms
    from raybench.storage import Storage

    phantoms = Phantom(name="phantom", n_train=8, n_val=3, n_test=4, size=96)
    write_phantoms(phantoms, Storage(str(folder / "data")))
    broken = next((folder / "data").rglob("Train/Normal/images/*.png"))
    broken.write_bytes(b"not a picture")
    recipe = {
        "weights": "none",
        "input_size": 64,
        "batch_size": 8,
        "phases": [
            {"unfreeze": "full", "epochs": 3, "lr": {"low": 1e-3, "high": 1e-2, "log": True}}
        ],
    }
    config = {
        "name": "tiny",
        "on_bad_image": "skip",
        "data": {"name": "covid_qu_ex", "root": str(folder / "data")},
        "preprocess": {
            "clahe": {"choices": [False, True]},
            "erase_border": {"low": 0.0, "high": 0.1},
        },
        "backbones": [{"name": n, **recipe} for n in ("test_efficientnet", "test_resnet")],
        "search": {"trials_per_backbone": 2, "max_concurrent": 1},
        "explain": {
            "n_val": 2,
            "n_test": 3,
            "panels": 2,
            "explainers": [
                {"name": "lime", "n_samples": 120, "chunk": 30},
                *({"name": name} for name in EXPLAINERS[1:]),
            ],
        },
        "explainer_search": {
            "n_trials": 2,
            "sampler": "random",
            "explainers": {"lime": {"surrogate.kernel_width": {"low": 0.1, "high": 1.0}}},
        },
        "faithfulness": {"n_images": 2, "steps": 3, "road_steps": 2},
        "sanity": {"n_images": 2, "depths": ["head", "full"], "draws": 1},
        "stability": {"n_images": 2, "n_seeds": 1, "n_noise": 1},
        "execution": {"workers": 1},
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(study: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """The sweep in a process of its own, in the test session's Ray."""
    import ray

    # Joins the Ray of the test session, as it would join a cluster.
    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_AUTH_MODE": "token",
    }
    command = [sys.executable, "-m", "raybench.sweep", str(study), "--output", str(output), *more]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for it; what it said."""
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]
    return said
