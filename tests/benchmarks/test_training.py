"""The training benchmark, kept alive on a small network. About 2 seconds."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import training


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_it_compares_the_loop_with_the_bare_step(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "training.json"
    small = ["--models", "test_resnet", "--size", "48", "--batch-size", "4", "--rounds", "3"]
    how = ["--device", "cpu", "--threads", "1", "--precision", precision, "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["training", *small, *how])
    training.main()
    assert "the loop's time by the bare step's" in capsys.readouterr().out
    found = json.loads(path.read_text())["models"]["test_resnet, threads: 1"]
    (ratio,) = found["ratios"]
    pairs = zip(found["rates"]["bare step"], found["rates"]["raybench's loop"], strict=True)
    assert ratio["value"] == pytest.approx(statistics.median(a / b for a, b in pairs))
    assert ratio["high"] == 1.1
