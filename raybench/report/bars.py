"""Bars of explainers against each other and against the references (PROTOCOL.md, 3 and 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from raybench.report.style import COLOURS, clean, need, wrapped

REFERENCES = ("whole_lung", "centre_prior", "random_superpixels", "intensity", "edges")
"""Explainers that look at no model: what any localisation figure must be held against."""

GREYS = ("#8C8C8C", "#C4C4C4", "#E2E2E2", "#6B6B6B", "#A9A9A9")


SUPERVISED_COLOUR = ("#009E73", "#7CCDB5", "#BFE6DA", "#006B4E", "#4DBB9B")


def explainer_bars(
    leaderboard: pd.DataFrame,
    references: Sequence[str] = REFERENCES,
    supervised: str | None = None,
) -> Figure:
    """Mean IoU and Dice of every explainer, a column of panels a backbone, a bar a threshold rule.

    The references are grey and hatched, below the others, and a dashed line carries the best of
    them through the panel. A reference whose row names no backbone that an explainer was run with
    stands in every column.

    Args:
        leaderboard: `backbone`, `explainer`, `threshold_rule`, `n`, `iou`, `dice`, `hausdorff`, one
            row each combination. Where `iou_low` and `iou_high` (`dice_low`, `dice_high`) are
            there, they are drawn as the interval.
        references: explainers that look at no model.
        supervised: the row of the network that learned from masks, drawn apart below all others,
            in every column; None: there is none.

    Raises:
        ValueError: a column is missing, there are no rows, or a combination comes twice.
    """
    key = ["backbone", "explainer", "threshold_rule"]
    need(leaderboard, [*key, "n", "iou", "dice", "hausdorff"])
    leaderboard = leaderboard.fillna({"backbone": ""})
    if leaderboard.duplicated(key).any():
        raise ValueError(f"expected one row each {key}, but some come twice: pick one study first")
    learned = leaderboard["explainer"] == supervised
    known = leaderboard["explainer"].isin(list(references)) | learned
    shown = leaderboard if known.all() else leaderboard[~known]
    backbones = list(dict.fromkeys(shown["backbone"]))
    ordered = pd.concat([leaderboard[~known], leaderboard[known & ~learned], leaderboard[learned]])
    explainers = list(dict.fromkeys(ordered["explainer"]))
    rules = list(dict.fromkeys(leaderboard["threshold_rule"]))
    height = 1.0 + 0.2 * len(explainers) * (len(rules) + 0.5)
    size = (2.2 + 2.3 * len(backbones), 2 * height + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2, len(backbones), squeeze=False, sharex="row", sharey=True)
    for axes, metric in zip(grid, ("iou", "dice"), strict=True):
        for ax, backbone in zip(axes, backbones, strict=True):
            here = leaderboard["backbone"] == backbone
            stray = known & ~leaderboard["backbone"].isin(backbones)
            _bars(ax, leaderboard[here | stray], metric, explainers, rules, references, supervised)
            ax.set_title(str(backbone), fontsize=10)
            ax.set_xlabel({"iou": "mean IoU", "dice": "mean Dice"}[metric])
        longest = max(float(ax.dataLim.x1) for ax in axes)
        axes[0].set_xlim(0, 1.25 * longest if longest > 0 else 1)
    grid[0, 0].invert_yaxis()
    kinds = (bool((known & ~learned).any()), bool(learned.any()))
    _bar_legend(figure, rules, sorted(set(leaderboard["n"])), *kinds)
    return figure


def _bars(
    ax: Axes,
    board: pd.DataFrame,
    metric: str,
    explainers: Sequence[str],
    rules: Sequence[str],
    references: Sequence[str],
    supervised: str | None,
) -> None:
    thick = 0.8 / len(rules)
    best = 0.0
    for _, row in board.iterrows():
        explainer, value = row["explainer"], float(row[metric])
        rule = rules.index(row["threshold_rule"])
        y = explainers.index(explainer) + (rule - (len(rules) - 1) / 2) * thick
        if math.isnan(value):
            _value(ax, 0, y, "no value")
            continue
        if explainer in references:
            style: Any = {"color": GREYS[rule % len(GREYS)], "hatch": "////", "edgecolor": "white"}
            best = max(best, value)
        elif explainer == supervised:
            shade = SUPERVISED_COLOUR[rule % len(SUPERVISED_COLOUR)]
            style = {"color": shade, "hatch": "....", "edgecolor": "white"}
        else:
            style = {"color": COLOURS[rule % len(COLOURS)]}
        ax.barh(y, value, 0.92 * thick, linewidth=0, **style)
        end = value
        if f"{metric}_low" in row and f"{metric}_high" in row:
            low, high = float(row[f"{metric}_low"]), float(row[f"{metric}_high"])
            end = max(value, high)
            ax.plot([low, high], [y, y], color="black", linewidth=1)
        _value(ax, end, y, f"{value:.2f}")
    if best > 0:
        ax.axvline(best, color="#555555", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(explainers)), [wrapped(name, 22) for name in explainers], fontsize=8)
    ax.tick_params(axis="y", length=0)
    clean(ax)


def _value(ax: Axes, x: float, y: float, text: str) -> None:
    halo = [withStroke(linewidth=2, foreground="white")]
    style: Any = {"va": "center", "fontsize": 7, "path_effects": halo}
    ax.annotate(text, (x, y), (3, 0), textcoords="offset points", **style)


def _bar_legend(
    figure: Figure, rules: Sequence[str], counts: list[Any], references: bool, supervised: bool
) -> None:
    handles: list[Any] = [
        Patch(color=COLOURS[index % len(COLOURS)], label=f"threshold: {rule}")
        for index, rule in enumerate(rules)
    ]
    if references:
        style: Any = {"facecolor": GREYS[0], "edgecolor": "white", "hatch": "////"}
        handles.append(Patch(label="reference, no model", **style))
        handles.append(Line2D([], [], color="#555555", linestyle="--", label="best reference"))
    if supervised:
        style = {"facecolor": SUPERVISED_COLOUR[0], "edgecolor": "white", "hatch": "...."}
        handles.append(Patch(label="U-Net that learned from masks", **style))
    spread = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if figure.get_figwidth() < 7 else len(handles),
        frameon=False,
        fontsize=8,
        title=f"means over {spread} images",
        title_fontsize=8,
    )
