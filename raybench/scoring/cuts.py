"""How a rule's choice and a map become a salient mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.scoring.binarise import binarise, oriented
from raybench.scoring.thresholds import Shares, area_threshold, otsu
from raybench.scoring.top_regions import rank_levels, threshold_of
from raybench.types import Mask, Sign, Values


@dataclass(frozen=True, slots=True)
class TopK:
    """So many superpixels are salient: 1 to `top_regions.MOST`."""

    k: int


Cut = float | Shares | TopK | None
"""What a rule learned: a threshold, what Val's infection covers, a number of superpixels, or None
where it looks at each map alone (`otsu`)."""


@dataclass(frozen=True, slots=True)
class Place:
    """What of an image a cut may look at; never its infection.

    Attributes:
        lungs: bool `[H, W]`, or None where they are not known.
        regions: superpixels `[h, w]`, or None where no rule ranks them.
    """

    lungs: Mask | None
    regions: NDArray[np.integer] | None = None


@dataclass(frozen=True, slots=True)
class Cutter:
    """The settings of an explainer that belong to its masks, as `binarise` takes them."""

    sign: Sign
    clip_to_lungs: bool
    median: int
    stretch: bool

    def cut(self, values: Values, cut: Cut, place: Place) -> tuple[float, Mask]:
        """The number that a map is cut by, and its salient mask.

        Args:
            values: attribution map as it was made, `[H, W]`.

        Returns:
            The threshold (k for `TopK`), and bool `[H, W]`.

        Raises:
            ValueError: the map is not finite, or superpixels are ranked and there are none.
        """
        looked_at = oriented(values, self.sign)
        clip = place.lungs if self.clip_to_lungs else None
        if isinstance(cut, TopK):
            ranked = self.ranked(values, place)
            salient = binarise(ranked, threshold_of(cut.k), clip, self.median, stretch=False)
            return float(cut.k), salient
        if cut is None:
            cut = otsu(looked_at, self.stretch)
        elif isinstance(cut, Shares):
            lungs = place.lungs
            cut = area_threshold(looked_at, cut, lungs, self.clip_to_lungs, self.stretch)
        return cut, binarise(looked_at, cut, clip, self.median, self.stretch)

    def ranked(self, values: Values, place: Place) -> Values:
        """A map's superpixels by rank: see `top_regions.rank_levels`.

        Raises:
            ValueError: the map is not finite, or there are no superpixels.
        """
        if place.regions is None:
            raise ValueError("expected the image's superpixels to rank, but got none")
        clip = place.lungs if self.clip_to_lungs else None
        return rank_levels(oriented(values, self.sign), place.regions, clip)


def of_every_image(cut: Cut) -> float:
    """The number that every image is cut by; NaN where each has its own."""
    if isinstance(cut, TopK):
        return float(cut.k)
    return cut if isinstance(cut, float) else math.nan


def digits_of(rule: str) -> int:
    """Digits behind the point that a rule's threshold is shown with: k is a whole number."""
    return 0 if rule == "top_k" else 2


def known(rule: str, threshold: float) -> Cut:
    """What cuts a map once more as a row of scores says that it was cut."""
    return TopK(round(threshold)) if rule == "top_k" else threshold
