"""Classifiers that learned labels dealt at random: what their maps share with the real ones' is not
learned from the labels (Adebayo et al. 2018, the data randomisation test).

The best trial of each backbone is trained once more by the same hyperparameters and seed, on
Train's images with Train's labels permuted among them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from raybench.executor import room_for
from raybench.models.checkpoint import ENSEMBLE, card_of
from raybench.studies.cards import card_name, checkpoint_name
from raybench.studies.context import Context, progress_bar
from raybench.studies.train_stage import image_cache
from raybench.training.recipe import Recipe
from raybench.training.step import Arithmetic
from raybench.training.task import Classify
from raybench.training.trial import TrialJob
from raybench.training.tune import TrialResult, search, spent_name
from raybench.types import ChestXray, Dataset, XrayRecord

log = logging.getLogger(__name__)

STAGE = "training_shuffled"
_TUNE = "tune_shuffled"
_TABLE = "trials_shuffled"
_STREAM = 3
"""Of the sweep's seed: no other draw is made from it."""


def shuffled_key(trial_id: str) -> str:
    """The key of the model that was trained on permuted labels with a trial's hyperparameters."""
    return f"{trial_id}_shuffled"


@dataclass(frozen=True)
class Relabelled:
    """A data set whose records come with other labels; pixels and masks stay.

    Attributes:
        truth: the label of each record by split and image id: a data set may read by it.
    """

    inner: Dataset
    truth: Mapping[tuple[str, str], str]

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Dataset`."""
        return self.inner.classes

    @property
    def infection_class(self) -> str:
        """See `Dataset`."""
        return self.inner.infection_class

    def records(self) -> list[XrayRecord]:
        """See `Dataset`: with the labels that they have there."""
        return self.inner.records()

    def load(self, record: XrayRecord) -> ChestXray:
        """See `Dataset`: the X-ray, under the label that the record has here."""
        label = self.truth[record.split, record.image_id]
        return replace(self.inner.load(replace(record, label=label)), record=record)


def permuted(records: Sequence[XrayRecord], seed: int) -> tuple[XrayRecord, ...]:
    """The records with their labels dealt anew: as many of each class, by seed."""
    order = np.random.default_rng([_STREAM, seed]).permutation(len(records))
    return tuple(
        replace(record, label=records[other].label)
        for record, other in zip(records, order, strict=True)
    )


def train_shuffled(context: Context, chosen: Mapping[str, str], resume: bool) -> dict[str, float]:
    """Train what is not trained yet.

    The checkpoint kept is that of the epoch that fits the permuted labels best.

    Args:
        chosen: the best trial of each backbone, and the backbone of each; not the ensemble.

    Returns:
        By trial, the share of Train's permuted labels that the model learned; trials that failed
        are left out, and a `warning` event says why.
    """
    run = context.run
    trials = {t: b for t, b in chosen.items() if t != ENSEMBLE}
    if not context.has_finished(STAGE):
        for name in (_TUNE, spent_name(_TUNE)):
            run.claim(name)
        recipes = {t: _recipe(context, t, b) for t, b in trials.items()}
        n_epochs = sum(recipe.n_epochs for recipe in recipes.values())
        with context.stage(STAGE, trials=len(trials), passes_over_train=n_epochs):
            _keep(context, trials, _search(context, tuple(recipes.values()), n_epochs, resume))
    for name in (_TUNE, spent_name(_TUNE)):
        run.storage.remove(name)
    rows = run.read(_TABLE)
    good = rows[rows.error.isna()]
    return dict(zip(good.trial_id, good.fit.astype(float), strict=True))


def _recipe(context: Context, trial_id: str, backbone: str) -> Recipe:
    """What the trial was trained by, from its card; weights from the sweep, where they are found.

    The card names no folder.
    """
    raw = json.loads(context.run.storage.read(card_name(trial_id)))["recipe"]
    weights = next(r.weights for r in context.config.recipes if r.name == backbone)
    return Recipe.model_validate(raw | {"weights": weights})


def _search(
    context: Context, recipes: tuple[Recipe, ...], n_epochs: int, resume: bool
) -> list[TrialResult]:
    config, train = context.config, context.of("Train")
    labelled = permuted(train, config.seed)
    truth = {(str(r.split), r.image_id): r.label for r in train}
    job = TrialJob(
        dataset=Relabelled(context.dataset, truth),
        train=labelled,
        val=labelled,
        recipes=recipes,
        task=Classify(context.dataset.classes),
        seed=config.seed,
        n_threads=config.training.cpus_per_trial,
        arithmetic=Arithmetic(config.training.precision, config.training.compile),
        cache=image_cache(config, train),
        data_digest=context.data_digest,
    )
    gpus, _ = room_for(config.training.cpus_per_trial, config.training.gpus_per_trial)
    own = {"trials_per_backbone": 1, "hours": None, "gpu_hours": None, "scheduler": "none"}
    settings = config.search.model_copy(update=own)  # the budget is the real ones'
    bar = _Bar(n_epochs)
    try:
        return search(job, settings, gpus, context.run.storage, _TUNE, bar, resume)
    finally:
        bar.close()


def _keep(context: Context, trials: Mapping[str, str], results: Sequence[TrialResult]) -> None:
    """Write the checkpoints, then all rows at once."""
    run, rows = context.run, []
    if len(run.read(_TABLE)):
        return
    by_backbone = {result.recipe.name: result for result in results}
    for trial_id, backbone in trials.items():
        result = by_backbone[backbone]
        row: dict[str, Any] = {"trial_id": trial_id, "n_epochs": result.n_epochs, "fit": np.nan}
        error = result.error
        if result.checkpoint is not None:
            data = run.storage.read(result.checkpoint)
            run.storage.write(checkpoint_name(shuffled_key(trial_id)), data)
            row["fit"] = card_of(data).scores["val_accuracy"]
            error = None
        rows.append(row | {"error": error})
        if error is not None:
            context.warn_once(f"{trial_id} could not be trained on permuted labels: {error}")
    run.append(_TABLE, pd.DataFrame(rows))


class _Bar:
    """Hears of the trials, and moves the bar."""

    def __init__(self, n_epochs: int) -> None:
        self._bar = progress_bar(n_epochs, "training on permuted labels", "epoch")

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        """Nothing to say."""

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        """One more, and how well the labels are learned."""
        self._bar.set_postfix_str(f"{recipe.name}, learned {epoch['val_accuracy']:.0%}")
        self._bar.update(1)

    def trial_ended(self, trial_id: str, recipe: Recipe, failed: bool) -> None:
        """Nothing to say."""

    def budget_spent(self, said: str) -> None:
        """There is none."""

    def close(self) -> None:
        """The bar stays."""
        self._bar.close()
