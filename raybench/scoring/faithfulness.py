"""Figures of faithfulness curves: areas, and ROAD's gap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def area(shares: Floats, probabilities: Floats) -> float:
    """Area under a curve over shares of pixels by the trapezium rule, over the width of its shares.

    Args:
        shares: `[n]`, n > 1, ascending.
        probabilities: `[n]`, 0 to 1.

    Returns:
        0 to 1: the curve's mean height.

    Raises:
        ValueError: the lengths differ, there are fewer than two points, or shares do not ascend.
    """
    if shares.shape != probabilities.shape or shares.ndim != 1 or len(shares) < 2:
        raise ValueError(
            f"expected two arrays [n] with n > 1, found {list(shares.shape)} and "
            f"{list(probabilities.shape)}"
        )
    widths = np.diff(shares)
    if (widths <= 0).any():
        raise ValueError("shares: expected ascending values")
    heights = (probabilities[1:] + probabilities[:-1]) / 2
    return float((widths * heights).sum() / (shares[-1] - shares[0]))


def road_gap(shares: Floats, morf: Floats, lerf: Floats) -> float:
    """Area under LeRF less that under MoRF, -1 to 1; the higher the more faithful, 0 is chance.

    Raises:
        ValueError: as for `area`.
    """
    return area(shares, lerf) - area(shares, morf)
