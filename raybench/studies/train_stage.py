"""Training: every trial, through Ray Tune, into checkpoints and rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from raybench.config import SweepConfig
from raybench.errors import ConfigError, RaybenchError
from raybench.executor import room_for
from raybench.studies.cards import checkpoint_name, write_card
from raybench.studies.context import Context, progress_bar
from raybench.studies.goal import LocalisationJudge
from raybench.training.cache import ImageCache
from raybench.training.recipe import Recipe
from raybench.training.space import hyperparameters
from raybench.training.step import Arithmetic
from raybench.training.task import Classify
from raybench.training.trial import SECOND, Judge, TrialJob
from raybench.training.tune import TrialResult, search, spent_name

log = logging.getLogger(__name__)

_TUNE = "tune"
"""Where Ray Tune keeps its state, in the run folder, while trials run."""


def trial_of(task: str, trial_id: str) -> str:
    """The id of a U-Net's trial: `supervised_t0001`."""
    return f"{task}_{trial_id}"


def unet_title(recipe: Recipe) -> str:
    """What stands for a U-Net where a classifier's backbone would."""
    return f"unet-{recipe.name}"


class Listener:
    """Writes what Tune says into the event log, and moves the bar.

    Args:
        n_epochs: of all trials together.
        n_images: that an epoch looks at.
        task: what is trained, where it is not the classifiers: trials are told apart by it.
        score: the task's, as in `val_accuracy`.
    """

    def __init__(
        self,
        context: Context,
        n_epochs: int,
        n_images: int,
        task: str = "",
        score: str = "accuracy",
    ) -> None:
        self._events = context.run.events
        self._task, self._score, self._n_images = task, score, n_images
        self._seen: dict[str, int] = {}
        self._last: dict[str, Mapping[str, Any]] = {}
        for event in self._events.read():  # of before an interruption
            if event["kind"] == "epoch" and event.get("task", "") == task:
                self._last[str(event["trial_id"])] = event
                self._count(str(event["trial_id"]), int(event["epoch"]) + 1)
        self._bar = progress_bar(n_epochs, " ".join(["training", task]).strip(), "epoch")
        self._bar.initial = self._bar.n = sum(self._seen.values())

    def _whose(self, trial_id: str, recipe: Recipe) -> dict[str, Any]:
        """What names a trial in an event."""
        if not self._task:
            return {"trial_id": trial_id, "backbone": recipe.name}
        named = {"trial_id": trial_of(self._task, trial_id), "backbone": unet_title(recipe)}
        return named | {"task": self._task}

    def _count(self, trial_id: str, n_epochs: int) -> int:
        """Epochs of the trial that are new."""
        before = self._seen.get(trial_id, 0)
        self._seen[trial_id] = max(before, n_epochs)
        return self._seen[trial_id] - before

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        self._events.append(
            "trial_started",
            **self._whose(trial_id, recipe),
            hyperparameters=hyperparameters(recipe),
        )

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        whose = self._whose(trial_id, recipe)
        trial_id = whose["trial_id"]
        last = self._last.get(trial_id, {})
        if all(last.get(name) == value for name, value in epoch.items()):
            return  # a trial that goes on says once more where it stood
        if "micro_batch" in epoch and "micro_batch" not in last:
            self._events.append(
                "warning",
                message=f"{trial_id} {recipe.name}: memory was out with batches of "
                f"{recipe.batch_size}; it goes on in passes of {epoch['micro_batch']} images, "
                "whose gradients are added up",
            )
        self._last[trial_id] = epoch
        self._events.append("epoch", **whose, **epoch)
        self._bar.set_postfix_str(
            f"{trial_id} {recipe.name}, Val {self._score} {epoch[f'val_{self._score}']:.3f}, "
            f"{self._n_images / max(epoch['seconds'], 1e-9):,.0f} images/s"
        )
        self._bar.update(self._count(trial_id, int(epoch["epoch"]) + 1))

    def trial_ended(self, trial_id: str, recipe: Recipe, failed: bool) -> None:
        trial_id = self._whose(trial_id, recipe)["trial_id"]
        done = self._seen.get(trial_id, 0) >= recipe.n_epochs
        status = "failed" if failed else "finished" if done else "stopped"
        self._events.append("trial_finished", trial_id=trial_id, status=status, error=None)
        self._bar.update(self._count(trial_id, recipe.n_epochs))

    def budget_spent(self, said: str) -> None:
        message = f"{said}: no further trial begins, those under way end with their epoch"
        log.warning("%s", message)
        known = (e["message"] for e in self._events.read() if e["kind"] == "warning")
        if message not in known:
            self._events.append("warning", message=message)
        self._bar.set_description_str("training (budget used up)")

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
        _tidy(context)  # a kill may have come between the end and this
        return run.read("trials")
    for name in _names():
        run.claim(name)
    goal = config.search.localisation
    job = TrialJob(
        dataset=context.dataset,
        train=context.of("Train"),
        val=context.of("Val"),
        recipes=config.recipes,
        task=Classify(context.dataset.classes),
        seed=config.seed,
        n_threads=config.training.cpus_per_trial,
        arithmetic=Arithmetic(config.training.precision, config.training.compile),
        cache=image_cache(config),
        data_digest=context.data_digest,
        judge=None if goal is None else LocalisationJudge.of(context, goal),
    )
    gpus = gpus_of_trials(config)
    per_backbone = sum(recipe.n_epochs for recipe in config.backbones)
    n_epochs = per_backbone * config.search.trials_per_backbone
    listener = Listener(context, n_epochs, len(job.train))
    with context.stage("training", epochs=n_epochs):
        try:
            results = search(job, config.search, gpus, run.storage, _TUNE, listener, resume)
        finally:
            listener.close()
        if all(result.checkpoint is None for result in results):
            reasons = sorted({str(result.error) for result in results})
            raise RaybenchError(f"no trial could be trained: {'; '.join(reasons)}")
        _keep(context, [_judged(context, job.judge, result) for result in results])
    _tidy(context)
    return run.read("trials")


def image_cache(config: SweepConfig) -> ImageCache | None:
    """Where decoded images are kept; None: nowhere.

    Not where lung masks are predicted: what a cached image was masked with has no name then.
    """
    if config.lungs is not None:
        return None
    limit = int(config.training.cache_gb * 1e9)
    return ImageCache(Path(config.image_cache), limit) if limit else None


def gpus_of_trials(config: SweepConfig) -> float:
    """GPUs that each trial holds.

    Raises:
        ConfigError: there is a budget of GPU hours, and trials hold none.
        ExecutionError: no node has room for a trial.
    """
    gpus, _ = room_for(config.training.cpus_per_trial, config.training.gpus_per_trial)
    if config.search.gpu_hours is not None and not gpus:
        raise ConfigError(
            [
                "search.gpu_hours: expected trials that hold GPUs, and here they hold none; name "
                "search.hours, or set training.gpus_per_trial where there is a GPU"
            ]
        )
    return gpus


def _names() -> tuple[str, str]:
    return _TUNE, spent_name(_TUNE)


def _tidy(context: Context) -> None:
    for name in _names():
        context.run.storage.remove(name)


def _judged(context: Context, judge: Judge | None, result: TrialResult) -> TrialResult:
    """A trial that the budget stopped is judged after all, here, so that it counts for the choice.

    One that failed is not: it is known by its accuracy alone.
    """
    if judge is None or result.status == "failed" or result.checkpoint is None:
        return result
    if result.localisation is not None:
        return result
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        said = judge(context.run.storage.read(result.checkpoint), result.recipe, device)
    except RaybenchError as error:
        context.run.events.append(
            "warning", message=f"trial {result.trial_id} could not be judged: {error}"
        )
        return result
    return replace(result, localisation=said)


def _keep(context: Context, results: list[TrialResult]) -> None:
    """Copy the checkpoints into the run folder with their cards, then write all rows at once."""
    run, rows = context.run, []
    if len(run.read("trials")):
        return
    for result in results:
        if result.checkpoint is not None:
            data = run.storage.read(result.checkpoint)
            run.storage.write(checkpoint_name(result.trial_id), data)
            write_card(context, result.trial_id, data, result.recipe)
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
        if context.config.search.localisation is not None:
            row[SECOND] = math.nan if result.localisation is None else result.localisation
        rows.append(row | hyperparameters(result.recipe))
        if result.error:  # why it failed; that it did, its own end has said
            run.events.append(
                "trial_finished", trial_id=result.trial_id, status="failed", error=result.error
            )
    run.append("trials", pd.DataFrame(rows))
