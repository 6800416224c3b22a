"""Training U-Nets beside the classifiers: the same loop and search, a folder of their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raybench.errors import RaybenchError
from raybench.executor import room_for
from raybench.models.checkpoint import read_parts
from raybench.models.unet import KIND, Segmenter
from raybench.studies.cards import checkpoint_name, write_card
from raybench.studies.context import Context
from raybench.studies.train_stage import Listener, image_cache, trial_of, unet_title
from raybench.training.recipe import Recipe
from raybench.training.segment import Segment
from raybench.training.space import hyperparameters
from raybench.training.step import Arithmetic
from raybench.training.trial import TrialJob
from raybench.training.tune import TrialResult, search, spent_name
from raybench.types import XrayRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unet:
    """A U-Net that was trained: the best of its trials, by Dice on Val alone."""

    task: str
    trial_id: str
    backbone: str
    val_dice: float

    def load(self, context: Context, device: str) -> Segmenter:
        """Its network.

        Raises:
            RaybenchError: its checkpoint cannot be read.
        """
        name = checkpoint_name(self.task)
        return Segmenter(context.run.storage.read(name), device, context.run.storage.path(name))


@dataclass(frozen=True)
class UnetJob:
    """What a U-Net is trained on, and how.

    Attributes:
        task: `supervised` or `lungs`: names its stage, its trials and its files.
        recipe: values or domains, with preprocessing and augmentation filled in.
    """

    task: str
    segment: Segment
    recipe: Recipe
    n_trials: int
    train: Sequence[XrayRecord]
    val: Sequence[XrayRecord]


def train_unet(context: Context, job: UnetJob, resume: bool) -> Unet:
    """Train all trials, or read what an earlier call of this sweep trained; keep the best.

    Raises:
        RaybenchError: not one trial left a checkpoint.
    """
    run, stage = context.run, f"training_{job.task}"
    folder = f"tune_{job.task}"
    if not context.has_finished(stage):
        run.claim(folder)
        run.claim(spent_name(folder))
        with context.stage(stage, train=len(job.train), val=len(job.val)):
            _keep(context, job, _search(context, job, folder, resume))
    run.storage.remove(folder)
    run.storage.remove(spent_name(folder))
    trials = run.read(f"trials_{job.task}")
    run.write_csv(f"trials_{job.task}.csv", trials)
    best = trials[trials.best].iloc[0]
    return Unet(job.task, str(best.trial_id), str(best.backbone), float(best.val_dice))


def _search(context: Context, job: UnetJob, folder: str, resume: bool) -> list[TrialResult]:
    config = context.config
    trials = TrialJob(
        dataset=context.dataset,
        train=tuple(job.train),
        val=tuple(job.val),
        recipes=(job.recipe,),
        task=job.segment,
        seed=config.seed,
        n_threads=config.training.cpus_per_trial,
        arithmetic=Arithmetic(config.training.precision, config.training.compile),
        cache=image_cache(config, (*job.train, *job.val)),
        data_digest=context.data_digest,
    )
    gpus, _ = room_for(config.training.cpus_per_trial, config.training.gpus_per_trial)
    n_epochs = job.n_trials * job.recipe.n_epochs
    own = {"trials_per_backbone": job.n_trials, "hours": None, "gpu_hours": None}
    settings = config.search.model_copy(update=own)  # the budget is the classifiers'
    listener = Listener(context, n_epochs, len(job.train), job.task, job.segment.score)
    try:
        return search(trials, settings, gpus, context.run.storage, folder, listener, resume)
    finally:
        listener.close()


def _keep(context: Context, job: UnetJob, results: list[TrialResult]) -> None:
    """Write the best checkpoint and its card, then all rows at once."""
    run, table = context.run, f"trials_{job.task}"
    if len(run.read(table)):
        return
    rows = [_row(context, job, result) for result in results]
    scored = [i for i, row in enumerate(rows) if row["val_dice"] is not None]
    if not scored:
        reasons = sorted({str(result.error) for result in results})
        raise RaybenchError(f"{job.task}: no U-Net could be trained: {'; '.join(reasons)}")
    best = max(scored, key=lambda i: (rows[i]["val_dice"], -i))
    checkpoint = results[best].checkpoint
    assert checkpoint is not None
    data = run.storage.read(checkpoint)
    run.storage.write(checkpoint_name(job.task), data)
    write_card(context, rows[best]["trial_id"], data, results[best].recipe, job.task)
    for index, row in enumerate(rows):
        row["best"] = index == best
        if row["error"]:
            log.warning("trial %s failed: %s", row["trial_id"], row["error"])
            failed = {"trial_id": row["trial_id"], "status": "failed", "error": row["error"]}
            run.events.append("trial_finished", **failed)
    run.append(table, pd.DataFrame(rows))


def _row(context: Context, job: UnetJob, result: TrialResult) -> dict[str, Any]:
    scores: dict[str, float] = {}
    if result.checkpoint is not None:
        data = context.run.storage.read(result.checkpoint)
        scores = read_parts(data, result.checkpoint, KIND)[0].scores
    return {
        "trial_id": trial_of(job.task, result.trial_id),
        "backbone": unet_title(result.recipe),
        "status": result.status,
        "best": False,
        "n_epochs": result.n_epochs,
        "error": result.error,
        "val_dice": scores.get("val_dice"),
        "val_loss": scores.get("val_loss"),
        **hyperparameters(result.recipe),
    }
