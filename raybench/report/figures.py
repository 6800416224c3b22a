"""The figures of the study, each a function from plain data to a matplotlib `Figure`.

Figures are made with the object interface and never shown; `png` turns one into bytes. Colours are
Okabe and Ito's, which common kinds of colour blindness tell apart.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from sklearn.metrics import auc

from raybench.report.infection_map import Rgb
from raybench.scoring.classification import check_predictions, roc
from raybench.types import Gray, Mask

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
GREYS = ("#8C8C8C", "#C4C4C4", "#E2E2E2")

REFERENCES = ("whole_lung", "centre_prior", "random_superpixels")
"""Explainers that look at no model: what any localisation figure must be held against."""

OUTLINE = "#FFFFFF"
LUNGS = "#56B4E9"


@dataclass(frozen=True, slots=True)
class PanelCell:
    """One picture of the explanation panel.

    Attributes:
        title: the column's heading, usually the explainer's name.
        picture: uint8 `[h, w, 3]`; another size than the X-ray's is stretched onto it.
        iou: printed beneath; None prints nothing.
        note: printed beneath, after the IoU.
    """

    title: str
    picture: Rgb
    iou: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One image of the explanation panel.

    Attributes:
        name: printed at the left.
        image: the X-ray, uint8 `[H, W]`.
        lung_mask: bool `[H, W]`, or None; dotted outline on the X-ray.
        infection_mask: bool `[H, W]`, or None; solid outline on every picture.
        cells: left to right, as many in every row.
    """

    name: str
    image: Gray
    lung_mask: Mask | None
    infection_mask: Mask | None
    cells: tuple[PanelCell, ...]


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def training_curves(epochs: pd.DataFrame) -> Figure:
    """Loss and accuracy over epochs, a row of two panels a trial; phases are parted by lines.

    Args:
        epochs: a row an epoch; `trial_id`, `backbone`, `epoch` (counted on through the phases),
            `phase`, `train_loss`, `val_loss`, `train_accuracy`, `val_accuracy`. Trials are drawn in
            the order in which they appear.

    Raises:
        ValueError: a column is missing or there are no rows.
    """
    measures = ("loss", "accuracy")
    curves = [f"{part}_{measure}" for measure in measures for part in ("train", "val")]
    _need(epochs, ["trial_id", "backbone", "epoch", "phase", *curves])
    trials = list(epochs.groupby("trial_id", sort=False))
    figure = Figure(figsize=(8, 2.5 * len(trials) + 0.6), layout="constrained")
    grid = figure.subplots(len(trials), 2, squeeze=False, sharey="col")
    for axes, (trial_id, trial) in zip(grid, trials, strict=True):
        rows = trial.sort_values("epoch")
        for ax, measure in zip(axes, measures, strict=True):
            for part, colour, name in zip(
                ("train", "val"), COLOURS, ("training", "validation"), strict=False
            ):
                y = rows[f"{part}_{measure}"]
                ax.plot(rows["epoch"], y, color=colour, marker=".", markersize=4, label=name)
            ax.set_ylabel(measure)
            _mark_phases(ax, rows)
            _clean(ax)
        axes[0].set_title(f"{rows['backbone'].iloc[0]}, trial {trial_id}", loc="left", pad=16)
    grid[0, 1].set_ylim(top=1.0)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def roc_curves(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    title: str,
) -> Figure:
    """One-vs-rest ROC curves, a line a class, each with its area.

    A class without an image, or without an image of another, has no curve; the legend says so.

    Args:
        probabilities: `[n, C]`, rows that sum to one.
        labels: int `[n]`.
        classes: C names.
        title: above the figure.

    Raises:
        ValueError: as `scoring.classification.check_predictions`.
    """
    check_predictions(probabilities, labels)
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":", label="chance")
    for index, name in enumerate(classes):
        style: Any = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % 5]}
        belongs = labels == index
        if belongs.all() or not belongs.any():
            ax.plot([], [], label=f"{name} (no curve: {belongs.sum()} images)", **style)
            continue
        false_rate, true_rate, _ = roc(probabilities, labels, index)
        area = auc(false_rate, true_rate)
        ax.plot(false_rate, true_rate, label=f"{name} (AUC {area:.3f})", linewidth=2, **style)
    ax.set(xlabel="false positive rate", ylabel="true positive rate", title=title)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    _clean(ax)
    return figure


def confusion_matrix(
    matrix: NDArray[np.integer[Any]], classes: Sequence[str], title: str
) -> Figure:
    """Counts and shares of each true class; the darker, the larger the share.

    Args:
        matrix: counts, int `[C, C]`, rows true and columns predicted.
        classes: C names.
        title: above the figure.

    Raises:
        ValueError: the matrix is not `[C, C]`.
    """
    n_classes = len(classes)
    if matrix.shape != (n_classes, n_classes):
        raise ValueError(f"expected shape {(n_classes, n_classes)}, but got {matrix.shape}")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.95 * n_classes
    figure = Figure(figsize=(side, side), layout="constrained")
    ax = figure.subplots()
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(matrix.shape):
        value = share[row, column]
        ax.text(
            column,
            row,
            f"{matrix[row, column]}\n{value:.0%}",
            ha="center",
            va="center",
            color="white" if value > 0.55 else "black",
        )
    names = [wrapped(name, 12) for name in classes]
    ax.set_xticks(range(n_classes), names)
    ax.set_yticks(range(n_classes), names)
    ax.set(xlabel="predicted", ylabel="true", title=title)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


def explainer_bars(leaderboard: pd.DataFrame, references: Sequence[str] = REFERENCES) -> Figure:
    """Mean IoU and Dice of every explainer, a column of panels a backbone, a bar a threshold rule.

    The references are grey and hatched, below the others, and a dashed line carries the best of
    them through the panel. A reference whose row names no backbone that an explainer was run with
    stands in every column.

    Args:
        leaderboard: `backbone`, `explainer`, `threshold_rule`, `n`, `iou`, `dice`, `hausdorff`, one
            row each combination. Where `iou_low` and `iou_high` (`dice_low`, `dice_high`) are
            there, they are drawn as the interval.
        references: explainers that look at no model.

    Raises:
        ValueError: a column is missing, there are no rows, or a combination comes twice.
    """
    key = ["backbone", "explainer", "threshold_rule"]
    _need(leaderboard, [*key, "n", "iou", "dice", "hausdorff"])
    if leaderboard.duplicated(key).any():
        raise ValueError(f"expected one row each {key}, but some come twice: pick one study first")
    known = leaderboard["explainer"].isin(list(references))
    shown = leaderboard if known.all() else leaderboard[~known]
    backbones = list(dict.fromkeys(shown["backbone"]))
    ordered = pd.concat([leaderboard[~known], leaderboard[known]])
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
            _bars(ax, leaderboard[here | stray], metric, explainers, rules, references)
            ax.set_title(str(backbone), fontsize=10)
            ax.set_xlabel({"iou": "mean IoU", "dice": "mean Dice"}[metric])
        longest = axes[0].dataLim.x1
        axes[0].set_xlim(0, longest * 1.25 if longest > 0 else 1)
    grid[0, 0].invert_yaxis()
    _bar_legend(figure, rules, sorted(set(leaderboard["n"])), bool(known.any()))
    return figure


def explanation_panel(rows: Sequence[PanelRow], title: str) -> Figure:
    """A row an image: the X-ray with the radiologist's outlines, then a picture an explainer.

    Args:
        rows: at least one, all with as many cells.
        title: above the figure.

    Raises:
        ValueError: there are no rows, or they differ in their number of cells.
    """
    widths = {len(row.cells) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"expected rows with one number of cells, but got {sorted(widths)}")
    n_columns = 1 + widths.pop()
    figure = Figure(figsize=(1.9 * n_columns + 0.4, 2.25 * len(rows) + 1.0), layout="constrained")
    grid = figure.subplots(len(rows), n_columns, squeeze=False)
    above: tuple[str, ...] = ()
    for axes, row in zip(grid, rows, strict=True):
        titles = ("X-ray", *(cell.title for cell in row.cells))
        pictures = (row.image, *(cell.picture for cell in row.cells))
        notes = ("", *(_beneath(cell) for cell in row.cells))
        for ax, heading, picture, note in zip(axes, titles, pictures, notes, strict=True):
            _picture(ax, picture, row)
            ax.set_title(wrapped(heading, 20) if titles != above else "", fontsize=9)
            ax.set_xlabel(note, fontsize=9)
        _outline(axes[0], row.lung_mask, LUNGS, ":")
        axes[0].set_ylabel(wrapped(row.name, 24), fontsize=9)
        above = titles
    handles = [
        _line(OUTLINE, "-", "infection, as the radiologist drew it"),
        _line(LUNGS, ":", "lungs"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=12)
    return figure


def wrapped(name: str, width: int) -> str:
    """A long name over several lines, broken at blanks, underscores, hyphens, commas and slashes.

    A piece without any of them that is longer than `width` stays whole.
    """
    lines = [""]
    for piece in re.findall(r"[^ _\-,/=]*[ _\-,/=]?", name):
        if lines[-1] and len((lines[-1] + piece).rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip(" ") for line in lines)


def _bars(
    ax: Axes,
    board: pd.DataFrame,
    metric: str,
    explainers: Sequence[str],
    rules: Sequence[str],
    references: Sequence[str],
) -> None:
    thick = 0.8 / len(rules)
    best = -math.inf
    for _, row in board.iterrows():
        explainer, value = row["explainer"], float(row[metric])
        rule = rules.index(row["threshold_rule"])
        y = explainers.index(explainer) + (rule - (len(rules) - 1) / 2) * thick
        is_reference = explainer in references
        colour = (GREYS if is_reference else COLOURS)[rule % 3]
        style: Any = {"hatch": "////", "edgecolor": "white"} if is_reference else {}
        ax.barh(y, value, 0.92 * thick, color=colour, linewidth=0, **style)
        end = value
        if f"{metric}_low" in row and f"{metric}_high" in row:
            end = float(row[f"{metric}_high"])
            ax.plot([row[f"{metric}_low"], end], [y, y], color="black", linewidth=1)
        ax.annotate(
            f"{value:.2f}", (end, y), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
        best = max(best, value) if is_reference else best
    if best > 0:
        ax.axvline(best, color="#555555", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(explainers)), [wrapped(name, 22) for name in explainers], fontsize=8)
    ax.tick_params(axis="y", length=0)
    _clean(ax)


def _bar_legend(figure: Figure, rules: Sequence[str], counts: list[Any], references: bool) -> None:
    handles: list[Any] = [
        Patch(color=COLOURS[index % 3], label=f"threshold: {rule}")
        for index, rule in enumerate(rules)
    ]
    if references:
        style: Any = {"facecolor": GREYS[0], "edgecolor": "white", "hatch": "////"}
        handles.append(Patch(label="reference, no model", **style))
        handles.append(Line2D([], [], color="#555555", linestyle="--", label="best reference"))
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


def _mark_phases(ax: Axes, rows: pd.DataFrame) -> None:
    first, last = float(rows["epoch"].min()), float(rows["epoch"].max())
    starts = rows[rows["phase"] != rows["phase"].shift()]
    edges = [float(epoch) - 0.5 for epoch in starts["epoch"]] + [last + 0.5]
    ax.set_xlim(first - 0.5, last + 0.5)
    for phase, left, right in zip(starts["phase"], edges[:-1], edges[1:], strict=True):
        if left > first:
            ax.axvline(left, color="#999999", linewidth=1, linestyle=":")
        # Some 50 letters fit above the panel: a short phase gets the beginning of its name.
        room = max(1, int(50 * (right - left) / (edges[-1] - edges[0])))
        ax.annotate(
            str(phase)[:room],
            ((left + right) / 2, 1.01),
            xycoords=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=7,
            color="#555555",
        )


def _beneath(cell: PanelCell) -> str:
    score = "" if cell.iou is None else f"IoU {cell.iou:.2f}"
    return ", ".join(part for part in (score, cell.note) if part)


def _picture(ax: Axes, picture: NDArray[np.uint8], row: PanelRow) -> None:
    height, width = row.image.shape
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    _outline(ax, row.infection_mask, OUTLINE, "-")
    ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    ax.spines[:].set_visible(False)


def _outline(ax: Axes, mask: Mask | None, colour: str, style: str) -> None:
    if mask is None or not mask.any():
        return
    # A frame of zeros closes the outline of a region that touches the border.
    framed = np.pad(mask, 1).astype(np.float64)
    y, x = (np.arange(n) - 0.5 for n in framed.shape)
    lines = ax.contour(x, y, framed, levels=[0.5], colors=[colour], linestyles=style, linewidths=1)
    lines.set_path_effects([withStroke(linewidth=2, foreground="#00000099")])


def _line(colour: str, style: str, label: str) -> Line2D:
    line = Line2D([], [], color=colour, linestyle=style, linewidth=1.2, label=label)
    line.set_path_effects([withStroke(linewidth=2.6, foreground="#000000")])
    return line


def _clean(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing or frame.empty:
        raise ValueError(
            f"expected rows with the columns {', '.join(columns)}, but "
            + (f"{', '.join(missing)} are missing" if missing else "there are no rows")
        )
