"""The rules by which an attribution map is cut into a salient mask.

No rule sees Test: `val`, `area` and `top_k` learn one number from Val, `fixed` is set beforehand,
and `otsu` looks at nothing but the map that it cuts. `cuts` applies them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from raybench.scoring.binarise import scaled
from raybench.scoring.overlap import check_masks
from raybench.scoring.severity import severity
from raybench.types import Mask, Values

ThresholdRule = Literal["fixed", "val", "otsu", "area", "top_k"]

RULES: tuple[ThresholdRule, ...] = get_args(ThresholdRule)

OF_EACH_IMAGE: tuple[ThresholdRule, ...] = ("otsu", "area")
"""Rules whose threshold differs from image to image."""


def otsu(values: Values, stretch: bool = True) -> float:
    """Otsu's threshold: the cut with the largest variance between the two sides.

    Every distinct value is tried, without bins (scikit-image's `threshold_otsu` gives the centre of
    one of 256, which can cut a map of few values through its lower side). A constant map has
    nothing to part: its own value, above which nothing lies.

    Args:
        values: attribution map, `[H, W]`, any scale and sign.
        stretch: as in `binarise`; the threshold is on the scale that this leaves.

    Returns:
        The largest value of the lower side, 0 to 1; of equally good cuts the lowest.

    Source: Otsu, IEEE Trans. SMC 9 (1979).

    Raises:
        ValueError: the map is not finite, or not `[H, W]`.
    """
    levels = np.sort(scaled(values, stretch), axis=None)
    ends = np.flatnonzero(levels[1:] != levels[:-1])
    if not ends.size:
        return float(levels[0])
    sums = np.cumsum(levels, dtype=np.float64)
    n_low = ends + 1.0
    n_high = levels.size - n_low
    apart = (sums[-1] - sums[ends]) / n_high - sums[ends] / n_low
    between = n_low * n_high * apart**2
    return float(levels[ends[int(between.argmax())]])


@dataclass(frozen=True, slots=True)
class Shares:
    """How much infection covers on Val, the mean over its images.

    Attributes:
        of_lungs: of the lungs, over images with lung masks; NaN where there are none.
        of_image: of the whole image, over all.
    """

    of_lungs: float
    of_image: float

    @classmethod
    def of(cls, truths: Iterable[tuple[Mask, Mask | None]]) -> Shares:
        """Those of Val's images: infection masks and lung masks, bool `[H, W]`; never of Test.

        Raises:
            ValueError: there are no images, or not two bool masks of one shape.
        """
        pairs = list(truths)
        if not pairs:
            raise ValueError("expected at least one Val image to take shares from, but got none")
        known = [s for s in (severity(*pair) for pair in pairs) if not math.isnan(s)]
        of_lungs = float(np.mean(known)) if known else math.nan
        return cls(of_lungs, float(np.mean([infection.mean() for infection, _ in pairs])))


def area_threshold(
    values: Values, shares: Shares, lungs: Mask | None, clip: bool, stretch: bool = True
) -> float:
    """The threshold above which as much lies as infection covers on Val.

    Wanted are `shares.of_lungs` times the image's lung pixels; without lungs, here or on Val,
    `shares.of_image` times its pixels; one pixel at least. The highest are taken of those that can
    be salient at all (within the lungs where the map is clipped to them). Pixels of one value stay
    together, so a map of few values marks more than is wanted: the whole lung stays whole. The
    map's lowest value is never salient, however many pixels are wanted. A median filter comes
    after, and may change the number.

    Args:
        values: attribution map, `[H, W]`, any scale and sign.
        lungs: bool `[H, W]`, or None where they are not known.
        clip: whether the map is clipped to the lungs.
        stretch: as in `binarise`; the threshold is on the scale that this leaves.

    Returns:
        0 to 1, to be lain above strictly.

    Raises:
        ValueError: the map is not finite, or the lungs are no bool mask of its shape.
    """
    levels = scaled(values, stretch)
    n_wanted, possible = shares.of_image * levels.size, levels.ravel()
    if lungs is not None:
        check_masks(lungs, np.ones(levels.shape, np.bool_))
        n_lungs = int(np.count_nonzero(lungs))
        if n_lungs and not math.isnan(shares.of_lungs):
            n_wanted = shares.of_lungs * n_lungs
        possible = levels[lungs] if clip else possible
    if not possible.size:
        return float(levels.max())
    k = min(max(1, round(n_wanted)), possible.size)
    lowest_in = np.partition(possible, possible.size - k)[possible.size - k]
    if lowest_in == levels.min():
        return float(lowest_in)
    return float(np.nextafter(lowest_in, np.float32(-1)))
