"""Training: every trial, through Ray Tune, into checkpoints and rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from raybench.errors import RaybenchError
from raybench.studies.context import Context, progress_bar
from raybench.training.recipe import Recipe
from raybench.training.space import hyperparameters
from raybench.training.tune import TrialJob, TrialResult, search

log = logging.getLogger(__name__)


class _Listener:
    """Writes what Tune says into the event log, and moves the bar."""

    def __init__(self, context: Context) -> None:
        self._events = context.run.events
        config = context.config
        per_backbone = sum(recipe.n_epochs for recipe in config.backbones)
        self._bar = progress_bar(
            per_backbone * config.search.trials_per_backbone, "training", "epoch"
        )
        self._seen: dict[str, int] = {}

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        self._events.append(
            "trial_started",
            trial_id=trial_id,
            backbone=recipe.name,
            hyperparameters=hyperparameters(recipe),
        )

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        self._events.append("epoch", trial_id=trial_id, backbone=recipe.name, **epoch)
        before = self._seen.get(trial_id, 0)
        self._seen[trial_id] = max(before, int(epoch["epoch"]) + 1)
        self._bar.update(self._seen[trial_id] - before)
        self._bar.set_postfix_str(f"{trial_id} {recipe.name} val {epoch['val_accuracy']:.3f}")

    def trial_ended(self, trial_id: str) -> None:
        """The rows are written from Tune's results, when all trials are done."""

    def close(self) -> None:
        self._bar.close()


def train(context: Context, resume: bool) -> pd.DataFrame:
    """Train all trials, or read what an earlier call of this sweep trained.

    Returns:
        A row a trial: trial_id, backbone, status, n_epochs, error, and its hyperparameters.

    Raises:
        RaybenchError: not one trial left a checkpoint.
    """
    config, run = context.config, context.run
    if context.has_finished("training"):
        run.storage.remove("tune")  # a kill may have come between the end and this
        return run.read("trials")
    run.claim("tune")
    job = TrialJob(
        dataset=context.dataset,
        train=context.of("Train"),
        val=context.of("Val"),
        preprocess=config.preprocess,
        recipes=config.backbones,
        augment=config.training.augment,
        seed=config.seed,
        n_threads=config.training.cpus_per_trial,
    )
    listener = _Listener(context)
    with context.stage("training"):
        try:
            folder = Path(run.path) / "tune"
            results = search(job, config.search, config.training, folder, listener, resume)
        finally:
            listener.close()
        if all(result.checkpoint is None for result in results):
            reasons = sorted({str(result.error) for result in results})
            raise RaybenchError(f"no trial could be trained: {'; '.join(reasons)}")
        _keep(context, results)
    run.storage.remove("tune")
    return run.read("trials")


def _keep(context: Context, results: list[TrialResult]) -> None:
    """Copy the checkpoints into the run folder, then write all rows at once."""
    run, rows = context.run, []
    if len(run.read("trials")):
        return
    for result in results:
        if result.checkpoint is not None:
            name = f"checkpoints/{result.trial_id}.safetensors"
            run.storage.write(name, result.checkpoint.read_bytes())
        if result.error:
            log.warning("trial %s failed: %s", result.trial_id, result.error)
        row: dict[str, Any] = {
            "trial_id": result.trial_id,
            "backbone": result.recipe.name,
            "status": result.status,
            "n_epochs": result.n_epochs,
            "has_checkpoint": result.checkpoint is not None,
            "error": result.error,
        }
        rows.append(row | hyperparameters(result.recipe))
        run.events.append(
            "trial_finished", trial_id=result.trial_id, status=result.status, error=result.error
        )
    run.append("trials", pd.DataFrame(rows))
