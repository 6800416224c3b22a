"""Classifiers that are right, and right for the right reason: accuracy beside localisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raybench.report.style import COLOURS, clean, need
from raybench.scoring.selection import on_front


def trials_front(trials: pd.DataFrame, n_images: int, what: str) -> Figure:
    """Localisation on Val against accuracy on Val, a point a trial, a panel a backbone.

    Up and to the right is better. The grey steps are the Pareto front; the band holds the
    trials whose accuracy is within one standard error of the best, among which localisation
    decides; the chosen one is ringed.

    Args:
        trials: a row a trial; `trial_id`, `backbone`, `val_accuracy`, `val_localisation`, `best`.
            Those without both figures are not drawn.
        n_images: Val images, which the band's width depends on.
        what: the second figure in words, for the axis.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    need(trials, ["trial_id", "backbone", "val_accuracy", "val_localisation", "best"])
    good = trials.dropna(subset=["val_accuracy", "val_localisation"])
    backbones = list(dict.fromkeys(trials["backbone"]))
    figure = Figure(figsize=(1.0 + 3.6 * len(backbones), 3.8), layout="constrained")
    grid = figure.subplots(1, len(backbones), squeeze=False, sharex=True, sharey=True)[0]
    for number, (ax, backbone) in enumerate(zip(grid, backbones, strict=True)):
        _panel(ax, good[good["backbone"] == backbone], n_images, COLOURS[number % len(COLOURS)])
        ax.set_title(backbone, fontsize=10)
        ax.set_xlabel("accuracy on Val")
    grid[0].set_ylabel(what)
    return figure


def _panel(ax: Axes, part: pd.DataFrame, n_images: int, colour: str) -> None:
    ax.grid(color="#EEEEEE")
    ax.set_axisbelow(True)
    clean(ax)
    if part.empty:
        return
    x, y = part["val_accuracy"].to_numpy(float), part["val_localisation"].to_numpy(float)
    top = float(x.max())
    error = math.sqrt(top * (1 - top) / n_images)
    ax.axvspan(top - error, top, color="#F1EBDD", zorder=0, linewidth=0)
    front = on_front(y, -x)
    order = np.argsort(x[front])
    ax.step(x[front][order], y[front][order], where="pre", color="#BBBBBB", linewidth=2.0, zorder=1)
    ax.scatter(x, y, s=34, color=colour, zorder=2)
    best = part["best"].to_numpy(bool)
    ring: Any = {"facecolors": "none", "edgecolors": colour, "linewidths": 1.8}
    ax.scatter(x[best], y[best], s=150, zorder=3, **ring)
    for name, at, up in zip(part["trial_id"], x, y, strict=True):
        ax.annotate(
            name, (at, up), xytext=(5, 5), textcoords="offset points", fontsize=7, color="#555555"
        )
