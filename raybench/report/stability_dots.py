"""Stability: how alike an explainer's maps of one image are, over seeds and over noise."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybench.report.style import COLOURS, clean, need, wrapped

_OVER = {"seeds": (COLOURS[0], "o"), "noise": (COLOURS[1], "D")}
_PANELS = (("rank", "maps: rank correlation"), ("jaccard", "masks: Jaccard index"))
_BY_CONSTRUCTION = "grey"


def stability_dots(table: pd.DataFrame, rule: str) -> Figure:
    """Means with their intervals, a row of panels a model, a line an explainer.

    What is 1 by construction is grey and hollow: nobody asked. The Jaccard indices are those of one
    threshold rule's masks.

    Args:
        table: `backbone`, `trial_id`, `explainer`, `over` (`seeds`, `noise`), `threshold_rule`,
            `by_construction`, and `rank` and `jaccard` with their `_low` and `_high`.
        rule: whose masks.

    Raises:
        ValueError: a column is missing, or the rule has no rows.
    """
    ends = [f"{name}{end}" for name, _ in _PANELS for end in ("", "_low", "_high")]
    keys = ["backbone", "trial_id", "explainer", "over", "threshold_rule", "by_construction"]
    need(table, [*keys, *ends])
    table = table[table["threshold_rule"] == rule]
    need(table, keys)
    models = list(table.groupby(["backbone", "trial_id"], sort=False))
    most = max(rows["explainer"].nunique() for _, rows in models)
    height = (0.42 * most + 0.9) * len(models) + 0.4
    figure = Figure(figsize=(8.6, height), layout="constrained")
    grid = figure.subplots(len(models), 2, squeeze=False, sharey="row", sharex="col")
    for line, ((backbone, trial_id), rows) in zip(grid, models, strict=True):
        for ax, (column, words) in zip(line, _PANELS, strict=True):
            _panel(ax, rows, column)
            said = f"{words}, rule {rule}" if column == "jaccard" else words
            ax.set_title(f"{backbone} ({trial_id})\n{said}", fontsize=9)
    lowest = float(table["rank_low"].min())
    grid[0][0].set_xlim(min(-0.1, lowest - 0.05), 1.08)
    grid[0][1].set_xlim(-0.03, 1.04)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, column: str) -> None:
    explainers = list(dict.fromkeys(rows["explainer"]))
    for row in rows.to_dict("records"):
        colour, marker = _OVER[row["over"]]
        y = explainers.index(row["explainer"]) + (-0.14 if row["over"] == "seeds" else 0.14)
        if row["by_construction"]:
            ax.plot([row[column]], [y], marker, color=_BY_CONSTRUCTION, mfc="none", markersize=5)
            continue
        ax.plot([row[f"{column}_low"], row[f"{column}_high"]], [y, y], color=colour, linewidth=1.2)
        ax.plot([row[column]], [y], marker, color=colour, markersize=5)
    ax.axvline(0, color="grey", linewidth=0.5)
    ax.set_yticks(range(len(explainers)), [wrapped(e, 22) for e in explainers], fontsize=8)
    ax.set_ylim(len(explainers) - 0.5, -0.5)
    ax.grid(axis="x", linewidth=0.3)
    clean(ax)


def _legend() -> list[Line2D]:
    drawn = [
        Line2D([], [], color=colour, marker=marker, linewidth=1.2, label=f"over {over}")
        for over, (colour, marker) in _OVER.items()
    ]
    fixed = Line2D([], [], color=_BY_CONSTRUCTION, marker="o", mfc="none", linewidth=0)
    fixed.set_label("no seed: 1 by construction")
    return [*drawn, fixed]
