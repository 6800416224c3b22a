"""What explainers' settings achieve beside what they cost: every setting tried, and the front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from raybench.report.style import COLOURS, clean, need
from raybench.scoring.selection import on_front

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "h", "<", ">")
_SPREAD = 0.4
_HEIGHT, _LINE, _MOST_COLUMNS = 4.1, 0.19, 6
"""Inches of the panels and of a line of the legend; names beside each other."""


def pareto(trials: pd.DataFrame) -> Figure:
    """Mean IoU on Val against forward passes an image, a panel a model, a colour an explainer.

    Up and to the left is better. Grey steps are the front of all: for so many passes, the highest
    IoU of any explainer; thin steps that of one explainer's settings. Colours come again with
    another marker, so that the two together are an explainer's own. Winners are ringed, the
    settings of the sweep file are black crosses. Explainers of equal cost stand beside each other,
    a little to the left and right of it.

    Args:
        trials: a row a setting tried; `trial_id`, `backbone` (empty for explainers that ask no
            model, which stand in every panel), `explainer`, `number` (0: the sweep file's),
            `val_iou` (NaN: failed, not drawn), `n_forward`, `winner`.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    need(trials, ["trial_id", "backbone", "explainer", "number", "val_iou", "n_forward", "winner"])
    trials = trials.fillna({"backbone": ""})
    explainers = list(dict.fromkeys(trials["explainer"]))
    shared = trials[trials["backbone"] == ""]
    models = [
        (f"{b} ({t})", part) for (t, b), part in trials.groupby(["trial_id", "backbone"]) if b
    ]
    panels = models or [("no model", shared.iloc[:0])]
    figure = Figure(figsize=(1.6 + 4.2 * len(panels), _HEIGHT), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (title, part) in zip(grid, panels, strict=True):
        _panel(ax, pd.concat([part, shared]), explainers)
        ax.set_title(title, fontsize=10)
    _scale(grid[0], float(trials["n_forward"].max()))
    grid[0].set_ylabel("mean IoU on Val")
    _legend(figure, _handles(explainers))
    return figure


def _panel(ax: Axes, trials: pd.DataFrame, explainers: list[str]) -> None:
    good = trials[trials["val_iou"].notna()]
    most = max(good["n_forward"].max(), 1.0)
    _front(ax, good, 0.0, most, color="#BBBBBB", linewidth=2.5)
    for number, explainer in enumerate(explainers):
        part = good[good["explainer"] == explainer]
        offset = _SPREAD * (2 * (number + 0.5) / len(explainers) - 1)
        x = place(part["n_forward"].to_numpy(float)) + offset
        y = part["val_iou"].to_numpy(float)
        style: Any = {"color": colour(number), "marker": MARKERS[number % len(MARKERS)]}
        _front(ax, part, offset, part["n_forward"].max(), color=colour(number), linewidth=0.9)
        ax.scatter(x, y, s=16, alpha=0.55, linewidths=0, **style)
        won, own = part["winner"].to_numpy(bool), part["number"].to_numpy() == 0
        ax.scatter(x[own], y[own], s=34, color="black", marker="x", linewidths=1.3, zorder=4)
        ring: Any = {"facecolors": "none", "edgecolors": colour(number)}
        ax.scatter(x[won], y[won], s=130, linewidths=1.8, zorder=3, **ring)
        # A ring's colour is that of many explainers: the marker in it says whose.
        ax.scatter(x[won], y[won], s=30, linewidths=0, zorder=3, **style)
    ax.set_xlabel("forward passes an image")
    ax.grid(axis="y", color="#EEEEEE")
    ax.set_axisbelow(True)
    clean(ax)


def _front(ax: Axes, good: pd.DataFrame, offset: float, right: float, **style: Any) -> None:
    """Steps through what is on the front, on to so many passes."""
    y, passes = good["val_iou"].to_numpy(float), good["n_forward"].to_numpy(float)
    best = on_front(y, passes)
    order = np.argsort(passes[best])
    x, y = place(passes[best][order]) + offset, y[best][order]
    if len(x):
        end = float(place(np.array([right]))[0]) + offset
        ax.step([*x, end], [*y, y[-1]], where="post", zorder=0, **style)


def place(passes: np.ndarray) -> np.ndarray:
    """Where forward passes stand on the axis: by their logarithm to base 2, and 0 beside 1."""
    return np.asarray(np.where(passes < 1, -1.5 + passes, np.log2(np.maximum(passes, 1))))


def colour(number: int) -> str:
    """The colour of the explainer of this number."""
    coloured = len(COLOURS) - 1  # black crosses are the sweep file's own settings
    return COLOURS[number % coloured]


def _scale(ax: Axes, most: float) -> None:
    ticks = [0, *(t for t in (1, 4, 16, 64, 256, 1024, 4096, 16384) if t < 1.5 * max(most, 1))]
    ax.xaxis.set_major_locator(FixedLocator([float(place(np.array([t]))[0]) for t in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda _, position: f"{ticks[position or 0]:,}"))


def _legend(figure: Figure, handles: list[Any]) -> None:
    """Below the panels, in as many columns as fit the figure, which grows by the lines it takes."""
    width, _ = figure.get_size_inches()
    for columns in range(min(_MOST_COLUMNS, len(handles)), 0, -1):
        figure.set_size_inches(width, _HEIGHT + _LINE * -(-len(handles) // columns))
        legend = figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )
        figure.draw_without_rendering()
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _handles(explainers: list[str]) -> list[Any]:
    found: list[Any] = [
        Line2D([], [], color=colour(n), marker=MARKERS[n % len(MARKERS)], linestyle="", label=name)
        for n, name in enumerate(explainers)
    ]
    ring: Any = {"markerfacecolor": "none", "markeredgecolor": "#555555", "markersize": 10}
    found.append(Line2D([], [], marker="o", linestyle="", label="winner", **ring))
    found.append(Line2D([], [], color="black", marker="x", linestyle="", label="as set"))
    found.append(Line2D([], [], color="#BBBBBB", linewidth=2.5, label="front of all"))
    return found
