"""How well a classifier classifies, drawn: ROC, precision-recall, confusion, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import auc

from raybench.report.style import COLOURS, clean, wrapped
from raybench.scoring.classification import check_predictions, precision_recall, roc

LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))

_Curve = Callable[[Axes, int, str, dict[str, Any]], None]


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

    def draw(ax: Axes, index: int, name: str, style: dict[str, Any]) -> None:
        false_rate, true_rate, _ = roc(probabilities, labels, index)
        label = f"{name} (AUC {auc(false_rate, true_rate):.3f})"
        ax.plot(false_rate, true_rate, label=label, linewidth=2, **style)

    figure, ax = _square(title, "false positive rate", "true positive rate")
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":", label="chance")
    _by_class(ax, labels, classes, draw)
    ax.legend(loc="lower right", fontsize=8, frameon=False)
    return figure


def precision_recall_curves(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    title: str,
) -> Figure:
    """One-vs-rest precision-recall curves, a line a class, each with its average precision.

    They are steps, so that the area beneath one is its average precision. The dotted line of a
    class is its share of the images: the precision of guessing. A class without an image, or
    without an image of another, has no curve; the legend says so.

    Args:
        probabilities: `[n, C]`, rows that sum to one.
        labels: int `[n]`.
        classes: C names.
        title: above the figure.

    Raises:
        ValueError: as `scoring.classification.check_predictions`.
    """
    check_predictions(probabilities, labels)

    def draw(ax: Axes, index: int, name: str, style: dict[str, Any]) -> None:
        recall, precision = precision_recall(probabilities, labels, index)
        area = float((np.diff(recall) * precision[1:]).sum())
        label = f"{name} (AP {area:.3f})"
        ax.step(recall, precision, where="pre", label=label, linewidth=2, **style)
        share = float((labels == index).mean())
        ax.axhline(share, color=style["color"], linewidth=1, linestyle=":")

    figure, ax = _square(title, "recall", "precision")
    _by_class(ax, labels, classes, draw)
    ax.plot([], [], color="#999999", linewidth=1, linestyle=":", label="guessing")
    ax.legend(loc="lower left", fontsize=8, frameon=False)
    return figure


def reliability_diagram(
    counts: NDArray[np.integer[Any]],
    confidence: NDArray[np.floating[Any]],
    accuracy: NDArray[np.floating[Any]],
    ece: tuple[float, float, float],
    title: str,
) -> Figure:
    """How often the predicted class is right, by how sure the classifier is of it.

    A dot a bin at its mean confidence and its accuracy, tied to the diagonal, where both are equal:
    below it the classifier is surer than it should be. Bars beneath count the images.

    Args:
        counts, confidence, accuracy: of `scoring.classification.reliability`, `[B]` each.
        ece: calibration error and the ends of its interval, which may be NaN.
        title: above the figure.

    Raises:
        ValueError: the three differ in length, or there are no images.
    """
    if not len(counts) == len(confidence) == len(accuracy) or not counts.sum():
        raise ValueError(
            f"expected bins with images, but got {len(counts)} counts (of {counts.sum()} images), "
            f"{len(confidence)} confidences and {len(accuracy)} accuracies"
        )
    figure = Figure(figsize=(4.6, 5.6), layout="constrained")
    ax, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":", label="calibrated")
    filled = counts > 0
    x, y = confidence[filled], accuracy[filled]
    ax.vlines(x, np.minimum(x, y), np.maximum(x, y), color=COLOURS[1], alpha=0.4, linewidth=5)
    ax.plot(x, y, "o", color=COLOURS[0], markersize=5, label="a bin of images")
    said = f"ECE {ece[0]:.3f}"
    if not any(math.isnan(end) for end in ece[1:]):
        said += f"\n95%: {ece[1]:.3f} to {ece[2]:.3f}"
    ax.text(0.98, 0.03, said, ha="right", va="bottom", fontsize=9)
    ax.set(ylabel="accuracy", title=title, xlim=(-0.01, 1.01), ylim=(-0.03, 1.03))
    ax.legend(loc="upper left", fontsize=8, frameon=False)
    edges = np.linspace(0, 1, len(counts) + 1)
    below.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color="#888888", ec="white")
    below.set(xlabel="confidence in the predicted class", ylabel="images")
    clean(ax)
    clean(below)
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


def _square(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 4.8), layout="constrained")
    ax = figure.subplots()
    ax.set(xlabel=x, ylabel=y, title=title)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    clean(ax)
    return figure, ax


def _by_class(
    ax: Axes, labels: NDArray[np.integer[Any]], classes: Sequence[str], draw: _Curve
) -> None:
    for index, name in enumerate(classes):
        style: Any = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % 5]}
        belongs = labels == index
        if belongs.all() or not belongs.any():
            ax.plot([], [], label=f"{name} (no curve: {int(belongs.sum())} images)", **style)
        else:
            draw(ax, index, name, style)
