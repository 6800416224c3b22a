"""The k superpixels of an image that a map likes best, whatever method made the map.

lime shows its map so (`get_image_and_mask`, `num_features`), XRAI and others theirs. Here the
superpixels are the image's, the same for every method, and k is one of as many numbers as the rule
`val` has thresholds.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.scoring.binarise import CANDIDATES, min_max
from raybench.types import Mask, Values

MOST = len(CANDIDATES)
"""The largest k; as many are tried on Val as the rule `val` tries thresholds."""

_DIGITS = 12
"""Behind the point, of means on the stretched scale, that tell two superpixels apart."""


def rank_levels(values: Values, regions: NDArray[np.integer], clip: Mask | None = None) -> Values:
    """Every pixel's superpixel by rank, as a map that `k_of`'s thresholds cut after the k-th.

    A superpixel's value is the mean of its pixels, of those within `clip` where there is one. Its
    rank is how many superpixels have a higher one (by more than 1e-12 of the map's range), so those
    of one value stay together and k may mark more than k: clipped to the lungs, the whole lung
    stays whole. What is no higher than the map's lowest value is never salient, as for `area`.

    Args:
        values: attribution map, `[H, W]`, any scale; the part of it that is looked at.
        regions: superpixels 0 to K - 1, `[h, w]`, at any resolution; the nearest pixel's counts.
        clip: bool `[H, W]`, or None.

    Returns:
        float32 `[H, W]`: `1 - (rank + 0.5) / (MOST + 1)`, and 0 where the rank is `MOST` or more,
        nothing stands out, or `clip` ends.

    Raises:
        ValueError: the map is not finite, or not `[H, W]`.
    """
    levels = min_max(values)
    labels = _at(regions, levels.shape)
    inside = np.ones(levels.shape, np.bool_) if clip is None else clip
    n = np.bincount(labels[inside], minlength=int(labels.max()) + 1)
    sums = np.bincount(labels[inside], weights=levels[inside], minlength=n.size)
    means = np.divide(sums, n, out=np.zeros(n.size), where=n > 0)
    # Equal means of unlike pixels can differ in the last digits, by the order of the sum.
    close = np.round(means, _DIGITS)
    higher = np.sort(close[n > 0])
    ranks = higher.size - np.searchsorted(higher, close, side="right")
    stands_out = (n > 0) & (means > 0) & (ranks < MOST)
    of_region = np.where(stands_out, 1 - (ranks + 0.5) / (MOST + 1), 0.0)
    return np.where(inside, of_region[labels], 0.0).astype(np.float32)


def threshold_of(k: int) -> float:
    """What parts the first k ranks from the others on `rank_levels`' scale.

    Raises:
        ValueError: k is not from 1 to `MOST`.
    """
    if not 1 <= k <= MOST:
        raise ValueError(f"k: expected 1 to {MOST} superpixels, but got {k}")
    return CANDIDATES[MOST - k]


def k_of(threshold: float) -> int:
    """The k that one of `CANDIDATES` stands for on `rank_levels`' scale."""
    return MOST - CANDIDATES.index(threshold)


def _at(regions: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.integer]:
    if regions.shape == shape:
        return regions
    size = (shape[1], shape[0])
    small = regions.astype(np.float64)  # exact for any label, and OpenCV takes it
    large = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(large, np.int32)
