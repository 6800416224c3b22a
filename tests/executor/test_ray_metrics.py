"""What the driver counts of units, with a fake in place of the Ray that would export it."""

from __future__ import annotations

from typing import Any

import pytest

from raybench.executor import ray_metrics
from raybench.executor.jobs import Answer
from raybench.explain import GradCam


class _Kept:
    """A metric that keeps what it is told."""

    told: list[tuple[str, float, dict[str, str]]]

    def __init__(self, name: str, *_: Any, tag_keys: tuple[str, ...]) -> None:
        self.name, self.keys = name, set(tag_keys)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == self.keys, "Ray refuses others"
        self.told.append((self.name, value, tags))

    observe = inc


class PredictAll:
    """A task without a name."""


def test_units_are_counted_by_kind_and_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    _Kept.told = []
    monkeypatch.setattr(ray_metrics, "Counter", _Kept)
    monkeypatch.setattr(ray_metrics, "Histogram", _Kept)
    metrics = ray_metrics.UnitMetrics()
    metrics.ended(GradCam(), Answer(0, {}, None, 0.5, 3))
    metrics.ended(PredictAll(), Answer(1, None, "too dark", 0.0, 0))
    done = {"kind": "grad_cam", "outcome": "done"}
    assert _Kept.told == [
        ("raybench_units_finished_total", 1, done),
        ("raybench_unit_seconds", 0.5, done),
        ("raybench_forward_passes_total", 3, {"kind": "grad_cam"}),
        ("raybench_units_finished_total", 1, {"kind": "predict_all", "outcome": "failed"}),
    ]


def test_ray_takes_the_names() -> None:
    metrics = ray_metrics.UnitMetrics()  # Ray checks names and tags as they are made
    assert metrics._units.info["name"] == "raybench_units_finished_total"
    assert metrics._units.info["tag_keys"] == ("kind", "outcome")
