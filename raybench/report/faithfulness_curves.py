"""Faithfulness curves: what a model says while pixels go, or come, in the order of each map."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybench.report.style import COLOURS, clean, need

_PANELS = (
    ("deletion", "shares", "pixels deleted, most relevant first"),
    ("insertion", "shares", "pixels inserted, most relevant first"),
    ("morf", "road_shares", "pixels imputed, most relevant first (MoRF)"),
    ("lerf", "road_shares", "pixels imputed, least relevant first (LeRF)"),
)
_BETTER = {"deletion": "lower", "insertion": "higher", "morf": "lower", "lerf": "higher"}
_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")


def faithfulness_curves(per_image: pd.DataFrame) -> Figure:
    """Mean curves over images, a row of four panels a model, a colour and dash an explainer.

    Args:
        per_image: a row an image and explainer: `backbone`, `trial_id`, `explainer`, and arrays
            `shares`, `deletion`, `insertion`, `road_shares`, `morf`, `lerf`.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    names = ["backbone", "trial_id", "explainer"]
    need(per_image, [*names, "shares", "road_shares", *(name for name, _, _ in _PANELS)])
    explainers = list(dict.fromkeys(per_image["explainer"]))
    models = list(per_image.groupby(["backbone", "trial_id"], sort=False))
    figure = Figure(figsize=(15, 3.2 * len(models) + 0.8), layout="constrained")
    grid = figure.subplots(len(models), len(_PANELS), squeeze=False, sharey="row")
    for axes, ((backbone, trial_id), rows) in zip(grid, models, strict=True):
        for ax, (name, shares, title) in zip(axes, _PANELS, strict=True):
            _panel(ax, rows, explainers, name, shares)
            ax.set_xlabel(f"share of {title}", fontsize=8)
            ax.set_title(f"{name} ({_BETTER[name]} is better)", fontsize=9)
        axes[0].set_ylabel(f"{backbone} ({trial_id})\nprobability of the class", fontsize=8)
    handles = [
        Line2D([], [], color=_colour(i), linestyle=_dash(i), label=name)
        for i, name in enumerate(explainers)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, explainers: list[str], name: str, shares: str) -> None:
    for i, explainer in enumerate(explainers):
        part = rows[rows["explainer"] == explainer]
        if len(part):
            mean = np.stack(list(part[name])).mean(axis=0)
            ax.plot(part[shares].iloc[0], mean, color=_colour(i), linestyle=_dash(i), linewidth=1.4)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1.02)
    clean(ax)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _dash(number: int) -> Literal["-", "--", ":", "-."]:
    """Colours come again with another dash."""
    return _DASHES[number // len(COLOURS) % len(_DASHES)]
