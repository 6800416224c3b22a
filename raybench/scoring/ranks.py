"""Intervals of several explainers' means and of their ranks, from the same draws of patients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from raybench.scoring.bootstrap import (
    LEVEL,
    MAX_UNDEFINED,
    N_DRAWS,
    Floats,
    Intervals,
    intervals,
    weights,
)


def mean_intervals(
    values: Floats, groups: NDArray[np.integer[Any]], n_draws: int = N_DRAWS, seed: int = 0
) -> Intervals:
    """Percentile intervals of the means of k columns over the same images.

    Args:
        values: float64 `[n, k]`; NaN is left out of its column's mean. A draw without any value of
            a column leaves that column undefined (see `bootstrap.intervals`).
        groups: int `[n]`, images of one patient.

    Raises:
        ValueError: there are no images, or the groups do not fit them.
    """
    _check(values, groups)
    return intervals(_Means(values), groups, n_draws, seed=seed)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of k explainers, 1 the best; equal means share their mean rank.

    Attributes:
        rank: by their means over all images, float64 `[k]`; NaN without any.
        low, high: ends of the 95% interval over draws, rounded outwards to ranks that were drawn;
            NaN where there is none.
    """

    rank: Floats
    low: Floats
    high: Floats


def rank_intervals(
    values: Floats,
    groups: NDArray[np.integer[Any]],
    higher_is_better: bool = True,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Ranks:
    """Ranks by mean, and how far they move when other patients are drawn.

    In a draw all explainers are ranked on the same patients. An explainer without a value there has
    no rank in that draw; where that befalls more than `MAX_UNDEFINED` of the draws it has no
    interval, as where there are fewer than two groups.

    Args:
        values: float64 `[n, k]`, a column an explainer; NaN is left out of its mean.
        groups: int `[n]`, images of one patient.

    Source: Goldstein and Spiegelhalter, J. R. Stat. Soc. A 159 (1996), by the bootstrap.

    Raises:
        ValueError: there are no images, or the groups do not fit them.
    """
    _check(values, groups)
    means, sign = _Means(values), -1.0 if higher_is_better else 1.0

    def ranks(w: Floats) -> Floats:
        # Rounded, so that explainers with equal scores tie in whatever order they are summed.
        return np.asarray(
            rankdata(np.round(sign * means(w), 12), axis=1, nan_policy="omit"), np.float64
        )

    own = ranks(np.ones((1, len(values))))[0]
    drawn = np.concatenate([ranks(w) for w in weights(groups, n_draws, seed)])
    ends = np.full((2, values.shape[1]), np.nan)
    tail = (1 - LEVEL) / 2
    undefined = np.isnan(drawn).sum(axis=0)
    if len(np.unique(groups)) > 1:
        for k in np.flatnonzero(undefined <= MAX_UNDEFINED * n_draws):
            column = drawn[:, k][~np.isnan(drawn[:, k])]
            ends[0, k] = np.quantile(column, tail, method="lower")
            ends[1, k] = np.quantile(column, 1 - tail, method="higher")
    return Ranks(own, ends[0], ends[1])


class _Means:
    """From weights `[d, n]` to weighted means over the values that are there, `[d, k]`."""

    def __init__(self, values: Floats) -> None:
        there = ~np.isnan(values)
        self._whole = bool(there.all())
        self._there = there.astype(np.float64)
        self._values = np.where(there, values, 0.0)

    def __call__(self, w: Floats) -> Floats:
        count = w.sum(axis=1)[:, None] if self._whole else w @ self._there
        sums = w @ self._values
        found = np.full(sums.shape, np.nan)
        np.divide(sums, count, out=found, where=np.broadcast_to(count, sums.shape) > 0)
        return found


def _check(values: Floats, groups: NDArray[np.integer[Any]]) -> None:
    if values.ndim != 2 or len(values) == 0 or len(values) != len(groups):
        raise ValueError(
            f"values: expected shape [n, k] with a group each, n > 0, but got {values.shape} and "
            f"{len(groups)} groups"
        )
