"""Which of many settings wins on a few images, and how much of its score is owed to choosing.

Settings are held as curves: the IoU of every image at every threshold that the setting may choose
from. One with a fixed threshold has the same value all along its curve.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from raybench.scoring.binarise import CANDIDATES

Floats = NDArray[np.float64]

TIE = 1e-9
"""Mean IoUs no further apart than this are equal, and the cheaper setting wins."""

# The order in which `choose_threshold` prefers candidates that are equally good.
_PREFERRED = sorted(range(len(CANDIDATES)), key=lambda k: (round(abs(CANDIDATES[k] - 0.5), 9), k))
_SAME = 1e-12


def best_thresholds(means: Floats) -> NDArray[np.intp]:
    """Places in `CANDIDATES` of the highest mean IoU, nearest 0.5, then lowest, where several are.

    Args:
        means: `[..., C]`.

    Returns:
        `[...]`.
    """
    ordered = means[..., _PREFERRED]
    tied = ordered >= ordered.max(axis=-1, keepdims=True) - _SAME
    return np.asarray(np.asarray(_PREFERRED)[tied.argmax(axis=-1)])


def winner(scores: Floats, n_forward: Floats) -> int:
    """The setting with the highest mean IoU; of equal ones the cheapest, then the earliest.

    Args:
        scores: mean IoU of each setting, `[T]`.
        n_forward: its forward passes, `[T]`.

    Raises:
        ValueError: there is none.
    """
    if not len(scores):
        raise ValueError("expected at least one setting to choose from, got none")
    tied = np.flatnonzero(scores >= scores.max() - TIE)
    return int(tied[np.asarray(n_forward)[tied].argmin()])


def left_out_score(curves: Floats, n_forward: Floats, groups: Sequence[Hashable]) -> float:
    """Mean IoU of the winner on images that took no part in choosing it or its threshold.

    One group of images after the other is left out, the winner is chosen on the rest, and scored
    on the group: cross-validation of the choice itself. What the winner's own mean has more than
    this is owed to choosing the best of many on few images.

    Args:
        curves: IoU `[T, N, C]` of settings, images and thresholds.
        n_forward: `[T]`.
        groups: of each image, `[N]`: its patient, or the image itself.

    Returns:
        The mean over images; NaN where there are fewer than two groups.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return float("nan")
    total, found = curves.sum(axis=1), 0.0
    for name in names:
        out = np.array([group == name for group in groups])
        means = (total - curves[:, out].sum(axis=1)) / np.count_nonzero(~out)
        at = best_thresholds(means)
        chosen = winner(np.take_along_axis(means, at[:, None], axis=1)[:, 0], n_forward)
        found += float(curves[chosen, out, at[chosen]].sum())
    return found / len(groups)


def standard_error(accuracy: float, n_images: int) -> float:
    """Of an accuracy p over n images, sqrt(p (1 - p) / n): none where all or nothing is right."""
    return math.sqrt(accuracy * (1 - accuracy) / n_images)


def on_front(scores: Floats, n_forward: Floats) -> NDArray[np.bool_]:
    """Which settings no other beats: none has a score as high for fewer passes, or a higher one.

    Args:
        scores: the higher the better, `[T]`; NaN is never on the front.
        n_forward: the lower the better, `[T]`.
    """
    higher, as_high = scores[:, None] > scores, scores[:, None] >= scores
    fewer, as_few = n_forward[:, None] < n_forward, n_forward[:, None] <= n_forward
    beaten = ((higher & as_few) | (as_high & fewer)).any(axis=0)
    return np.asarray(~beaten & ~np.isnan(scores))
