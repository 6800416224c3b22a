"""What a mean hides: the scores image by image, and the scores beside what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raybench.report.bars import GREYS, SUPERVISED_COLOUR
from raybench.report.style import COLOURS, clean, need, spread_labels, wrapped


def distributions(
    scores: pd.DataFrame, references: Sequence[str], supervised: str | None = None
) -> Figure:
    """IoU of every image as points behind a box, a panel a backbone, best median on top.

    Args:
        scores: a row a backbone, explainer and image: `backbone`, `explainer`, `iou` (NaN is left
            out), of one threshold rule. What asks no model may stand under every backbone.
        references: explainers that look at no model; grey.
        supervised: the network that learned from masks; None: there is none.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    need(scores, ["backbone", "explainer", "iou"])
    scores = scores[scores["iou"].notna()]
    own = scores[scores["explainer"] != supervised]
    backbones = list(dict.fromkeys(own["backbone"]))
    learned = scores[scores["explainer"] == supervised].assign(backbone=None)
    most = max((own[own["backbone"] == b]["explainer"].nunique() for b in backbones), default=1)
    size = (1.8 + 3.6 * len(backbones), 1.1 + 0.42 * (most + 1))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, max(1, len(backbones)), squeeze=False, sharex=True)[0]
    for ax, backbone in zip(grid, backbones, strict=False):
        _boxes(ax, pd.concat([own[own["backbone"] == backbone], learned]), references, supervised)
        ax.set_title(str(backbone), fontsize=10)
        ax.set_xlabel("IoU of an image")
        ax.set_xlim(-0.02, 1.02)
    return figure


def _boxes(
    ax: Axes, scores: pd.DataFrame, references: Sequence[str], supervised: str | None
) -> None:
    medians = scores.groupby("explainer")["iou"].median().sort_values()
    rng = np.random.default_rng(0)
    for place, explainer in enumerate(medians.index):
        values = scores[scores["explainer"] == explainer]["iou"].to_numpy(float)
        colour = COLOURS[0]
        if explainer in references:
            colour = GREYS[0]
        elif explainer == supervised:
            colour = SUPERVISED_COLOUR[0]
        ax.scatter(
            values, place + rng.uniform(-0.28, 0.28, len(values)), s=7, color=colour, alpha=0.4
        )
        style: dict[str, Any] = {"color": "black", "linewidth": 1}
        ax.boxplot(
            values,
            positions=[place],
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            boxprops=style,
            whiskerprops=style,
            capprops=style,
            medianprops={"color": colour, "linewidth": 3},
        )
    ax.set_yticks(range(len(medians)), [wrapped(str(n), 22) for n in medians.index], fontsize=8)
    ax.grid(axis="x", color="#EEEEEE")
    ax.set_axisbelow(True)
    clean(ax)


def cost(board: pd.DataFrame, references: Sequence[str], rule: str) -> Figure:
    """Mean IoU with its interval against seconds an image, a panel a backbone.

    Args:
        board: rows of the leaderboard of one threshold rule: `backbone`, `explainer`, `iou`,
            `iou_low`, `iou_high`, `seconds`, `n_forward`.
        references: explainers that look at no model; grey.
        rule: the threshold rule, for the title.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    need(board, ["backbone", "explainer", "iou", "iou_low", "iou_high", "seconds", "n_forward"])
    board = board[board["iou"].notna()]
    backbones = list(dict.fromkeys(board["backbone"]))
    figure = Figure(figsize=(1.2 + 4.4 * max(1, len(backbones)), 4), layout="constrained")
    grid = figure.subplots(1, max(1, len(backbones)), squeeze=False, sharex=True, sharey=True)[0]
    for ax, backbone in zip(grid, backbones, strict=False):
        part = board[board["backbone"] == backbone]
        for row in part.to_dict("records"):
            grey = row["explainer"] in references
            x, y = max(float(row["seconds"]), 1e-4), float(row["iou"])
            colour = GREYS[0] if grey else COLOURS[0]
            ax.plot([x, x], [row["iou_low"], row["iou_high"]], color=colour, linewidth=1)
            ax.scatter([x], [y], color=colour, s=30, zorder=3)
            passes = "" if grey else f", {row['n_forward']:,.0f} passes"
            text = f"{row['explainer']}{passes}"
            ax.annotate(text, (x, y), (5, 3), textcoords="offset points", fontsize=7)
        ax.set_xscale("log")
        ax.set_title(f"{backbone}, threshold {rule}", fontsize=10)
        ax.set_xlabel("seconds of work an image")
        ax.margins(x=0.35)
        clean(ax)
    grid[0].set_ylabel("mean IoU on Test")
    spread_labels(figure)
    return figure
