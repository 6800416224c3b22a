"""What all figures share: colours, names over several lines, the way into a PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which common kinds of colour blindness tell apart."""


def png(figure: Figure, dpi: int = 120) -> bytes:
    """The figure as a PNG file; figures freshly made of equal data give equal bytes."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


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


def clean(ax: Axes) -> None:
    """Take away the frame's upper and right side."""
    ax.spines[["top", "right"]].set_visible(False)


def need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table without rows or without one of the columns.

    Raises:
        ValueError: so it is; the message names what is missing.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing or frame.empty:
        raise ValueError(
            f"expected rows with the columns {', '.join(columns)}, but "
            + (f"{', '.join(missing)} are missing" if missing else "there are no rows")
        )


def spread_labels(figure: Figure) -> None:
    """Move annotations up until none covers another; the lowest stays where it is."""
    figure.draw_without_rendering()  # sizes are known only then
    step = 2.0
    for ax in figure.axes:
        placed: list[Annotation] = []
        labels = [child for child in ax.get_children() if isinstance(child, Annotation)]
        for label in sorted(labels, key=lambda a: float(a.get_window_extent().y0)):
            while any(_covers(label, other) for other in placed):
                x, y = label.get_position()
                label.set_position((x, y + step))
            placed.append(label)


def _covers(one: Annotation, other: Annotation) -> bool:
    a, b = (label.get_tightbbox() for label in (one, other))
    return a is not None and b is not None and bool(a.overlaps(b))
