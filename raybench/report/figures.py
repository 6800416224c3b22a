"""The figures of the study, each a function from plain data to a matplotlib `Figure`.

Figures are made with the object interface and never shown; `png` turns one into bytes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raybench.report.bars import REFERENCES, explainer_bars
from raybench.report.classification import (
    confusion_matrix,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
)
from raybench.report.panel import PanelCell, PanelRow, explanation_panel
from raybench.report.pareto import pareto
from raybench.report.severity import SeverityPanel, severity_scatter
from raybench.report.style import COLOURS, clean, need, png

__all__ = [
    "REFERENCES",
    "PanelCell",
    "PanelRow",
    "SeverityPanel",
    "confusion_matrix",
    "explainer_bars",
    "explanation_panel",
    "pareto",
    "png",
    "precision_recall_curves",
    "reliability_diagram",
    "roc_curves",
    "severity_scatter",
    "training_curves",
]


def training_curves(epochs: pd.DataFrame, chosen: Collection[str] = ()) -> Figure:
    """Loss and accuracy over epochs, a row of two panels a backbone.

    In colour stands the chosen trial, or where none of the backbone's is named that of the highest
    accuracy on Val in any epoch (then of the lowest loss there); the other trials' curves on Val
    are grey behind it. Its phases are parted by lines, and named by what they unfreeze where there
    is such a column, by number otherwise.

    Args:
        epochs: a row an epoch; `trial_id`, `backbone`, `epoch` (counted on through the phases),
            `phase`, `train_loss`, `val_loss`, `train_accuracy`, `val_accuracy`, and as may be
            `unfreeze`.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    curves = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    need(epochs, ["trial_id", "backbone", "epoch", "phase", *curves])
    backbones = list(epochs.sort_values("epoch").groupby("backbone", sort=False))
    figure = Figure(figsize=(8, 2.5 * len(backbones) + 0.6), layout="constrained")
    grid = figure.subplots(len(backbones), 2, squeeze=False, sharey="col")
    for axes, (backbone, rows) in zip(grid, backbones, strict=True):
        named = rows[rows["trial_id"].isin(chosen)]
        ranked = (rows if named.empty else named).sort_values(
            ["val_accuracy", "val_loss"], ascending=[False, True]
        )
        best = ranked["trial_id"].iloc[0]
        for ax, measure in zip(axes, ("loss", "accuracy"), strict=True):
            _curves(ax, rows, best, measure)
        n_others = rows["trial_id"].nunique() - 1
        others = f" (grey: {n_others} more)" if n_others else ""
        axes[0].set_title(f"{backbone}, trial {best}{others}", loc="left", pad=16, fontsize=11)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _curves(ax: Axes, rows: pd.DataFrame, best: Any, measure: str) -> None:
    for trial_id, trial in rows.groupby("trial_id", sort=False):
        if trial_id != best:
            ax.plot(trial["epoch"], trial[f"val_{measure}"], color="#CCCCCC", linewidth=0.8)
    shown = rows[rows["trial_id"] == best]
    for part, name, colour in zip(
        ("train", "val"), ("training", "validation"), COLOURS[:2], strict=True
    ):
        y = shown[f"{part}_{measure}"]
        ax.plot(shown["epoch"], y, color=colour, marker=".", markersize=4, label=name)
    ax.set_ylabel(measure)
    ax.set_xlim(rows["epoch"].min() - 0.5, rows["epoch"].max() + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _mark_phases(ax, shown)
    clean(ax)


def _mark_phases(ax: Axes, rows: pd.DataFrame) -> None:
    starts = rows[rows["phase"] != rows["phase"].shift()]
    column = "unfreeze" if "unfreeze" in rows else "phase"
    low, high = ax.get_xlim()
    edges = [float(epoch) - 0.5 for epoch in starts["epoch"]] + [float(rows["epoch"].max()) + 0.5]
    for phase, left, right in zip(starts[column], edges[:-1], edges[1:], strict=True):
        if left > edges[0]:
            ax.axvline(left, color="#999999", linewidth=1, linestyle=":")
        # Some 50 letters fit above the panel: a short phase gets the beginning of its name.
        room = max(1, int(50 * (right - left) / (high - low)))
        ax.annotate(
            str(phase)[:room],
            ((left + right) / 2, 1.01),
            xycoords=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=7,
            color="#555555",
        )
