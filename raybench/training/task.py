"""What a network learns: where its loop gets targets, a loss and a score from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from raybench.models.backbones import backbone, trainable
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.training.recipe import Recipe
from raybench.types import ChestXray


@dataclass(frozen=True)
class Network:
    """A network to be trained, and what has to be known of it.

    Attributes:
        net: takes normalised float `[N, 3, H, W]`.
        mean, std: normalisation of RGB in [0, 1] that its weights were made with.
        trains: from a phase's `unfreeze` to the names of the parameters that it trains.
    """

    net: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trains: Callable[[str | int], Sequence[str]]


class Task(Protocol):
    """One kind of training: the loop is the same for all, this is what differs.

    Instances are pickled to the workers, and their `repr` names what targets they make: decoded
    ones are kept under it (a frozen dataclass does both). One whose targets are classes that can be
    balanced is a `Weighable` too.
    """

    @property
    def score(self) -> str:
        """What the score is called, as in `val_accuracy`; it lies in [0, 1], higher is better."""

    def network(self, recipe: Recipe) -> Network:
        """A network to begin with, drawn from torch's seed where its weights are random."""

    def target(self, xray: ChestXray) -> int | torch.Tensor:
        """What the network is to say of an image: a class, or uint8 `[H, W]` (0 or 1)."""

    def loss(
        self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe | None
    ) -> torch.Tensor:
        """The mean loss of a batch: as the recipe has it, or the plain one for None (on Val)."""

    def hits(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The score of each image of a batch, `[N]`; their mean is the score."""

    def checkpoint(self, net: nn.Module, card: Card) -> bytes:
        """The network as one file."""


@dataclass(frozen=True)
class Classify:
    """Classes by cross-entropy; the score is accuracy."""

    classes: tuple[str, ...]

    @property
    def score(self) -> str:
        """See `Task`."""
        return "accuracy"

    def network(self, recipe: Recipe) -> Network:
        """A timm backbone with a fresh head.

        Raises:
            ModelError: its weights cannot be had.
        """
        net = build(recipe.name, len(self.classes), recipe.weights, float(recipe.dropout))
        facts = backbone(recipe.name)
        return Network(net, facts.mean, facts.std, partial(trainable, net, facts))

    def target(self, xray: ChestXray) -> int:
        """See `Task`."""
        return self.classes.index(xray.record.label)

    def loss(
        self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe | None
    ) -> torch.Tensor:
        """Mean cross-entropy in nats, with the recipe's label smoothing."""
        smoothing = float(recipe.label_smoothing) if recipe is not None else 0.0
        return functional.cross_entropy(outputs, targets, label_smoothing=smoothing)

    def weighted_loss(
        self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe, weights: torch.Tensor
    ) -> torch.Tensor:
        """See `Weighable`: a sum over the batch by its images, and not by their weights."""
        smoothing = float(recipe.label_smoothing)
        each = functional.cross_entropy(
            outputs, targets, label_smoothing=smoothing, reduction="none"
        )
        return (each * weights[targets]).mean()

    def hits(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """1 where the class of the highest logit is the right one, else 0."""
        return (outputs.argmax(1) == targets).float()

    def checkpoint(self, net: nn.Module, card: Card) -> bytes:
        """See `Task`."""
        return save_checkpoint(net, card)
