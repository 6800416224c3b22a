"""Keeps benchmarks.frugality and benchmarks.settings_for_free alive, on phantoms, in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from raybench.data import Phantom
from raybench.data.phantom import write_phantoms
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.storage import Storage

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_frugality_holds_every_design_against_the_reference(tmp_path: Path) -> None:
    phantoms = Phantom(name="phantom", n_train=1, n_val=1, n_test=2, size=96)
    write_phantoms(phantoms, Storage(str(tmp_path / "data")))
    torch.manual_seed(0)
    card = Card("test_efficientnet", ("COVID-19", "Non-COVID", "Normal"), (64, 64))
    (tmp_path / "net.safetensors").write_bytes(save_checkpoint(build(card.backbone, 3), card))
    command = ["benchmarks.frugality", "--data", str(tmp_path / "data"), "--images", "1"]
    command += ["--checkpoint", str(tmp_path / "net.safetensors"), "--draws", "1", "--workers", "1"]
    command += ["--reference", "1500", "--store", str(tmp_path / "store")]
    said = run(*command, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"))
    assert "completed" in said
    rows = json.loads((tmp_path / "a.json").read_text())
    assert {r["design"] for r in rows} >= {"independent", "paired", "orthogonal", "completed"}
    assert all(0 <= r["iou"] <= 1 and r["passes"] <= 1000 for r in rows)
    most = {r["design"]: r for r in rows if r["n_samples"] >= 512}
    assert most["completed"]["rmse"] < 0.5
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_settings_are_fitted_without_a_forward_pass(tmp_path: Path) -> None:
    command = ["benchmarks.settings_for_free", "--model", "test_efficientnet", "--images", "1"]
    run(*command, "--samples", "120", "--json", str(tmp_path / "b.json"))
    ratios = json.loads((tmp_path / "b.json").read_text())["models"]["test_efficientnet"]["ratios"]
    (passes,) = (r for r in ratios if r["name"] == "forward passes of the settings")
    assert passes["value"] == 0
    assert passes["met"] == "yes"
