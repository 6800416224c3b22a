"""The GPU's benchmark, kept alive on a CPU. About 20 seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)


def test_it_measures_engine_and_bare_passes_of_the_same_number(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    small = ("--model", "test_resnet", "--samples", "64", "--images", "2", "--threads", "1")
    done = run(*small, "--device", "cpu", "--json", str(path))
    assert done.returncode == 0, done.stderr
    for word in ("batch size 16", "ratio", "waiting", "GiB", "583 images x 4 backbones x 1,000"):
        assert word in done.stdout
    found = json.loads(path.read_text())
    assert (found["model"], found["precision"], found["n_images"]) == ("test_resnet", "bfloat16", 2)
    assert len(found["images"]) == 2
    assert found["n_forward"] == sum(image["n_forward"] for image in found["images"]) <= 128
    assert found["n_forward"] > 64
    engine, bare = (sum(image[k] for image in found["images"]) for k in ("engine", "bare"))
    assert found["ratio"] == pytest.approx(bare / engine)
    assert found["engine_per_second"] == pytest.approx(found["n_forward"] / engine)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = run("--device", "cuda")
    assert done.returncode == 2
    assert "torch sees no CUDA device here; choose --device cpu" in done.stderr


def test_models_and_explainers_need_neither_ray_nor_mlflow() -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None; "
        "import raybench.data, raybench.models.classifier, raybench.models.predict, "
        "raybench.explain; print('fine')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "fine", done.stderr
