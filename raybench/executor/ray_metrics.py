"""Units of work as Ray metrics, which Ray exports to Prometheus under `ray_raybench_...`.

- `raybench_units_finished_total` and `raybench_unit_seconds`, by `kind` (the explainer or task) and
  `outcome` (`done`, `failed`)
- `raybench_forward_passes_total`, by `kind`: passes made, not those known from before
"""

from __future__ import annotations

import re
from typing import Any

from ray.util.metrics import Counter, Histogram

from raybench.executor.jobs import Answer

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]


class UnitMetrics:
    """What the driver counts of the units that ended. Needs a Ray that runs."""

    def __init__(self) -> None:
        both = ("kind", "outcome")
        self._units = Counter(
            "raybench_units_finished_total", "units of work that ended", tag_keys=both
        )
        self._seconds = Histogram(
            "raybench_unit_seconds", "seconds of a unit at its worker", _SECONDS, tag_keys=both
        )
        self._passes = Counter(
            "raybench_forward_passes_total", "forward passes made", tag_keys=("kind",)
        )

    def ended(self, task: Any, answer: Answer) -> None:
        """Count one unit."""
        kind = kind_of(task)
        tags = {"kind": kind, "outcome": "done" if answer.error is None else "failed"}
        self._units.inc(1, tags)
        if answer.seconds > 0:
            self._seconds.observe(answer.seconds, tags)
        if answer.n_forward > 0:
            self._passes.inc(answer.n_forward, {"kind": kind})


def kind_of(task: Any) -> str:
    """The explainer's name (`grad_cam`), or the task's class (`predict`)."""
    name = getattr(task, "name", None)
    if isinstance(name, str) and name:
        return name
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(task).__name__).strip("_").lower()
