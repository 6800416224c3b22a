"""Superpixels: the regions that LIME switches off. A new kind is one class and one line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from skimage.filters import sobel
from skimage.segmentation import felzenszwalb, quickshift, slic, watershed

from raybench.answers import digest
from raybench.explain.regions import Superpixels, on_grid
from raybench.settings import Choice, Range, named
from raybench.types import Gray, Question, Subject, Unit

_BY_NUMBER: Mapping[str, Range | Choice] = {
    **Superpixels.search_space,
    "n_segments": Choice(choices=(30, 50, 100)),
}
"""What is searched of kinds that are told how many superpixels to make."""


class Quickshift(Superpixels):
    """Quickshift (Vedaldi and Soatto 2008), with lime's defaults."""

    # Few values: with every other one the model is asked anew.
    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **Superpixels.search_space,
        "kernel_size": Choice(choices=(3.0, 4.0, 6.0)),
        "ratio": Choice(choices=(0.2, 0.5)),
    }

    name: Literal["quickshift"] = "quickshift"
    kernel_size: float = Field(4.0, gt=0, description="width of the Gaussian, pixels")
    max_dist: float = Field(200.0, gt=0, description="longest link, in the joint space")
    ratio: float = Field(0.2, ge=0, le=1, description="colour against place")

    def cut(self, image: Gray) -> NDArray[np.integer]:
        """Trees of pixels, each linked to a denser one nearby; a region need not be connected.

        The image is made RGB first, as lime does. Ties are broken by scikit-image's default seed:
        lime's own `random_seed` never reaches quickshift in the versions of today.
        """
        found = quickshift(
            _rgb(image), kernel_size=self.kernel_size, max_dist=self.max_dist, ratio=self.ratio
        )
        return np.asarray(found)


class Slic(Superpixels):
    """SLIC (Achanta et al. 2012): k-means in lightness and place from a grid of seeds."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = _BY_NUMBER

    name: Literal["slic"] = "slic"
    n_segments: int = Field(50, ge=1, le=10_000, description="superpixels, about")
    compactness: float = Field(10.0, gt=0, description="place against lightness (0 to 100)")
    sigma: float = Field(0.0, ge=0, description="of a Gaussian beforehand, pixels; 0: none")

    def cut(self, image: Gray) -> NDArray[np.integer]:
        """Clusters, connected by their sides; a constant image is cut by place alone."""
        found = slic(
            _rgb(image),
            n_segments=self.n_segments,
            compactness=self.compactness,
            sigma=self.sigma,
            start_label=0,
        )
        return np.asarray(found)


class Felzenszwalb(Superpixels):
    """Felzenszwalb and Huttenlocher 2004: a forest on the pixels, cut where contrast is high."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **Superpixels.search_space,
        "scale": Choice(choices=(30.0, 100.0, 300.0)),
    }

    name: Literal["felzenszwalb"] = "felzenszwalb"
    scale: float = Field(100.0, gt=0, description="the higher, the larger the regions")
    sigma: float = Field(0.8, ge=0, description="of a Gaussian beforehand, pixels; 0: none")
    min_size: int = Field(50, ge=1, description="pixels of a region, at least")

    def cut(self, image: Gray) -> NDArray[np.integer]:
        """Trees; a region is connected by the sides or corners of its pixels."""
        found = felzenszwalb(
            image, scale=self.scale, sigma=self.sigma, min_size=self.min_size, channel_axis=None
        )
        return np.asarray(found)


class CompactWatershed(Superpixels):
    """Compact watershed (Neubert and Protzel 2014) of the Sobel gradient, from a grid of seeds."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = _BY_NUMBER

    name: Literal["watershed"] = "watershed"
    n_segments: int = Field(50, ge=1, le=10_000, description="superpixels, about")
    compactness: float = Field(
        0.001, ge=0, description="place (pixels from the seed) against gradient (0 to 1)"
    )

    def cut(self, image: Gray) -> NDArray[np.integer]:
        """Basins, connected by their sides."""
        seeds = min(self.n_segments, image.size)
        found = watershed(sobel(image), markers=seeds, compactness=self.compactness)
        return np.asarray(found)


class Grid(Superpixels):
    """Rectangles of equal size, to within a pixel: what superpixels look like without an image."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **Superpixels.search_space,
        "cells": Choice(choices=(6, 8, 12)),
    }

    name: Literal["grid"] = "grid"
    cells: int = Field(8, ge=1, le=100, description="along each side")

    def cut(self, image: Gray) -> NDArray[np.integer]:
        """Cells in reading order; as many as there are pixels along a side, at most."""
        down, across = (np.arange(n) * min(self.cells, n) // n for n in image.shape)
        return np.asarray(down[:, None] * self.cells + across[None, :])


if TYPE_CHECKING:
    AnySuperpixels = Quickshift | Slic | Felzenszwalb | CompactWatershed | Grid
else:
    AnySuperpixels = named(
        Quickshift | Slic | Felzenszwalb | CompactWatershed | Grid, default="quickshift"
    )
"""What a setting `superpixels` parses into: a name, or keys and values."""


def superpixels_unit(superpixels: Superpixels, subject: Subject) -> Unit:
    """The unit `superpixels` of an image, whose answer `labels` is worth keeping.

    It carries the lung mask, on the image's grid, only where the superpixels are confined to it.
    """
    payload: dict[str, Any] = {"image": subject.image}
    told: list[str | np.ndarray] = [superpixels.identity, subject.image]
    if superpixels.confine and subject.lung_mask is not None:
        payload["lungs"] = on_grid(subject.lung_mask, subject.image.shape)
        told.append(payload["lungs"])
    question = Question(digest("superpixels", *told), 0, len(subject.image))
    return Unit("superpixels", payload, needs_model=False, question=question)


def _rgb(image: Gray) -> Gray:
    return np.repeat(image[:, :, None], 3, axis=2)
