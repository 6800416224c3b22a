"""Scores of an attribution map itself, before any threshold.

All but `outside_lungs` ask how well the map's order or its mass finds the infection. They take the
map as its explainer's `sign` turns it (`oriented`), unstretched, and are the same under every
threshold rule. Pixels of one value have no order: where a cut falls among them, each counts by the
same fraction, so a constant map scores what chance does.

Relevance mass and rank accuracy: Arras et al. 2022 (Information Fusion 81). The pointing game:
Zhang et al. 2018 (IJCV 126), without its tolerance around the infection. Areas: scikit-learn's
`roc_auc_score` and `average_precision_score` over pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.types import Mask, Values

OUTSIDE_LUNGS = "outside_lungs"

LOWER_IS_BETTER = frozenset({OUTSIDE_LUNGS})
"""The scores of which less is better; of all others more is."""

_NO_TRUTH = "no infection: NaN"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A map's pixels in falling order, counted at each distinct value; sorted once for all scores.

    Attributes:
        values: the map, `[H, W]`, or those of its pixels that count, `[P]`.
        truth: infection mask, bool of the same shape, with at least one pixel.
        n_all: pixels at least as high as the i-th highest distinct value, int64 `[L]`.
        n_inside: those of them that are infected, int64 `[L]`.
    """

    values: Values
    truth: Mask
    n_all: NDArray[np.int64]
    n_inside: NDArray[np.int64]

    @classmethod
    def of(cls, values: Values, truth: Mask) -> Ranked:
        """Sort a map of finite values beside a mask of its shape."""
        order = np.argsort(values, axis=None)[::-1]
        falling = values.ravel()[order]
        ends = np.append(np.flatnonzero(falling[1:] != falling[:-1]), falling.size - 1)
        inside = np.cumsum(truth.ravel()[order], dtype=np.int64)
        return cls(values, truth, (ends + 1).astype(np.int64), inside[ends])


def hit_rate(ranked: Ranked) -> float:
    """Pointing game: the share of the highest value's pixels that are infected, 0 to 1."""
    return float(ranked.n_inside[0] / ranked.n_all[0])


def mass_accuracy(ranked: Ranked) -> float:
    """Positive attribution within the infection over all positive attribution, 0 to 1.

    0.0 where nothing is positive, as for a salient mask that is empty.
    """
    inside, outside = _masses(ranked.values, ranked.truth)
    return inside / (inside + outside) if inside + outside > 0 else 0.0


def rank_accuracy(ranked: Ranked) -> float:
    """Of the K highest pixels the share that are infected, 0 to 1; K: infected pixels."""
    k = ranked.n_inside[-1]
    # Linear between two distinct values: each pixel of the cut's value counts alike.
    n_all, n_inside = np.append(0, ranked.n_all), np.append(0, ranked.n_inside)
    return float(np.interp(k, n_all, n_inside) / k)


def pixel_auroc(ranked: Ranked) -> float:
    """Chance that an infected pixel lies above one that is not, ties half, 0 to 1; AUROC.

    NaN where the infection covers the whole image.
    """
    inside, outside = ranked.n_inside, ranked.n_all - ranked.n_inside
    n_pairs = int(inside[-1]) * int(outside[-1])
    if n_pairs == 0:
        return math.nan
    twice = np.diff(outside, prepend=0) * (inside + np.append(0, inside[:-1]))
    return int(twice.sum()) / (2 * n_pairs)


def pixel_ap(ranked: Ranked) -> float:
    """Average precision over pixels: precision at each distinct value times the gain in recall.

    In (0, 1], without interpolation; chance reaches about the infected share of the image.
    """
    gained = np.diff(ranked.n_inside, prepend=0)
    total = float((gained * (ranked.n_inside / ranked.n_all)).sum())
    return min(1.0, total / int(ranked.n_inside[-1]))


@dataclass(frozen=True, slots=True)
class MapMetric:
    """One row of the table; a larger value means better localisation.

    Attributes:
        name: the column it fills.
        of: a ranked map to a number.
        bounds: the smallest and the largest value it can take.
        empty: what it says where there is nothing to count.
    """

    name: str
    of: Callable[[Ranked], float]
    bounds: tuple[float, float]
    empty: str

    def function(self, values: Values, truth: Mask) -> float:
        """The score of one map; see `map_scores`, which sorts once for all."""
        check_map(values, truth, "truth")
        return self.of(Ranked.of(values, truth)) if truth.any() else math.nan


MAP_METRICS: dict[str, MapMetric] = {
    metric.name: metric
    for metric in (
        MapMetric("hit_rate", hit_rate, (0.0, 1.0), _NO_TRUTH),
        MapMetric(
            "mass_accuracy",
            mass_accuracy,
            (0.0, 1.0),
            f"{_NO_TRUTH}; nothing positive: 0.0",
        ),
        MapMetric("rank_accuracy", rank_accuracy, (0.0, 1.0), _NO_TRUTH),
        MapMetric(
            "pixel_auroc", pixel_auroc, (0.0, 1.0), f"{_NO_TRUTH}; infection everywhere: NaN"
        ),
        MapMetric("pixel_ap", pixel_ap, (0.0, 1.0), _NO_TRUTH),
    )
}
"""Every score of a map against the infection by name, in the order of the columns."""

WITHIN_LUNGS = {"pixel_auroc_lungs": pixel_auroc, "pixel_ap_lungs": pixel_ap}
"""Scores that are taken over the pixels of the lungs alone too."""

MAP_SCORES = (*MAP_METRICS, OUTSIDE_LUNGS, *WITHIN_LUNGS)
"""The columns of a map: `MAP_METRICS`, `outside_lungs` and `WITHIN_LUNGS`."""


def outside_lungs(values: Values, lungs: Mask | None) -> float:
    """The share of the positive attribution that lies outside the lungs, 0 to 1; lower is better.

    Args:
        values: attribution map, `[H, W]`, oriented by its explainer's sign.
        lungs: bool `[H, W]`, or None where they are not known.

    Returns:
        The share; NaN without lungs, with an empty mask of them, or where nothing is positive.

    Raises:
        ValueError: not a finite map and a bool mask of its shape.
    """
    if lungs is None:
        return math.nan
    check_map(values, lungs, "lungs")
    inside, outside = _masses(values, lungs)
    return outside / (inside + outside) if lungs.any() and inside + outside > 0 else math.nan


def within_lungs(values: Values, truth: Mask, lungs: Mask | None) -> dict[str, float]:
    """AUROC and average precision over the pixels of the lungs: no credit for finding the lungs.

    Args:
        values: attribution map, `[H, W]`, oriented by its explainer's sign.
        truth: infection mask, bool `[H, W]`; what lies outside the lungs does not count.
        lungs: bool `[H, W]`, or None where they are not known.

    Returns:
        A value for each name of `WITHIN_LUNGS`; NaN without lungs or without infection in them, and
        the AUROC where infection covers them whole.

    Raises:
        ValueError: not a finite map and bool masks of its shape.
    """
    check_map(values, truth, "truth")
    if lungs is not None:
        check_map(values, lungs, "lungs")
    if lungs is None or not (truth & lungs).any():
        return dict.fromkeys(WITHIN_LUNGS, math.nan)
    ranked = Ranked.of(values[lungs], truth[lungs])
    return {name: score(ranked) for name, score in WITHIN_LUNGS.items()}


def map_scores(values: Values, truth: Mask, lungs: Mask | None) -> dict[str, float]:
    """All scores of one map.

    Args:
        values: attribution map, `[H, W]`, oriented by its explainer's sign.
        truth: infection mask, bool `[H, W]`.
        lungs: bool `[H, W]`, or None where they are not known.

    Returns:
        A value for each name of `MAP_SCORES`, in its order.

    Raises:
        ValueError: not a finite map and bool masks of its shape.
    """
    check_map(values, truth, "truth")
    found = dict.fromkeys(MAP_METRICS, math.nan)
    if truth.any():
        ranked = Ranked.of(values, truth)
        found = {name: metric.of(ranked) for name, metric in MAP_METRICS.items()}
    outside = {OUTSIDE_LUNGS: outside_lungs(values, lungs)}
    return found | outside | within_lungs(values, truth, lungs)


def check_map(values: Values, mask: Mask, name: str) -> None:
    """Refuse anything but a finite map `[H, W]` and a bool mask of its shape.

    Raises:
        ValueError: the map is empty, not two-dimensional or not finite, or the mask (by `name`) is
            not bool or of another shape.
    """
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected a map of shape [H, W], but got shape {values.shape}")
    if mask.dtype != np.bool_ or mask.shape != values.shape:
        raise ValueError(
            f"{name}: expected a bool mask of shape {values.shape}, but got {mask.dtype} of shape "
            f"{mask.shape}"
        )
    if not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(
            f"expected finite values, but {bad} of {values.size} are NaN or infinite; the "
            "explainer that made this map failed on it"
        )


def _masses(values: Values, mask: Mask) -> tuple[float, float]:
    """Positive attribution within a mask and outside it, in float64: neither can overflow."""
    positive = np.maximum(values, 0).astype(np.float64)
    return float(positive[mask].sum()), float(positive[~mask].sum())
