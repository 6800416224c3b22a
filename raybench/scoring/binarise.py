"""From an attribution map to a salient mask, and the threshold that does it.

The order is the study's (PROTOCOL.md, 4): min-max, threshold, clip to the lungs, median filter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.signs import oriented as oriented
from raybench.types import Mask, Values

CANDIDATES: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The thresholds tried on Val: 0.05 to 0.95 in steps of 0.05."""

# Levels are counted in uint8, the only depth that OpenCV's median takes with kernels above 5.
_MOST_CANDIDATES = 255


def min_max(values: Values) -> Values:
    """Stretch a map linearly to [0, 1].

    A constant map becomes all zero: nothing stands out in it. The arithmetic is in float64, so
    that the range of a float32 map cannot overflow.

    Args:
        values: attribution map, `[H, W]`, any scale and sign.

    Returns:
        float32 `[H, W]`; the smallest value is 0, the largest 1.

    Raises:
        ValueError: the map is empty, not two-dimensional, or holds NaN or infinity.
    """
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected a map of shape [H, W], but got shape {values.shape}")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(
            f"expected finite values, but {bad} of {values.size} are NaN or infinite; the "
            "explainer that made this map failed on it"
        )
    if low == high:
        return np.zeros(values.shape, np.float32)
    return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32)


def binarise(
    values: Values,
    threshold: float,
    clip: Mask | None = None,
    median: int = 0,
    stretch: bool = True,
) -> Mask:
    """The salient mask: min-max, then above the threshold, then within `clip`, then smoothed.

    Smoothing comes last, as in the study, so it may set single pixels just outside `clip`, in its
    concave corners. At the border the median repeats the outermost pixels.

    Args:
        values: attribution map, `[H, W]`, any scale and sign.
        threshold: on the stretched map; a pixel is salient where it is strictly above.
        clip: bool `[H, W]`, what lies outside is never salient (the lungs); None clips nothing.
        median: side of the square median filter in pixels, odd; 0 for none (the study: 5).
        stretch: false for a map that is in [0, 1] already and means it, such as probabilities.

    Returns:
        bool `[H, W]`.

    Raises:
        ValueError: the map is not finite, `clip` is no bool mask of its shape, or `median` is even.
    """
    _check(values, clip, median)
    salient = scaled(values, stretch) > np.float32(threshold)
    if clip is not None:
        salient = salient & clip
    if median > 1:
        salient = cv2.medianBlur(salient.astype(np.uint8), median) > 0
    return np.asarray(salient, np.bool_)


def choose_threshold(
    maps: Iterable[Values],
    truths: Iterable[Mask],
    clips: Iterable[Mask | None] | None = None,
    median: int = 0,
    candidates: Sequence[float] = CANDIDATES,
    stretch: bool = True,
) -> tuple[float, float]:
    """The threshold with the highest mean IoU over images; to be called on Val, never on Test.

    Ties go to the candidate nearest 0.5, then to the lower. The maps are not kept. A median
    filter and a threshold may change places (threshold decomposition: Fitch et al. 1984), so each
    map is cut into levels and filtered once, and one histogram gives the IoU at all candidates.

    Args:
        maps: attribution maps, `[H, W]` each; may be a generator.
        truths: infection masks, bool `[H, W]`, in the order of the maps.
        clips: lung masks in the same order, None for a map that is not clipped; None for all.
        median: as in `binarise`.
        candidates: thresholds to try, at most 255, in any order.
        stretch: as in `binarise`.

    Returns:
        The threshold and its mean IoU, 0 to 1.

    Raises:
        ValueError: no images, unequal counts, no or too many candidates, or what `binarise`
            refuses.
    """
    grid = np.unique(np.asarray(candidates, np.float64))
    if not 0 < grid.size <= _MOST_CANDIDATES or not np.isfinite(grid).all():
        raise ValueError(
            f"expected 1 to {_MOST_CANDIDATES} finite candidates, but got {candidates}"
        )
    total, n_images = np.zeros(grid.size), 0
    pairs = zip(maps, truths, strict=True)
    lungs: Iterable[Mask | None] = itertools.repeat(None) if clips is None else clips
    # An endless `repeat` can never run out together with the maps.
    triples = zip(pairs, lungs, strict=clips is not None)
    for (values, truth), clip in triples:
        total += iou_at(grid, values, truth, clip, median, stretch)
        n_images += 1
    if n_images == 0:
        raise ValueError("expected at least one image to choose a threshold on, but got none")
    means = total / n_images
    # Sums of the same addends in another order differ in the last bits; that is still a tie.
    tied = np.flatnonzero(means >= means.max() - 1e-12)
    best = min(tied, key=lambda k: (round(abs(float(grid[k]) - 0.5), 9), float(grid[k])))
    return float(grid[best]), float(means[best])


def iou_at(
    grid: NDArray[np.float64],
    values: Values,
    truth: Mask,
    clip: Mask | None,
    median: int,
    stretch: bool = True,
) -> NDArray[np.float64]:
    """IoU of one image at every threshold of a grid, from one histogram.

    Args:
        grid: `[C]`, at most 255 thresholds in ascending order.
        values, truth, clip, median, stretch: as for `choose_threshold`, of one image.

    Returns:
        `[C]`, what `binarise` and `overlap.iou` give.

    Raises:
        ValueError: what `binarise` refuses, or a truth of another shape.
    """
    _check(values, clip, median)
    if truth.dtype != np.bool_ or truth.shape != values.shape:
        raise ValueError(
            f"truth: expected a bool mask of shape {values.shape}, but got {truth.dtype} of shape "
            f"{truth.shape}"
        )
    # A pixel's level is how many thresholds it lies strictly above.
    stretched = scaled(values, stretch)
    levels = np.searchsorted(grid.astype(np.float32), stretched, side="left").astype(np.uint8)
    if clip is not None:
        levels[~clip] = 0
    if median > 1:
        levels = cv2.medianBlur(levels, median)
    n_predicted = _above(levels.ravel(), grid.size)
    both = _above(levels[truth], grid.size)
    union = n_predicted + np.count_nonzero(truth) - both
    return np.where(union > 0, both / np.maximum(union, 1), 1.0)


def scaled(values: Values, stretch: bool) -> Values:
    """The map on the scale of the thresholds, float32 `[H, W]`.

    Args:
        values: attribution map, `[H, W]`.
        stretch: whether it is stretched to [0, 1]; else it has to lie there already.

    Raises:
        ValueError: what `min_max` refuses, or values outside [0, 1] that are not stretched.
    """
    if stretch:
        return min_max(values)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN is refused too
        raise ValueError(f"expected values in [0, 1], but they run from {low} to {high}")
    return values.astype(np.float32)


def _above(levels: NDArray[np.uint8], n_candidates: int) -> NDArray[np.int64]:
    """How many pixels lie above each threshold."""
    counts = np.bincount(levels, minlength=n_candidates + 1)
    return np.cumsum(counts[::-1])[::-1][1:]


def _check(values: Values, clip: Mask | None, median: int) -> None:
    if median < 0 or (median > 0 and median % 2 == 0):
        raise ValueError(f"median: expected 0 or an odd number, but got {median}")
    if clip is not None and (clip.dtype != np.bool_ or clip.shape != values.shape):
        raise ValueError(
            f"clip: expected a bool mask of shape {values.shape}, but got {clip.dtype} of shape "
            f"{clip.shape}"
        )
