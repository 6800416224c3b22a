"""One trial: what it is given, and training it in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from raybench.models.checkpoint import Card
from raybench.training.cache import ImageCache, cached_images
from raybench.training.loop import Trainer
from raybench.training.recipe import Recipe
from raybench.training.state import Epoch, State
from raybench.training.step import PLAIN, Arithmetic
from raybench.training.task import Task
from raybench.types import Dataset, XrayRecord

Judge = Callable[[bytes, Recipe, str], float]
"""From a finished trial's checkpoint, its recipe and a device to a figure; higher is better."""

SECOND = "val_localisation"
"""What the judge said of a finished trial; NaN until then, and where there is no judge."""


@dataclass(frozen=True)
class TrialJob:
    """What every trial of a sweep gets; pickled to its worker.

    Attributes:
        cache: where decoded images are kept; None: nowhere.
        data_digest: stands for the data set's pixels there.
        judge: asked once a trial, at its end; None: its score is all there is.
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
    judge: Judge | None = None


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
