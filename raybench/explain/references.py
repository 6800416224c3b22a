"""References: maps made without any model. A localisation figure means something beside theirs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from raybench.errors import ExplainError
from raybench.explain.base import Explainer, to_shape
from raybench.explain.superpixels import AnySuperpixels, Quickshift
from raybench.models.classifier import Classifier
from raybench.types import Arrays, AttributionMap, Subject, Unit, Values


class _Reference(Explainer):
    """No model, so no forward passes, and the same map for every trial."""

    uses_model: ClassVar[bool] = False

    def n_forward_planned(self) -> int:
        """None."""
        return 0

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """One cheap unit, done away from the model."""
        if done:
            return []
        return [Unit("map", {"subject": subject}, needs_model=False)]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Draw the map."""
        return {"map": self.draw(unit.payload["subject"])}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The map as it is."""
        return AttributionMap(values=done["map"]["map"], target=None, n_forward=0)

    def draw(self, subject: Subject) -> Values:
        """The map, float32 `[H, W]`."""
        raise NotImplementedError


class WholeLung(_Reference):
    """1 inside the lungs and 0 outside: calls every pixel of the lungs infected."""

    name: Literal["whole_lung"] = "whole_lung"

    @property
    def needs_lungs(self) -> bool:
        """Always: they are the map."""
        return True

    def draw(self, subject: Subject) -> Values:
        """The lung mask.

        Raises:
            ExplainError: the image has none.
        """
        if subject.lung_mask is None:
            raise ExplainError(f"{subject.image_id}: whole_lung needs a lung mask, there is none")
        return subject.lung_mask.astype(np.float32)


class CentrePrior(_Reference):
    """A Gaussian about the centre of the image: where attention falls before anything is seen."""

    name: Literal["centre_prior"] = "centre_prior"
    sigma: float = Field(0.25, gt=0, le=2, description="deviation, as a share of each side")

    def draw(self, subject: Subject) -> Values:
        """The Gaussian, 1 at the centre."""
        axes = [(np.arange(n) + 0.5) / n - 0.5 for n in subject.shape]
        down, across = (np.exp(-0.5 * (axis / self.sigma) ** 2) for axis in axes)
        return np.outer(down, across).astype(np.float32)


class RandomSuperpixels(_Reference):
    """Superpixels of the image itself, weights drawn uniformly from [0, 1].

    LIME's own superpixels only where it works at the image's resolution too.
    """

    name: Literal["random_superpixels"] = "random_superpixels"
    seed: int = Field(0, ge=0, description="of the weights, together with the image's name")
    superpixels: AnySuperpixels = Field(Quickshift(), description="the regions")

    @property
    def needs_lungs(self) -> bool:
        """Whether the superpixels are confined, or the mask is clipped."""
        return super().needs_lungs or self.superpixels.confine

    def draw(self, subject: Subject) -> Values:
        """The superpixels of the image itself, painted at random."""
        labels = self.superpixels.segment(subject.image, subject.lung_mask)
        rng = np.random.default_rng([self.seed, zlib.crc32(subject.image_id.encode())])
        weights = rng.random(int(labels.max()) + 1)
        return to_shape(weights[labels], subject.shape, smooth=False)
