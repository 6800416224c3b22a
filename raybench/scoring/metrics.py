"""The localisation metrics of salient masks: a pure function and a row each.

A new metric is a function `(predicted, truth) -> float` and one line in `METRICS`.
Scores of the map itself, before any threshold, are in `ranking`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from raybench.scoring.boundary import hausdorff
from raybench.scoring.overlap import dice, iou, precision, recall, specificity
from raybench.scoring.ranking import LOWER_IS_BETTER, MAP_SCORES
from raybench.scoring.surface import assd, hausdorff_outline, hd95, nsd
from raybench.types import Mask


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table.

    Attributes:
        name: the column it fills.
        function: salient mask and infection mask, bool `[H, W]` each, to a number.
        higher_is_better: whether a larger value means better localisation.
        bounds: the smallest and the largest value it can take.
        unit: what it counts in; empty for a pure number.
        empty: what it says where masks are empty.
    """

    name: str
    function: Callable[[Mask, Mask], float]
    higher_is_better: bool
    bounds: tuple[float, float]
    unit: str
    empty: str


_OVERLAP = "both empty: 1.0; one empty: 0.0"
_DISTANCE = "any empty: NaN, left out"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("iou", iou, True, (0.0, 1.0), "", _OVERLAP),
        Metric("dice", dice, True, (0.0, 1.0), "", _OVERLAP),
        Metric("hausdorff", hausdorff, False, (0.0, math.inf), "pixels", _DISTANCE),
        Metric("precision", precision, True, (0.0, 1.0), "", _OVERLAP),
        Metric("recall", recall, True, (0.0, 1.0), "", _OVERLAP),
        Metric(
            "specificity",
            specificity,
            True,
            (0.0, 1.0),
            "",
            "both empty: 1.0; one empty: the other's pixels decide; both full: 1.0; truth alone "
            "full: 0.0",
        ),
        Metric("hd95", hd95, False, (0.0, math.inf), "pixels", _DISTANCE),
        Metric("assd", assd, False, (0.0, math.inf), "pixels", _DISTANCE),
        Metric("nsd", nsd, True, (0.0, 1.0), "", _OVERLAP),
        Metric("hausdorff_outline", hausdorff_outline, False, (0.0, math.inf), "pixels", _DISTANCE),
    )
}
"""Every localisation metric by name, in the order of the columns."""


@dataclass(frozen=True, slots=True)
class Score:
    """How the values of a column are to be read.

    Attributes:
        higher_is_better: whether a larger value means better localisation.
        bounds: the smallest and the largest value it can take.
        needs_threshold: whether it is of a salient mask; others are of the map itself, and the same
            under every threshold rule.
    """

    higher_is_better: bool
    bounds: tuple[float, float]
    needs_threshold: bool


SCORES: dict[str, Score] = {
    **{m.name: Score(m.higher_is_better, m.bounds, True) for m in METRICS.values()},
    **{name: Score(name not in LOWER_IS_BETTER, (0.0, 1.0), False) for name in MAP_SCORES},
}
"""Every localisation score of an image, of salient masks and of maps, in the order of the columns.

Tables and the leaderboard follow from it, and through their columns so does MLflow.
"""


def localisation_scores(predicted: Mask, truth: Mask) -> dict[str, float]:
    """All metrics of one image.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        A value for each name of `METRICS`, in its order.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    return {name: metric.function(predicted, truth) for name, metric in METRICS.items()}
