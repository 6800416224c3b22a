"""Classes of unequal size: weights in the loss, or a sampler that draws all alike."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from raybench.errors import ModelError
from raybench.training.recipe import Recipe


@runtime_checkable
class Weighable(Protocol):
    """A task whose targets are classes, so that they can be balanced."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the outputs."""

    def weighted_loss(
        self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe, weights: torch.Tensor
    ) -> torch.Tensor:
        """The training loss with each image's part multiplied by its class's weight.

        Args:
            weights: float `[k]`, by class.
        """


def check_balance(task: object, recipe: Recipe) -> None:
    """Whether the task has classes to balance, where the recipe asks for it.

    Raises:
        ModelError: it has not.
    """
    if recipe.balance != "none" and not isinstance(task, Weighable):
        raise ModelError(
            f"{recipe.name}: balance: expected none, since the targets are masks and not classes, "
            f"found {recipe.balance}"
        )


def class_weights(targets: torch.Tensor, n_classes: int) -> torch.Tensor:
    """`n / (k * n_c)` for each class: their mean over the images is 1.

    Args:
        targets: class indices int64 `[n]`, at least one of each class that occurs; a class that
            does not occur gets 0, and k counts those that do.

    Returns:
        float32 `[n_classes]`.
    """
    counts = torch.bincount(targets, minlength=n_classes).double()
    present = counts > 0
    weights = len(targets) / (present.sum() * counts.clamp(min=1))
    return torch.where(present, weights, 0.0).float()


def balanced_order(targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many indices as there are images, drawn with replacement, each class as likely.

    Args:
        targets: class indices int64 `[n]`.
    """
    each = class_weights(targets, int(targets.max()) + 1)[targets]
    return torch.multinomial(each, len(targets), replacement=True, generator=generator)
