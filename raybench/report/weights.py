"""A surrogate's weights with their standard errors, beside the superpixels that they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.report.infection_map import AGAINST_CLASS, FOR_CLASS, superpixel_map
from raybench.report.style import clean
from raybench.types import Gray

_STRONGEST = 10


def weights_figure(
    image: Gray,
    superpixels: NDArray[np.integer[Any]],
    weights: NDArray[np.floating[Any]],
    uncertainty: NDArray[np.floating[Any]],
    title: str = "",
) -> Figure:
    """Superpixels for the class in green, against it in red, and the ten heaviest weights as dots.

    Each of the ten bears its number, from the top down, on the X-ray; a line is 1.96 standard
    errors to either side, left out where the error is not known.

    Args:
        image: uint8 `[H, W]`, on the grid of the superpixels.
        superpixels: int `[H, W]`, 0 to K - 1.
        weights, uncertainty: `[K]`, standard errors infinite where they cannot be told.
        title: above the figure.

    Raises:
        ValueError: what `superpixel_map` refuses.
    """
    heaviest = np.argsort(-np.abs(weights), kind="stable")[:_STRONGEST]
    figure = Figure(figsize=(8.4, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    left.imshow(superpixel_map(image, superpixels, weights))
    left.set_axis_off()
    for number, superpixel in enumerate(heaviest, start=1):
        rows, columns = np.nonzero(superpixels == superpixel)
        # The pixel nearest the middle: that of a bent region lies outside of it.
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        style: Any = {"color": "white", "fontsize": 9, "ha": "center", "va": "center"}
        box = {"boxstyle": "circle,pad=0.15", "facecolor": "#00000099", "edgecolor": "none"}
        left.text(columns[nearest], rows[nearest], str(number), bbox=box, **style)
    for number, superpixel in enumerate(heaviest, start=1):
        weight, error = float(weights[superpixel]), float(uncertainty[superpixel])
        colour = tuple(c / 255 for c in (FOR_CLASS if weight > 0 else AGAINST_CLASS))
        reach = 1.96 * error if np.isfinite(error) else 0.0
        right.errorbar(weight, number, xerr=reach, fmt="o", color=colour, capsize=3)
    right.axvline(0, color="#8C8C8C", linewidth=1)
    right.set_yticks(range(1, len(heaviest) + 1))
    right.invert_yaxis()
    right.set(xlabel="weight, with 1.96 standard errors", ylabel="superpixel")
    clean(right)
    figure.suptitle(title, fontsize=11)
    return figure
