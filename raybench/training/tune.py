"""Ray Tune and Optuna around the training loop."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import optuna
import ray
from ray import tune

from raybench.errors import StorageError
from raybench.storage import Storage
from raybench.training.budget import Budget, was_over
from raybench.training.loop import DivergedError
from raybench.training.recipe import Recipe
from raybench.training.relay import (
    GAVE_UP,
    N_LEFT,
    Relay,
    SpentStopper,
    TrialListener,
    listening,
    trial_name,
)
from raybench.training.schedulers import PerBackbone
from raybench.training.searcher import new_searcher
from raybench.training.settings import Search
from raybench.training.space import SearchSpace, resolve
from raybench.training.state import BEST, Epoch, State, any_epoch, newest
from raybench.training.trial import SECOND, TrialJob, train_one
from raybench.training.tune_record import drop, drop_if_torn

log = logging.getLogger(__name__)

SCORE = "best_val_score"
"""What Optuna and the schedulers maximise: the highest score of the task on Val so far."""


_DEATHS = 8
"""Workers that a trial may lose (a node taken away, memory out): it goes on from its last epoch."""

_MAY_PASS = (OSError, StorageError, MemoryError)
"""Errors that another try can be without; any other one would only come again."""


@dataclass(frozen=True)
class TrialResult:
    """One finished trial.

    Attributes:
        status: `finished`, `stopped` (by the scheduler, or as the budget was used up) or `failed`.
        localisation: what the judge said of it; None where none was asked.
        checkpoint: the file of its best checkpoint, as a name below the search's files; None where
            it ended before one.
    """

    trial_id: str
    recipe: Recipe
    status: str
    n_epochs: int
    error: str | None
    checkpoint: str | None
    localisation: float | None = None


def _trial(drawn: dict[str, Any], job: TrialJob, files: Storage, folder: str) -> None:
    recipe = resolve(job.recipes, drawn)
    own = f"{folder}/{trial_name(drawn)}"

    def report(epoch: Epoch, state: State, second: float = math.nan) -> None:
        with tempfile.TemporaryDirectory() as at:
            state.write(Path(at))
            figures = epoch.figures() | {
                SCORE: state.best_score,
                SECOND: second,
                "best_val_loss": state.best_loss,
                "n_epochs": state.next_epoch,
                N_LEFT: recipe.n_epochs - state.next_epoch,
            }
            if state.passes.get("micro_batch") is not None:
                figures["micro_batch"] = state.passes["micro_batch"]
            tune.report(figures, checkpoint=tune.Checkpoint.from_directory(at))

    state = newest(files, own, recipe)
    if state is not None:
        report(state.epoch, state)  # Tune may not have heard of it before the interruption
    elif was_over(files, spent_name(folder)):  # proposed, or killed in its first epoch, before
        tune.report(_no_epoch(0) | {N_LEFT: recipe.n_epochs})
        return
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    if state is None or state.next_epoch < recipe.n_epochs:
        try:
            state = train_one(job, recipe, report, state, device)
        except _MAY_PASS:
            raise
        except Exception as error:
            # Raised, it would be taken for a worker's death, and the same epochs trained again.
            trained = newest(files, own, recipe)
            n_epochs = 0 if trained is None else trained.next_epoch
            diverged = isinstance(error, DivergedError)
            why = str(error) if diverged else f"{type(error).__name__}: {error}"
            tune.report(_no_epoch(n_epochs) | {GAVE_UP: why, N_LEFT: 0})
            return
    if job.judge is not None:
        report(state.epoch, state, job.judge(state.best, recipe, device))


def _no_epoch(n_epochs: int) -> dict[str, Any]:
    """What is reported where nothing was trained: Tune wants every metric each time."""
    return {SCORE: math.nan, SECOND: math.nan, "n_epochs": n_epochs}


def search(
    job: TrialJob,
    settings: Search,
    gpus: float,
    files: Storage,
    folder: str,
    listener: TrialListener,
    resume: bool,
) -> list[TrialResult]:
    """Run all trials, or go on with those that an interrupted driver left in `folder`.

    Args:
        gpus: GPUs of each trial; the caller made sure that one fits.
        files: of the run folder, local or in a bucket; every worker can write to it.
        folder: below them, where Tune keeps its state and the trials' checkpoints.
        resume: restore what is in the folder. Finished trials are kept as they are, others go on
            from their last epoch, and the Optuna study continues.

    Returns:
        One result a trial, in the order in which Optuna proposed them.
    """
    # By default the driver's state is saved so rarely that young trials would begin again.
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Its own handler swallows Ctrl-C, hands out half a search, and stays behind when it is over.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed stands in the results
    if not resume:
        files.remove(spent_name(folder))
    given = tune.with_parameters(_trial, job=job, files=files, folder=folder)
    trainable = tune.with_resources(given, {"cpu": float(job.n_threads), "gpu": gpus})
    tuner = _restored(trainable, files, folder) if resume else None
    if tuner is None:
        if resume:  # trials go on from their own states
            drop(files, folder)
        else:
            files.remove(folder)
        tuner = _new_tuner(trainable, job, settings, files, folder)
    begun, name = any_epoch(files, folder), spent_name(folder)
    budget = Budget(settings.hours, settings.gpu_hours, gpus, files, name, begun=begun)
    with listening(listener, budget):
        grid = tuner.fit()
    return sorted((_result(job, folder, r) for r in grid), key=lambda r: r.trial_id)


def spent_name(folder: str) -> str:
    """Name of the file beside Tune's folder that holds what is spent of the budget."""
    return f"{folder}_spent.json"


def _restored(trainable: Any, files: Storage, folder: str) -> tune.Tuner | None:
    """The search that an interrupted driver left; None where it had not begun."""
    drop_if_torn(files, folder)
    system, path = files.arrow(folder)
    if not tune.Tuner.can_restore(path, storage_filesystem=system):
        return None
    tuner = tune.Tuner.restore(
        path,
        trainable=trainable,
        resume_unfinished=True,
        resume_errored=True,
        storage_filesystem=system,
    )
    try:
        n_known = len(tuner.get_results())
    except RuntimeError:  # killed between Tune's first file and its first note of a trial
        return None
    if n_known == 0:
        log.warning("Tune's record of the trials could not be read: they are trained anew")
    return tuner


def _new_tuner(
    trainable: Any, job: TrialJob, settings: Search, files: Storage, folder: str
) -> tune.Tuner:
    system, path = files.arrow()
    space = SearchSpace(job.recipes)
    points = space.first_points(settings.trials_per_backbone)
    metrics = [SCORE] if job.judge is None else [SCORE, SECOND]
    scheduler = None
    if settings.scheduler != "none":
        n_brackets = 1 if settings.scheduler == "asha" else None
        scheduler = PerBackbone(job.recipes, SCORE, settings.grace_epochs, n_brackets)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=len(points),
            search_alg=new_searcher(space, metrics, points, job.seed, settings.n_startup),
            scheduler=scheduler,
            max_concurrent_trials=settings.max_concurrent,
            reuse_actors=True,  # a fresh process costs as much as a short trial
            trial_name_creator=lambda trial: trial_name(trial.config),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=tune.RunConfig(
            name=folder,
            storage_path=path,
            storage_filesystem=system,
            verbose=0,
            callbacks=[Relay(job.recipes, job.task.score)],
            stop=SpentStopper(),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            failure_config=tune.FailureConfig(max_failures=_DEATHS),
        ),
    )


def _result(job: TrialJob, folder: str, result: Any) -> TrialResult:
    recipe = resolve(job.recipes, result.config)
    figures = result.metrics or {}
    n_epochs = int(figures.get("n_epochs", 0))
    second = float(figures.get(SECOND, math.nan))
    error: str | None = figures.get(GAVE_UP)
    if result.error is not None:
        error = next((s for s in reversed(str(result.error).splitlines()) if s.strip()), "unknown")
    checkpoint = None
    if result.checkpoint is not None:
        # Tune adds to a trial's name where a kill left a folder of that name behind.
        own, kept = PurePosixPath(result.checkpoint.path).parts[-2:]
        checkpoint = f"{folder}/{own}/{kept}/{BEST}"
    status = "finished" if n_epochs >= recipe.n_epochs else "stopped"
    return TrialResult(
        trial_id=trial_name(result.config),
        recipe=recipe,
        status="failed" if error else status,
        n_epochs=n_epochs,
        error=error.strip() if error else None,
        checkpoint=checkpoint,
        localisation=None if math.isnan(second) else second,
    )
