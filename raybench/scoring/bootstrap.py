"""Percentile bootstrap intervals of any figure that can be computed from weighted images.

A draw takes as many patients as there are, with replacement. It is handed on as a weight for each
image (how often its patient was drawn), so that a statistic computes all draws of a chunk at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_DRAWS = 2000
"""Draws of an interval, where nobody asks for another number."""

LEVEL = 0.95
"""Share of the draws that lies inside an interval."""

MAX_UNDEFINED = 0.05
"""Share of the draws in which a figure may be undefined before it has no interval."""

# Entries of one chunk of weights, 4 MiB: a statistic's temporary arrays stay in a CPU's cache.
_CHUNK = 1 << 19

Floats = NDArray[np.float64]

Statistic = Callable[[Floats], Floats]
"""From the weights of some draws, float64 `[d, n]` (whole numbers, at least 0), to the figures of
each draw, `[d, k]`; NaN where a draw leaves a figure undefined."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """The intervals of k figures.

    Attributes:
        low: lower ends, float64 `[k]`; NaN where there is no interval.
        high: upper ends, likewise.
        n_undefined: draws in which the figure was undefined, int64 `[k]`.
    """

    low: Floats
    high: Floats
    n_undefined: NDArray[np.int64]


def intervals(
    statistic: Statistic,
    groups: NDArray[np.integer[Any]],
    n_draws: int = N_DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Intervals:
    """Percentile intervals: the quantiles `(1 -+ level) / 2` of the figures of all draws.

    A draw in which a figure is undefined (a class without an image) is left out of that figure's
    quantiles, and of no other's. Where that befalls more than `MAX_UNDEFINED` of the draws, or
    there are fewer than two groups to draw from, the figure has no interval: both ends are NaN.

    Args:
        statistic: see `Statistic`; called a few times with some of the draws each.
        groups: what is drawn together, int `[n]`: any number for each image's patient, or
            `arange(n)` where images stand for themselves.
        n_draws: draws in all, at least 1.
        level: share of the draws inside, above 0 and below 1.
        seed: fixes the draws; equal groups and seed give equal draws, so that the intervals of two
            classifiers on the same images come from the same draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; of whole
    patients: Field and Welsh, J. R. Stat. Soc. B 69 (2007), the cluster bootstrap.

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected above 0 and below 1, but got {level}")
    drawn = np.concatenate([statistic(w) for w in weights(groups, n_draws, seed)])
    tail = (1 - level) / 2
    ends = np.full((2, drawn.shape[1]), np.nan)
    undefined = np.isnan(drawn).sum(axis=0)
    if len(np.unique(groups)) > 1:
        for k in np.flatnonzero(undefined <= MAX_UNDEFINED * n_draws):
            column = drawn[:, k]
            ends[:, k] = np.quantile(column[~np.isnan(column)], [tail, 1 - tail])
    return Intervals(ends[0], ends[1], np.asarray(undefined, np.int64))


def weights(
    groups: NDArray[np.integer[Any]], n_draws: int = N_DRAWS, seed: int = 0
) -> Iterator[Floats]:
    """The draws, some at a time: how often each image was drawn, float64 `[d, n]`.

    Args: those of `intervals`.

    Raises:
        ValueError: there are no images or draws, or the groups are not whole numbers.
    """
    if groups.ndim != 1 or len(groups) == 0 or not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(
            f"groups: expected whole numbers of shape [n], n > 0, but got {groups.dtype} of shape "
            f"{groups.shape}"
        )
    if n_draws < 1:
        raise ValueError(f"n_draws: expected at least 1, but got {n_draws}")
    place = np.unique(groups, return_inverse=True)[1]
    n_groups = int(place.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(groups))
    for begin in range(0, n_draws, step):
        d = min(step, n_draws - begin)
        picks = rng.integers(0, n_groups, (d, n_groups)) + n_groups * np.arange(d)[:, None]
        counts = np.bincount(picks.ravel(), minlength=d * n_groups).reshape(d, n_groups)
        yield counts.astype(np.float64)[:, place]
