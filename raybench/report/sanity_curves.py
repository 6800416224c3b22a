"""Sanity: how alike maps stay as a model is randomised from its output layer down."""

from __future__ import annotations

from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybench.report.style import COLOURS, clean, need

Dash = Literal["-", "--", ":", "-."]
_DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")
_LABELS = "labels"
_WORDS = {_LABELS: "permuted\nlabels", "1": "last stage", "partial": "last stage"}


def sanity_curves(table: pd.DataFrame, unmoved_above: float) -> Figure:
    """Mean rank correlation by depth, a panel a model, a colour and dash an explainer.

    A model that was trained on permuted labels is no depth: it stands apart, as points.

    Args:
        table: `backbone`, `trial_id`, `explainer`, `depth` (shallow ones first), `rank` with
            `rank_low` and `rank_high`, and `by_construction`.
        unmoved_above: drawn as a line.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    names = ["backbone", "trial_id", "explainer", "depth", "by_construction"]
    need(table, [*names, "rank", "rank_low", "rank_high"])
    asked = table[~table["by_construction"].astype(bool)]
    explainers = list(dict.fromkeys(asked["explainer"]))
    models = list(table.groupby(["backbone", "trial_id"], sort=False))
    figure = Figure(figsize=(5.2 * len(models) + 0.6, 4.2), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False, sharey="row")[0]
    for ax, ((backbone, trial_id), rows) in zip(axes, models, strict=True):
        depths = ["trained", *dict.fromkeys(rows["depth"])]
        for i, explainer in enumerate(explainers):
            part = rows[rows["explainer"] == explainer].set_index("depth")
            beside = 0.4 * ((i + 1) / (len(explainers) + 1) - 0.5)
            _curve(ax, part, depths, _dash(i), COLOURS[i % len(COLOURS)], beside)
        ax.axhline(unmoved_above, color="grey", linewidth=0.8, linestyle=":")
        ax.axhline(0, color="grey", linewidth=0.5)
        ax.set_xticks(range(len(depths)), [_words(d) for d in depths], fontsize=8)
        ax.set_title(f"{backbone} ({trial_id})", fontsize=9)
        ax.set_xlabel("what of the model is drawn anew", fontsize=8)
        clean(ax)
    axes[0].set_ylabel("rank correlation with the trained model's map", fontsize=8)
    axes[0].set_ylim(-1.02, 1.02)
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], linestyle=_dash(i), label=name)
        for i, name in enumerate(explainers)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3 * len(models),
        frameon=False,
        fontsize=8,
    )
    return figure


def _curve(
    ax: Axes, part: pd.DataFrame, depths: list[str], dash: Dash, colour: str, beside: float
) -> None:
    """One explainer's; `part` is indexed by depth, `beside` keeps points apart."""
    cascade = part[part.index != _LABELS]
    x = [depths.index(depth) for depth in cascade.index]
    ax.plot([0, *x], [1.0, *cascade["rank"]], linestyle=dash, color=colour)
    ax.fill_between(x, cascade["rank_low"], cascade["rank_high"], color=colour, alpha=0.12)
    if _LABELS in part.index:
        at = part.loc[_LABELS]
        where = depths.index(_LABELS) + beside
        ax.plot([where, where], [at["rank_low"], at["rank_high"]], color=colour, linewidth=1)
        ax.plot([where], [at["rank"]], "o", color=colour, markersize=5)


def _words(depth: str) -> str:
    return f"last {depth}" if depth.isdecimal() and depth != "1" else _WORDS.get(depth, depth)


def _dash(number: int) -> Dash:
    return _DASHES[number // len(COLOURS) % len(_DASHES)]
