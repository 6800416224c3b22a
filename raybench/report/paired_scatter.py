"""Two explainers image by image: a dot an image, and the line where both are as good."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.report.style import COLOURS, clean, wrapped


def paired_scatter(
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    names: tuple[str, str],
    metric: str,
    title: str = "",
) -> Figure:
    """The first explainer's score over the second's; above the line the first is better.

    Args:
        scores: float64 `[n]` each, in [0, 1], in one order of images; a pair with NaN is left out.
        names: of the two.
        metric: what the scores are, for the axes.
        title: above the figure, in lines of 60 letters.

    Raises:
        ValueError: lengths differ, or no image has both.
    """
    ours, theirs = scores
    if ours.shape != theirs.shape:
        raise ValueError(f"expected equal lengths, but got {ours.shape} and {theirs.shape}")
    there = ~np.isnan(ours - theirs)
    if not there.any():
        raise ValueError("expected at least one image with both scores, but there is none")
    a, b = ours[there], theirs[there]
    figure = Figure(figsize=(4.6, 4.9), layout="constrained")
    ax = figure.subplots()
    end = max(1.08 * float(max(a.max(), b.max())), 0.05)
    ax.plot([0, end], [0, end], color="#8C8C8C", linewidth=1, zorder=1)
    style: Any = {"edgecolor": "white", "linewidth": 0.5, "zorder": 3, "clip_on": False}
    ax.scatter(b, a, s=26, color=COLOURS[0], alpha=0.75, **style)
    ax.plot(b.mean(), a.mean(), marker="+", markersize=16, markeredgewidth=2, color="black")
    counts = (f"{(a > b).sum()} of {len(a)} images above the line", "+ the means of both")
    ax.text(0.03 * end, 0.97 * end, "\n".join(counts), va="top", fontsize=9)
    ax.set(xlim=(0, end), ylim=(0, end), aspect="equal")
    ax.set_xlabel(f"{metric}, {names[1]}")
    ax.set_ylabel(f"{metric}, {names[0]}")
    clean(ax)
    if title:
        figure.suptitle(wrapped(title, 60), fontsize=9)
    return figure
