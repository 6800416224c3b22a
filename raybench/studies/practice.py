"""A very small classifier and an X-ray to try explainers on: no data, no weights, no network."""

from __future__ import annotations

import torch

from raybench.data.phantom import Phantom
from raybench.models.checkpoint import Card
from raybench.studies.context import progress_bar
from raybench.training.batches import load_images
from raybench.training.loop import Trainer
from raybench.training.recipe import Recipe
from raybench.training.task import Classify
from raybench.types import ChestXray

PRACTICE = Recipe.model_validate(
    {
        "name": "test_efficientnet",
        "weights": "none",
        "input_size": 96,
        "batch_size": 16,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "phases": [
            {"unfreeze": "full", "epochs": 9, "lr": 5e-3},
            {"unfreeze": "full", "epochs": 3, "lr": 5e-4},
        ],
    }
)
"""The small classifier's recipe: seconds on one core, and right on 19 phantoms of 20."""


def practice_checkpoint(n_train: int = 50, recipe: Recipe = PRACTICE, seed: int = 0) -> bytes:
    """Train a small classifier on phantoms, with a bar; a checkpoint like a sweep's.

    Args:
        n_train: phantoms of each of the three classes.
        recipe: plain values, random weights.
        seed: of weights, order and augmentation.
    """
    side = recipe.size[0]
    raw = {"name": "phantom", "n_train": n_train, "n_val": 15, "n_test": 1, "size": side}
    data = Phantom.model_validate(raw)
    task = Classify(data.classes)
    records = data.records()
    preprocess = recipe.preprocessing
    train, val = (
        load_images(
            data, [r for r in records if r.split == split], preprocess, recipe.size, task.target
        )
        for split in ("Train", "Val")
    )
    torch.manual_seed(seed)
    card = Card(recipe.name, data.classes, recipe.size, preprocess.model_dump())
    trainer = Trainer(task, task.network(recipe), recipe, card, seed, "cpu")
    with progress_bar(sum(p.epochs for p in recipe.phases), "practice", "epoch") as bar:
        return trainer.fit(train, val, lambda *_: bar.update(1)).best


def practice_xray(number: int = 6, marker: bool = False) -> ChestXray:
    """A COVID-19 phantom that `practice_checkpoint` was not trained on, 256 x 256, with masks.

    Args:
        number: 1 and up, each another patient.
        marker: a glyph in the corner, which no lung reaches.
    """
    raw = {"name": "phantom", "n_test": number, "marker": marker}
    data = Phantom.model_validate(raw)
    ill = [r for r in data.records() if (r.split, r.label) == ("Test", data.infection_class)]
    return data.load(next(r for r in ill if f"_{number}." in r.image_id))
