"""Severity: the share of the lungs that is infected, and how far a predicted share is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybench.scoring.bootstrap import Floats, intervals
from raybench.scoring.overlap import check_masks
from raybench.types import Mask

SEVERITY = ("severity", "severity_truth", "severity_error")
"""The columns of an image: the predicted share, the drawn one, their absolute difference."""


def severity(infected: Mask, lungs: Mask | None) -> float:
    """Infected pixels within the lungs over pixels of the lungs, 0 to 1.

    Args:
        infected: bool `[H, W]`; what lies outside the lungs does not count.
        lungs: bool `[H, W]`, or None where they are not known.

    Returns:
        The share; NaN without lungs, or with an empty mask of them.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    if lungs is None:
        return math.nan
    check_masks(infected, lungs)
    n_lungs = int(np.count_nonzero(lungs))
    return int(np.count_nonzero(infected & lungs)) / n_lungs if n_lungs else math.nan


def severity_scores(predicted: Mask, truth: Mask, lungs: Mask | None) -> dict[str, float]:
    """The columns of `SEVERITY` for one image.

    Raises:
        ValueError: not bool masks of one shape.
    """
    found, drawn = severity(predicted, lungs), severity(truth, lungs)
    return dict(zip(SEVERITY, (found, drawn, abs(found - drawn)), strict=True))


def severity_summary(
    predicted: Sequence[float] | Floats,
    truth: Sequence[float] | Floats,
    groups: NDArray[np.integer[Any]],
    seed: int = 0,
) -> dict[str, float]:
    """How far the shares of several images are off.

    Args:
        predicted, truth: shares `[n]`; images where one is NaN are left out.
        groups: int `[n]`, images drawn together (a patient's).
        seed: of the bootstrap's draws.

    Returns:
        `severity_mae`, the mean absolute error; `severity_mae_low` and `_high`, its percentile
        bootstrap interval; `severity_bias`, the mean of predicted minus truth; `severity_n`, images
        that count. NaN where there are none; the interval also with fewer than two groups.
    """
    off = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    there = np.isfinite(off)
    off = off[there]
    low = high = mae = bias = math.nan
    if len(off):
        mae, bias = float(np.abs(off).mean()), float(off.mean())
        sizes = np.abs(off)[:, None]
        found = intervals(lambda w: (w @ sizes) / w.sum(axis=1)[:, None], groups[there], seed=seed)
        low, high = float(found.low[0]), float(found.high[0])
    return {
        "severity_mae": mae,
        "severity_mae_low": low,
        "severity_mae_high": high,
        "severity_bias": bias,
        "severity_n": float(len(off)),
    }
