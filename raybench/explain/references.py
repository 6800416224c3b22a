"""References: maps made without any model. A localisation figure means something beside theirs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter
from skimage.filters import scharr

from raybench.errors import ExplainError
from raybench.explain.base import Explainer, to_shape
from raybench.explain.regions import on_grid
from raybench.explain.superpixels import AnySuperpixels, Quickshift
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Arrays, AttributionMap, Mask, Subject, Unit, Values


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
    """Where infection tends to be, the same map for every image.

    The mean of Train's infection masks, where Train has any: a pixel's value is the share of these
    images that are infected there. Else, and with `learned` false, a Gaussian about the centre of
    the image. A study says in its event log which it was (`centre_prior`).
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "learned": Choice(choices=(True, False)),
        "sigma": Range(low=0.1, high=1.0, log=True),
    }
    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "sigma": ("learned", (False,))
    }

    name: Literal["centre_prior"] = "centre_prior"
    sigma: float = Field(
        0.25, gt=0, le=2, description="deviation of the Gaussian, as a share of each side"
    )
    learned: bool = Field(
        True, description="the mean infection mask of Train where Train has any; false: a Gaussian"
    )

    @property
    def needs_prior(self) -> bool:
        """Where it may be learned."""
        return self.learned

    def draw(self, subject: Subject) -> Values:
        """The mean infection mask, or a Gaussian, 1 at the centre."""
        if self.learned and subject.prior is not None:
            return to_shape(subject.prior, subject.shape, smooth=True)
        axes = [(np.arange(n) + 0.5) / n - 0.5 for n in subject.shape]
        down, across = (np.exp(-0.5 * (axis / self.sigma) ** 2) for axis in axes)
        return np.outer(down, across).astype(np.float32)


class Intensity(_Reference):
    """The grey level itself, after preprocessing: calls what is bright infected.

    On a lung-masked X-ray it is 0 outside of the lungs. Infection is opaque to X-rays, so this is
    a rule of thumb that a radiologist would know, and no straw man.
    """

    name: Literal["intensity"] = "intensity"

    def draw(self, subject: Subject) -> Values:
        """Grey levels, 0 to 255."""
        return to_shape(subject.image, subject.shape, smooth=True)


class Edges(_Reference):
    """The strength of the image's edges: the magnitude of Scharr's gradient of the smoothed image.

    Maps that only redraw the image's edges say little of the model (Adebayo et al. 2018). The
    outline that lung masking has cut, the strongest edge of all, is left out: there smoothing
    looks at the lungs' own pixels alone, and a pixel that touches the outline has no edge.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "smoothing": Choice(choices=(0.0, 1.0, 2.0, 4.0))
    }

    name: Literal["edges"] = "edges"
    smoothing: float = Field(
        1.0, ge=0, le=50, description="deviation of a Gaussian beforehand, pixels; 0: none"
    )
    outline: bool = Field(False, description="count the outline of masked lungs as an edge")

    def draw(self, subject: Subject) -> Values:
        """The gradient's magnitude, grey levels a pixel over 255."""
        image = subject.image.astype(np.float64) / 255.0
        inside = None if self.outline else _masked_to(subject)
        if self.smoothing:
            image = _smoothed(image, self.smoothing, inside)
        return to_shape(scharr(image, mask=inside), subject.shape, smooth=True)


def _masked_to(subject: Subject) -> Mask | None:
    """The lungs on the image's grid where all outside of them is black; None where it is not."""
    if subject.lung_mask is None:
        return None
    lungs = on_grid(subject.lung_mask, subject.image.shape)
    return None if subject.image[~lungs].any() else lungs


def _smoothed(image: NDArray[np.float64], sigma: float, inside: Mask | None) -> NDArray[np.float64]:
    if inside is None:
        return np.asarray(gaussian_filter(image, sigma))
    share = gaussian_filter(inside.astype(np.float64), sigma)
    # Far from the lungs nothing is left to divide by, and nothing there is looked at.
    return np.asarray(gaussian_filter(image * inside, sigma) / np.maximum(share, 1e-9))


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
