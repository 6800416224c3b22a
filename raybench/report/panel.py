"""The explanation panel: X-rays beside what each explainer makes of them (PROTOCOL.md, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from raybench.report.infection_map import Rgb
from raybench.report.style import wrapped
from raybench.types import Gray, Mask

OUTLINE = "#FFFFFF"
LUNGS = "#56B4E9"


@dataclass(frozen=True, slots=True)
class PanelCell:
    """One picture of the panel.

    Attributes:
        title: the column's heading, usually the explainer's name.
        picture: uint8 `[h, w, 3]`, as from `infection_map` or `superpixel_map`; another size than
            the X-ray's is stretched onto it.
        iou: printed beneath; None prints nothing.
        note: printed beneath, after the IoU.
    """

    title: str
    picture: Rgb
    iou: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class PanelRow:
    """One image of the panel.

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


def explanation_panel(rows: Sequence[PanelRow], title: str) -> Figure:
    """A row an image: the X-ray with the radiologist's outlines, then a picture an explainer.

    Headings stand above the first row, and above any other whose titles differ from it.

    Args:
        rows: at least one, all with as many cells.
        title: above the figure.

    Raises:
        ValueError: there are no rows, or they differ in their number of cells.
    """
    widths = {len(row.cells) for row in rows}
    if len(widths) != 1:
        raise ValueError(
            "expected at least one image, and as many cells for each, but the numbers of cells are "
            f"{sorted(widths)}"
        )
    n_columns = 1 + widths.pop()
    size = (1.9 * n_columns + 0.4, 2.25 * len(rows) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), n_columns, squeeze=False)
    first = [cell.title for cell in rows[0].cells]
    for index, (axes, row) in enumerate(zip(grid, rows, strict=True)):
        _show(axes[0], row.image, row)
        _outline(axes[0], row.lung_mask, LUNGS, ":")
        axes[0].set_ylabel(wrapped(row.name, 22), fontsize=8)
        titles = [cell.title for cell in row.cells]
        if index == 0 or titles != first:
            for ax, heading in zip(axes, ["X-ray", *titles], strict=True):
                ax.set_title(wrapped(heading, 20), fontsize=9)
        for ax, cell in zip(axes[1:], row.cells, strict=True):
            _show(ax, cell.picture, row)
            score = "" if cell.iou is None else f"IoU {cell.iou:.2f}"
            ax.set_xlabel(", ".join(part for part in (score, cell.note) if part), fontsize=9)
    _legend(figure, rows, 2 if n_columns > 2 else 1)
    figure.suptitle(title, fontsize=12)
    return figure


def _legend(figure: Figure, rows: Sequence[PanelRow], ncols: int) -> None:
    handles = []
    if any(row.infection_mask is not None for row in rows):
        handles.append(_line(OUTLINE, "-", "infection, as the radiologist drew it"))
    if any(row.lung_mask is not None for row in rows):
        handles.append(_line(LUNGS, ":", "lungs"))
    if handles:
        style: Any = {"ncols": ncols, "frameon": False, "fontsize": 9}
        figure.legend(handles=handles, loc="outside lower center", **style)


def _show(ax: Axes, picture: NDArray[np.uint8], row: PanelRow) -> None:
    height, width = row.image.shape
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    _outline(ax, row.infection_mask, OUTLINE, "-")
    ax.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    ax.spines[:].set_visible(False)


def _outline(ax: Axes, mask: Mask | None, colour: str, style: Literal["-", ":"]) -> None:
    if mask is None or not mask.any():
        return
    # A frame of zeros closes the outline of a region that touches the border.
    framed = np.pad(mask, 1).astype(np.float64)
    y, x = (np.arange(n) - 0.5 for n in framed.shape)
    lines = ax.contour(x, y, framed, levels=[0.5], colors=[colour], linestyles=style, linewidths=1)
    lines.set_path_effects([withStroke(linewidth=2, foreground="#00000099")])


def _line(colour: str, style: Literal["-", ":"], label: str) -> Line2D:
    line = Line2D([], [], color=colour, linestyle=style, linewidth=1.2, label=label)
    line.set_path_effects([withStroke(linewidth=2.6, foreground="#000000")])
    return line
