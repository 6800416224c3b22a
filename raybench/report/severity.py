"""Severity, predicted against drawn: small multiples, one panel an explainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.report.style import COLOURS, clean, wrapped

_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class SeverityPanel:
    """One panel.

    Attributes:
        title: the explainer's name.
        backbone: whose explanations these are; empty where no classifier is asked.
        drawn: infected share of the lungs as the radiologist drew it, `[n]`; NaN is left out.
        predicted: as the salient mask has it, `[n]`.
    """

    title: str
    backbone: str
    drawn: NDArray[np.floating[Any]]
    predicted: NDArray[np.floating[Any]]


def severity_scatter(panels: Sequence[SeverityPanel], reference: str = "") -> Figure:
    """A dot an image: the share predicted over the share drawn, with the line where both agree.

    The mean absolute error stands in each title.

    Args:
        panels: in the order that they are shown in.
        reference: title of the panel in another colour: the network that learned from masks.

    Raises:
        ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("expected at least one panel, got none")
    n_columns = min(_COLUMNS, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    size = (2.1 * n_columns + 0.7, 2.5 * n_rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for ax, panel in zip(grid.flat, panels, strict=False):
        colour = COLOURS[2] if panel.title == reference else COLOURS[0]
        _panel(ax, panel, colour)
    for index, ax in enumerate(grid.flat):
        if index >= len(panels):
            ax.set_visible(False)
        elif index + n_columns >= len(panels):
            ax.tick_params(labelbottom=True)
    figure.supxlabel("infected share of the lungs, drawn by the radiologist", fontsize=9)
    figure.supylabel("predicted", fontsize=9)
    return figure


def _panel(ax: Axes, panel: SeverityPanel, colour: str) -> None:
    there = np.isfinite(panel.drawn) & np.isfinite(panel.predicted)
    drawn, predicted = panel.drawn[there], panel.predicted[there]
    ax.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle="--")
    ax.scatter(drawn, predicted, s=14, color=colour, alpha=0.6, linewidths=0)
    error = f"MAE {np.abs(drawn - predicted).mean():.3f}" if len(drawn) else "no lung masks"
    lines = [wrapped(panel.title, 22), *([wrapped(panel.backbone, 26)] if panel.backbone else [])]
    ax.set_title("\n".join([*lines, error]), fontsize=8)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    ax.tick_params(labelsize=7)
    ax.set_aspect("equal")
    clean(ax)
