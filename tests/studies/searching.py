"""A small search over explainers' settings, and a pool that counts what reaches it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from raybench.config import SweepConfig
from raybench.executor.jobs import Answer, Task
from raybench.executor.local import LocalPool
from raybench.studies.context import Context, Winners, explained_images
from raybench.studies.search_stage import search
from raybench.tracking.run_folder import RunFolder
from raybench.types import Unit

SIZES = {"t0": (64, 64)}
LIME = {
    "n_samples": {"choices": [20, 33, 50]},
    "surrogate.kernel_width": {"low": 0.05, "high": 5.0, "log": True},
    "surrogate.alpha": {"low": 0.001, "high": 100, "log": True},
    "clip_to_lungs": {"choices": [False, True]},
    "median_filter": {"choices": [0, 5]},
    "threshold_rule": {"choices": ["val", "fixed"]},
    "threshold": {"low": 0.05, "high": 0.95},
}
FINE = {"kernel_size": 1.0, "max_dist": 10.0}
CONFIG: dict[str, Any] = {
    "name": "search",
    "data": {"name": "phantom", "n_train": 1, "n_val": 3, "n_test": 2, "size": 96},
    "backbones": [
        {"name": "test_resnet", "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]}
    ],
    "explain": {
        "explainers": [
            {"name": "lime", "n_samples": 50, "chunk": 16, "superpixels": FINE},
            {"name": "grad_cam"},
            {"name": "centre_prior"},
        ]
    },
    "explainer_search": {"n_trials": 13, "explainers": {"lime": LIME}},
}


class Counted(LocalPool):
    """Counts the units and forward passes that reach it, Grad-CAM's apart."""

    def __init__(self, checkpoint: bytes, store: Path | None = None) -> None:
        super().__init__(lambda key: checkpoint, 1, store=None if store is None else str(store))
        self.n_units = self.n_forward = 0

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        self.n_units += 1
        super().submit(ticket, task, unit, model)

    def next(self) -> Answer:
        unit = self._queue[0][2]
        answer = super().next()
        self.n_forward += answer.n_forward if unit.question else 0
        return answer


class Dying(Counted):
    """Ends after so many units, as a killed sweep would."""

    def __init__(self, checkpoint: bytes, after: int) -> None:
        super().__init__(checkpoint)
        self._left = after

    def next(self) -> Answer:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return super().next()


def context_at(folder: Path) -> Context:
    config = SweepConfig.model_validate(CONFIG)
    records = tuple(config.data.records())
    explained = explained_images(records, config.data.infection_class, {"Val": None, "Test": None})
    return Context(config, RunFolder(str(folder)), config.data, records, explained)


def search_at(folder: Path, pool: Counted) -> tuple[pd.DataFrame, Winners]:
    context = context_at(folder)
    found = search(context, pool, SIZES, {"t0": "test_resnet"})
    return context.run.read_csv("explainer_search.csv").drop(columns="seconds"), found
