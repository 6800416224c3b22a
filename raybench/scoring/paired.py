"""Two explainers over the same images: how far apart they are, and whether that can be chance.

Figures are means over images, as everywhere; what is tested are patients' means, because images of
one patient are not independent. Where no patients are known every image is a group of its own, and
the test is by image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from raybench.scoring.bootstrap import N_DRAWS, Floats
from raybench.scoring.ranks import mean_intervals

ALPHA = 0.05
"""Below this a p value, corrected for the number of pairs, counts as a difference."""

POWER = 0.8

EXACT_UP_TO = 50
"""Non-zero differences up to which the signed-rank test is exact; above, it is asymptotic."""

# Differences of equal scores that rounding left apart are still equal.
_DECIMALS = 12


@dataclass(frozen=True, slots=True)
class Paired:
    """A comparison of two explainers, a minus b.

    Attributes:
        difference: mean over the images that both have; NaN where there are none.
        low, high: its 95% bootstrap interval, whole groups drawn; NaN with fewer than two groups.
        p: two-sided Wilcoxon signed-rank test of the groups' mean differences, not corrected; NaN
            without images.
        rank_biserial: matched-pairs rank-biserial correlation, -1 to 1: ranks in favour of a minus
            ranks in favour of b, over all; 0 where no group differs.
        dz: Cohen's d_z of the groups, their mean difference over its standard deviation; NaN
            with fewer than two groups, or where all differ by the same.
        n: images that count.
        n_left_out: images left out because a or b has no figure.
        n_groups: groups that count.
        n_needed: groups that a difference of this d_z takes (`groups_needed`).
    """

    difference: float
    low: float
    high: float
    p: float
    rank_biserial: float
    dz: float
    n: int
    n_left_out: int
    n_groups: int
    n_needed: float


def paired(
    a: Floats, b: Floats, groups: NDArray[np.integer[Any]], n_draws: int = N_DRAWS, seed: int = 0
) -> Paired:
    """Compare the scores of two explainers on the same images.

    Args:
        a, b: float64 `[n]`, in one order of images; pairs where either is NaN are left out.
        groups: int `[n]`, images of one patient; `arange(n)` where no patients are known.
        n_draws, seed: of the bootstrap.

    Raises:
        ValueError: there are no images, lengths differ, or a score is infinite.
    """
    if len(a) != len(b):
        raise ValueError(f"expected equal lengths, but got {len(a)} and {len(b)}")
    return all_pairs(np.column_stack([a, b]), groups, n_draws, seed)[0][2]


def all_pairs(
    scores: Floats, groups: NDArray[np.integer[Any]], n_draws: int = N_DRAWS, seed: int = 0
) -> list[tuple[int, int, Paired]]:
    """Compare every column with every later one, all with the same draws of the bootstrap.

    Args:
        scores: float64 `[n, k]`, a column an explainer, as for `paired`.

    Returns:
        Both columns and their comparison, column by column.

    Raises:
        ValueError: there are no images, the groups do not fit them, or a score is infinite.
    """
    if np.isinf(scores).any():
        raise ValueError("expected finite scores or NaN, but some are infinite")
    first, second = np.triu_indices(scores.shape[1], 1)
    off = np.round(scores[:, first] - scores[:, second], _DECIMALS)
    found = mean_intervals(off, groups, n_draws, seed)
    ends = zip(found.low, found.high, strict=True)
    return [
        (int(i), int(j), _one(off[:, k], groups, float(low), float(high)))
        for k, (i, j, (low, high)) in enumerate(zip(first, second, ends, strict=True))
    ]


def _one(off: Floats, groups: NDArray[np.integer[Any]], low: float, high: float) -> Paired:
    there = ~np.isnan(off)
    n, left_out = int(there.sum()), int((~there).sum())
    if n == 0:
        gap = math.nan
        return Paired(gap, gap, gap, gap, gap, gap, 0, left_out, 0, gap)
    means = group_means(off[there], groups[there])
    p, rank_biserial = signed_rank(means)
    dz = cohens_dz(means)
    difference, needed = float(off[there].mean()), groups_needed(dz)
    return Paired(difference, low, high, p, rank_biserial, dz, n, left_out, len(means), needed)


def group_means(values: Floats, groups: NDArray[np.integer[Any]]) -> Floats:
    """The mean of each group, `[g]`, in rising order of the groups' numbers."""
    place = np.unique(groups, return_inverse=True)[1]
    means = np.bincount(place, weights=values) / np.bincount(place)
    return np.asarray(np.round(means, _DECIMALS), np.float64)


def signed_rank(differences: Floats) -> tuple[float, float]:
    """Wilcoxon's signed-rank test against a symmetric distribution around 0, two-sided.

    Zeros are dropped (Wilcoxon 1945), equal sizes share their mean rank. Up to `EXACT_UP_TO`
    differences p is exact, given the ranks: the share of the 2^m ways to set the signs that are at
    least as one-sided, equal sizes or not. Above, it is the normal approximation with the variance
    corrected for ties and without continuity correction, as scipy's `wilcoxon` has it.

    Args:
        differences: finite, float64 `[m]`.

    Returns:
        p, 1.0 where no difference is left, and the matched-pairs rank-biserial correlation (Kerby,
        Comprehensive Psychology 3, 2014).
    """
    apart = differences[differences != 0]
    m = len(apart)
    if m == 0:
        return 1.0, 0.0
    # Doubled, so that shared ranks are whole numbers.
    ranks = np.rint(2 * rankdata(np.abs(apart))).astype(np.int64)
    total, up = int(ranks.sum()), int(ranks[apart > 0].sum())
    rank_biserial = (2 * up - total) / total
    if m <= EXACT_UP_TO:
        ways = np.zeros(total + 1)
        ways[0] = 1.0
        for rank in ranks:
            # Halved at every step: the sum stays 1, whatever m.
            ways = ways / 2
            ways[rank:] += ways[: total + 1 - rank].copy()
        p = min(1.0, 2 * float(ways[: min(up, total - up) + 1].sum()))
    else:
        z = (up - total / 2) / math.sqrt(float((ranks.astype(np.float64) ** 2).sum()) / 4)
        p = 2 * float(norm.sf(abs(z)))
    return p, rank_biserial


def cohens_dz(differences: Floats) -> float:
    """Mean over standard deviation (n - 1); NaN with fewer than two, or where they do not vary."""
    if len(differences) < 2:
        return math.nan
    spread = float(differences.std(ddof=1))
    return float(differences.mean()) / spread if spread > 10.0**-_DECIMALS else math.nan


def groups_needed(dz: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """Patients (images, where none are known) that a difference of this d_z would take.

    ((z_(1 - alpha / 2) + z_power) / d_z)^2 pi / 3, rounded up: the normal approximation of the
    paired t test, divided by the Wilcoxon test's asymptotic relative efficiency 3 / pi at normal
    differences. It takes the difference found for the true one and does not correct for the number
    of pairs, so it is a guide to the next study and no judgement of this one.

    Returns:
        A whole number, at least 2; NaN where d_z is NaN, infinity where it is 0.
    """
    if math.isnan(dz):
        return math.nan
    if dz == 0:
        return math.inf
    z = float(norm.ppf(1 - alpha / 2) + norm.ppf(power))
    return float(max(2, math.ceil((z / dz) ** 2 * math.pi / 3)))


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Holm's step-down correction: the chance of a single false difference stays below alpha.

    The i-th smallest of m p values times m - i + 1, at least the one before it, at most 1 (Holm,
    Scand. J. Stat. 6, 1979). NaN stays NaN and does not count.

    Args:
        p_values: `[m]`, of all pairs that are looked at together.

    Returns:
        float64 `[m]`, in the same order.
    """
    p = np.asarray(p_values, np.float64)
    found = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    found[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return found
