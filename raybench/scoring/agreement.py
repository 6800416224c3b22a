"""How alike two maps of one image are."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

from raybench.scoring.binarise import min_max
from raybench.types import Values

_WINDOW = 7


def rank_agreement(one: Values, other: Values) -> float:
    """Spearman's rank correlation over pixels, -1 to 1; equal values share their mean rank.

    A constant map ranks nothing: 0 with any other, and 1 with another constant one.

    Args:
        one, other: `[H, W]`, any scale.

    Raises:
        ValueError: the shapes differ, or a map is not finite.
    """
    _check(one, other)
    constant = [bool(values.min() == values.max()) for values in (one, other)]
    if any(constant):
        return float(all(constant))
    ranks = [rankdata(values, axis=None) for values in (one, other)]
    if np.array_equal(*ranks):
        return 1.0  # exactly
    return float(np.clip(np.corrcoef(*ranks)[0, 1], -1.0, 1.0))


def ssim(one: Values, other: Values) -> float:
    """Structural similarity of two maps, each stretched to [0, 1]; at most 1.

    A window of 7 pixels, or the largest odd one that fits (Wang et al. 2004, as in scikit-image).

    Args:
        one, other: `[H, W]`, 3 pixels a side at least, any scale.

    Raises:
        ValueError: the shapes differ, a map is too small or is not finite.
    """
    _check(one, other)
    least = min(one.shape)
    if least < 3:
        raise ValueError(f"expected maps of 3 pixels a side at least, but got {one.shape}")
    window = min(_WINDOW, least - 1 + least % 2)
    found = structural_similarity(min_max(one), min_max(other), win_size=window, data_range=1.0)
    return float(found)


def _check(one: Values, other: Values) -> None:
    if one.shape != other.shape or one.ndim != 2:
        raise ValueError(
            f"expected two maps of one shape [H, W], but got {one.shape} and {other.shape}"
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("expected finite maps, but some values are NaN or infinite")
