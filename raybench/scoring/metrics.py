"""The localisation metrics: a pure function and a row each.

A new metric is a function `(predicted, truth) -> float` and one line in `METRICS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from raybench.scoring.boundary import hausdorff
from raybench.scoring.overlap import dice, iou
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


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("iou", iou, True, (0.0, 1.0), "", "both empty: 1.0; one empty: 0.0"),
        Metric("dice", dice, True, (0.0, 1.0), "", "both empty: 1.0; one empty: 0.0"),
        Metric(
            "hausdorff", hausdorff, False, (0.0, math.inf), "pixels", "any empty: NaN, left out"
        ),
    )
}
"""Every localisation metric by name, in the order of the report's columns."""


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
