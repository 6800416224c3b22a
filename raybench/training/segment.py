"""Segmentation as a task of the training loop: a U-Net that learns masks that people drew."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from raybench.data.preprocess import Preprocess
from raybench.errors import DataError, ModelError
from raybench.models.backbones import backbone
from raybench.models.checkpoint import Card
from raybench.models.unet import build_unet, check_unet, save_unet, unet_trainable
from raybench.settings import Settings, values_of
from raybench.training.recipe import AugmentDomains, PreprocessDomains, Recipe
from raybench.training.task import Network
from raybench.types import ChestXray

What = Literal["infection", "lungs"]

SUPERVISED = "supervised"
"""What the supervised U-Net is called among the explainers."""

_SMOOTH = 1.0


class Segmentation(Settings):
    """A U-Net that is trained beside the classifiers, and how its settings are searched."""

    recipe: Recipe = Field(
        description="the encoder and how the U-Net is fine-tuned; `head` is its decoder"
    )
    n_trials: int = Field(1, ge=1, description="settings tried; the highest Dice on Val is kept")

    @model_validator(mode="after")
    def _is_for_masks(self) -> Self:
        try:
            check_unet(self.recipe.name)
        except ModelError as error:
            raise ValueError(f"recipe.name: {error}") from error
        if set(values_of(self.recipe.balance)) != {"none"}:
            raise ValueError("recipe.balance: masks have no classes to balance; leave it out")
        for name in ("label_smoothing", "dropout"):
            if any(values_of(getattr(self.recipe, name))):
                raise ValueError(f"recipe.{name}: a U-Net has no such setting; leave it out")
        return self

    def filled(self, preprocess: Preprocess, augment: AugmentDomains) -> Recipe:
        """The recipe, with these where it has no own; of preprocessing only its own is searched."""
        recipe, plain = self.recipe, PreprocessDomains.model_validate(preprocess.model_dump())
        own = {"preprocess": recipe.preprocess or plain, "augment": recipe.augment or augment}
        return recipe.model_copy(update=own)


class LungSegmentation(Segmentation):
    """As `Segmentation`, for the lungs: nothing can be masked to what is to be found."""

    @model_validator(mode="after")
    def _sees_all(self) -> Self:
        own: Any = self.recipe.preprocess
        if own is not None and True in values_of(own.lung_masking):
            raise ValueError(
                "recipe.preprocess.lung_masking: expected false, found true: the lungs are what "
                "this U-Net is to find"
            )
        return self

    def filled(self, preprocess: Preprocess, augment: AugmentDomains) -> Recipe:
        """The recipe, with these where it has no own; nothing of the image is blacked out."""
        whole = {"lung_masking": False, "erase_border": 0.0}
        return super().filled(preprocess.model_copy(update=whole), augment)


@dataclass(frozen=True)
class Segment:
    """Masks by cross-entropy and Dice; the score is the mean Dice of an image at 0.5."""

    what: What

    @property
    def score(self) -> str:
        """See `Task`."""
        return "dice"

    def network(self, recipe: Recipe) -> Network:
        """A U-Net over the recipe's encoder.

        Raises:
            ModelError: its weights cannot be had.
        """
        net = build_unet(recipe.name, recipe.weights)
        facts = backbone(recipe.name)
        return Network(net, facts.mean, facts.std, partial(unet_trainable, net, facts))

    def target(self, xray: ChestXray) -> torch.Tensor:
        """The mask, uint8 `[H, W]`.

        Raises:
            DataError: the image has none.
        """
        mask = xray.infection_mask if self.what == "infection" else xray.lung_mask
        if mask is None:
            raise DataError(f"{xray.record.image_id}: expected a mask of its {self.what}, has none")
        return torch.from_numpy(mask.astype("uint8"))

    def loss(
        self, outputs: torch.Tensor, targets: torch.Tensor, recipe: Recipe | None
    ) -> torch.Tensor:
        """Mean over images of binary cross-entropy (nats, mean over pixels) plus 1 - soft Dice.

        Soft Dice of probabilities p and mask t: (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), after
        Milletari et al., V-Net, 3DV 2016, the sums unsquared; the ones give an empty mask a slope.

        Args:
            outputs: logits `[N, 1, H, W]`.
            targets: 0 or 1, `[N, H, W]`.
        """
        logits, wanted = outputs[:, 0], targets.to(outputs.dtype)
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted)
        p = torch.sigmoid(logits)
        both = (p * wanted).sum(dim=(1, 2))
        total = p.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2))
        return entropy + (1 - (2 * both + _SMOOTH) / (total + _SMOOTH)).mean()

    def hits(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Dice of each image at probability 0.5, `[N]`; 1 where both masks are empty."""
        marked, wanted = outputs[:, 0] > 0, targets > 0
        both = (marked & wanted).sum(dim=(1, 2)).double()
        total = marked.sum(dim=(1, 2)) + wanted.sum(dim=(1, 2))
        return torch.where(total > 0, 2 * both / total.clamp(min=1), torch.ones_like(both))

    def checkpoint(self, net: nn.Module, card: Card) -> bytes:
        """See `Task`."""
        return save_unet(net, card, self.what)
