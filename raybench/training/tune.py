"""Ray Tune and Optuna around the training loop: the only module of this room that knows Ray."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import optuna
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from raybench.models.checkpoint import Card
from raybench.training.cache import ImageCache, cached_images
from raybench.training.loop import Trainer
from raybench.training.recipe import Recipe, Search
from raybench.training.space import SearchSpace, resolve
from raybench.training.state import BEST, Epoch, State, newest
from raybench.training.step import PLAIN, Arithmetic
from raybench.training.task import Task
from raybench.types import Dataset, XrayRecord

log = logging.getLogger(__name__)

SCORE = "best_val_score"
"""What Optuna and ASHA maximise: the highest score of the task on Val so far."""


@dataclass(frozen=True)
class TrialJob:
    """What every trial of a sweep gets; pickled to its worker.

    Attributes:
        cache: where decoded images are kept; None: nowhere.
        data_digest: stands for the data set's pixels there.
    """

    dataset: Dataset
    train: tuple[XrayRecord, ...]
    val: tuple[XrayRecord, ...]
    recipes: tuple[Recipe, ...]
    task: Task
    seed: int
    n_threads: int
    arithmetic: Arithmetic = PLAIN
    cache: ImageCache | None = None
    data_digest: str = ""


@dataclass(frozen=True)
class TrialResult:
    """One finished trial.

    Attributes:
        status: `finished`, `stopped` (by the scheduler) or `failed`.
        checkpoint: the file of its best checkpoint, or None where it failed before one.
    """

    trial_id: str
    recipe: Recipe
    status: str
    n_epochs: int
    error: str | None
    checkpoint: Path | None


class TrialListener(Protocol):
    """What the driver hears of the trials while they run."""

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        """A trial begins, or goes on after an interruption."""

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        """A trial finished an epoch; named as `Epoch.figures` has it.

        Where memory was out, `micro_batch` is the number of images of each pass since.
        """

    def trial_ended(self, trial_id: str, recipe: Recipe, failed: bool) -> None:
        """A trial is done: trained, stopped by the scheduler, or failed."""


def trial_name(drawn: Mapping[str, Any]) -> str:
    """`t0003` for Optuna's trial number 3: the same after a resume and in every rerun."""
    return f"t{int(drawn['trial_number']):04d}"


def train_one(
    job: TrialJob,
    recipe: Recipe,
    report: Callable[[Epoch, State], None],
    state: State | None = None,
    device: str = "cpu",
) -> State:
    """Train one resolved recipe in this process. Same recipe and seed, same figures.

    Raises:
        DivergedError: the loss became NaN or infinite.
        ModelError: the weights cannot be had.
    """
    torch.set_num_threads(job.n_threads)
    torch.manual_seed(job.seed)
    network = job.task.network(recipe)
    card = Card(
        backbone=recipe.name,
        classes=job.dataset.classes,
        input_size=recipe.size,
        preprocess=recipe.preprocessing.model_dump(),
    )
    trainer = Trainer(job.task, network, recipe, card, job.seed, device, job.arithmetic)
    train, val = (
        cached_images(job.cache, job.data_digest, job.dataset, records, recipe, job.task)
        for records in (job.train, job.val)
    )
    return trainer.fit(train, val, report, state)


def _trial(drawn: dict[str, Any], job: TrialJob, folder: Path) -> None:
    def report(epoch: Epoch, state: State) -> None:
        with tempfile.TemporaryDirectory() as at:
            state.write(Path(at))
            figures = epoch.figures() | {
                SCORE: state.best_score,
                "best_val_loss": state.best_loss,
                "n_epochs": state.next_epoch,
            }
            if state.passes.get("micro_batch") is not None:
                figures["micro_batch"] = state.passes["micro_batch"]
            tune.report(figures, checkpoint=tune.Checkpoint.from_directory(at))

    recipe = resolve(job.recipes, drawn)
    state = newest(folder / trial_name(drawn), recipe)
    if state is not None:
        report(state.epoch, state)  # Tune may not have heard of it before the interruption
        if state.next_epoch >= recipe.n_epochs:
            return
    device = "cuda" if ray.get_gpu_ids() else "cpu"
    train_one(job, recipe, report, state, device)


_listener: TrialListener | None = None
"""Who hears of the trials of this process. Tune pickles its callbacks and, after a restore, calls
the unpickled one; a listener holds files and cannot travel that way."""


class _Relay(tune.Callback):  # type: ignore[misc]
    """Passes Tune's events on. An exception in a Tune callback would abort every trial."""

    def __init__(self, recipes: tuple[Recipe, ...], score: str) -> None:
        self._recipes, self._score = recipes, score

    def _tell(self, call: Callable[[TrialListener], None]) -> None:
        if _listener is None:
            return
        try:
            call(_listener)
        except Exception:
            log.exception("an event of a trial could not be recorded")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        recipe = resolve(self._recipes, trial.config)
        self._tell(lambda to: to.trial_started(trial_name(trial.config), recipe))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        recipe = resolve(self._recipes, trial.config)
        names = [*Epoch.names(self._score), "micro_batch"]
        epoch = {name: result[name] for name in names if name in result}
        name = trial_name(trial.config)
        self._tell(lambda to: to.epoch_finished(name, recipe, epoch))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        recipe = resolve(self._recipes, trial.config)
        self._tell(lambda to: to.trial_ended(trial_name(trial.config), recipe, failed=False))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        recipe = resolve(self._recipes, trial.config)
        self._tell(lambda to: to.trial_ended(trial_name(trial.config), recipe, failed=True))


class AshaPerBackbone(FIFOScheduler):  # type: ignore[misc]
    """ASHA (Li et al. 2020) among the trials of each backbone alone.

    One ASHA over all of them would hold a slow starter against a fast one, and stop every trial of
    a backbone after the first rung; each is to get the same chances.
    """

    def __init__(self, recipes: tuple[Recipe, ...], grace_epochs: int) -> None:
        super().__init__()
        self._asha = {
            r.name: ASHAScheduler(
                time_attr="n_epochs",
                metric=SCORE,
                mode="max",
                max_t=r.n_epochs,
                grace_period=min(grace_epochs, r.n_epochs),
                reduction_factor=3,
            )
            for r in recipes
        }

    def _of(self, trial: Any) -> ASHAScheduler:
        return self._asha[trial.config["backbone"]]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)


def search(
    job: TrialJob,
    settings: Search,
    gpus: float,
    folder: Path,
    listener: TrialListener,
    resume: bool,
) -> list[TrialResult]:
    """Run all trials, or go on with those that an interrupted driver left in `folder`.

    Args:
        gpus: GPUs of each trial; the caller made sure that one fits.
        folder: where Tune keeps its state and the trials' checkpoints; local.
        resume: restore what is in the folder. Finished trials are kept as they are, others go on
            from their last epoch, and the Optuna study continues.

    Returns:
        One result a trial, in the order in which Optuna proposed them.
    """
    # By default the driver's state is saved so rarely that young trials would begin again.
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed stands in the results
    resources = {"cpu": float(job.n_threads), "gpu": gpus}
    trainable = tune.with_resources(tune.with_parameters(_trial, job=job, folder=folder), resources)
    global _listener
    _listener = listener
    if resume and tune.Tuner.can_restore(str(folder)):
        tuner = tune.Tuner.restore(
            str(folder), trainable=trainable, resume_unfinished=True, resume_errored=True
        )
        if len(tuner.get_results()) == 0:
            log.warning("Tune's record of the trials could not be read: they are trained anew")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        tuner = _new_tuner(trainable, job, settings, folder)
    return sorted((_result(job, r) for r in tuner.fit()), key=lambda r: r.trial_id)


def _new_tuner(trainable: Any, job: TrialJob, settings: Search, folder: Path) -> tune.Tuner:
    space = SearchSpace(job.recipes)
    points = space.first_points(settings.trials_per_backbone)
    with warnings.catch_warnings():
        # `group` is called experimental; conditional spaces are the case it was made for.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=job.seed, n_startup_trials=settings.n_startup, multivariate=True, group=True
        )
    searcher = OptunaSearch(
        space, metric=SCORE, mode="max", points_to_evaluate=points, sampler=sampler
    )
    scheduler = None
    if settings.scheduler == "asha":
        scheduler = AshaPerBackbone(job.recipes, settings.grace_epochs)
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=len(points),
            search_alg=searcher,
            scheduler=scheduler,
            max_concurrent_trials=settings.max_concurrent,
            reuse_actors=True,  # a fresh process costs as much as a short trial
            trial_name_creator=lambda trial: trial_name(trial.config),
            trial_dirname_creator=lambda trial: trial_name(trial.config),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            verbose=0,
            callbacks=[_Relay(job.recipes, job.task.score)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


def _result(job: TrialJob, result: Any) -> TrialResult:
    recipe = resolve(job.recipes, result.config)
    figures = result.metrics or {}
    n_epochs = int(figures.get("n_epochs", 0))
    error = None
    if result.error is not None:
        error = next((s for s in reversed(str(result.error).splitlines()) if s.strip()), "unknown")
    checkpoint = None if result.checkpoint is None else Path(result.checkpoint.path) / BEST
    status = "finished" if n_epochs >= recipe.n_epochs else "stopped"
    return TrialResult(
        trial_id=trial_name(result.config),
        recipe=recipe,
        status="failed" if error else status,
        n_epochs=n_epochs,
        error=error.strip() if error else None,
        checkpoint=checkpoint,
    )
