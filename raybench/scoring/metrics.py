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
from raybench.scoring.surface import assd, hd95, nsd
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
    )
}
"""Every localisation metric by name, in the order of the columns."""


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
