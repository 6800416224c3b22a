"""Classifiers that are right, and right for the right reason: accuracy beside localisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from raybench.report.style import COLOURS, clean, need
from raybench.scoring.selection import on_front, standard_error

_BAND, _FRONT = "#F1EBDD", "#BBBBBB"


def trials_front(trials: pd.DataFrame, n_images: int, what: str, give_up: float = 0.0) -> Figure:
    """Localisation on Val against accuracy on Val, a point a trial, a panel a backbone.

    Up and to the right is better. The grey steps are the Pareto front; the band holds the
    trials whose accuracy is within one standard error of the best, among which localisation
    decides; the chosen one is ringed. The front and the chosen ones are named.

    Args:
        trials: a row a trial; `trial_id`, `backbone`, `val_accuracy`, `val_localisation`, `best`.
            Those without both figures are not drawn.
        n_images: Val images, which the band's width depends on.
        what: the second figure in words, for the axis.
        give_up: the band is at least so wide.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    need(trials, ["trial_id", "backbone", "val_accuracy", "val_localisation", "best"])
    good = trials.dropna(subset=["val_accuracy"])
    backbones = list(dict.fromkeys(trials["backbone"]))
    figure = Figure(figsize=(max(1.0 + 3.6 * len(backbones), 6.0), 4.0), layout="constrained")
    grid = figure.subplots(1, len(backbones), squeeze=False, sharex=True, sharey=True)[0]
    for number, (ax, backbone) in enumerate(zip(grid, backbones, strict=True)):
        part, colour = good[good["backbone"] == backbone], COLOURS[number % len(COLOURS)]
        _panel(ax, part, n_images, give_up, colour)
        ax.set_title(backbone, fontsize=10)
        ax.set_xlabel("accuracy on Val")
    grid[0].set_ylabel(what)
    figure.legend(
        handles=_handles(give_up), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    return figure


def _handles(give_up: float) -> list[Any]:
    ring: Any = {"markerfacecolor": "none", "markeredgecolor": "#555555", "markersize": 10}
    band = "within one standard error of the highest accuracy"
    if give_up:
        band += f", or within {give_up:g}"
    return [
        Line2D([], [], color=_FRONT, linewidth=2.0, label="Pareto front"),
        Patch(color=_BAND, label=band),
        Line2D([], [], marker="o", linestyle="", label="chosen", **ring),
    ]


def _panel(ax: Axes, part: pd.DataFrame, n_images: int, give_up: float, colour: str) -> None:
    ax.grid(color="#EEEEEE")
    ax.set_axisbelow(True)
    clean(ax)
    if part.empty:
        return
    top = float(part["val_accuracy"].max())  # of all trials, as the choice has it
    part = part.dropna(subset=["val_localisation"])
    x, y = part["val_accuracy"].to_numpy(float), part["val_localisation"].to_numpy(float)
    margin = max(standard_error(top, n_images), give_up)
    ax.axvspan(top - margin, top, color=_BAND, zorder=0, linewidth=0)
    front = on_front(y, -x)
    order = np.argsort(x[front])
    ax.step(x[front][order], y[front][order], where="pre", color=_FRONT, linewidth=2.0, zorder=1)
    ax.scatter(x, y, s=34, color=colour, zorder=2)
    best = part["best"].to_numpy(bool)
    ring: Any = {"facecolors": "none", "edgecolors": colour, "linewidths": 1.8}
    ax.scatter(x[best], y[best], s=150, zorder=3, **ring)
    named = front | best
    for name, at, up in zip(part["trial_id"][named], x[named], y[named], strict=True):
        ax.annotate(
            name, (at, up), xytext=(5, 5), textcoords="offset points", fontsize=7, color="#555555"
        )
