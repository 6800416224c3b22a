"""Occlusion (Zeiler and Fergus 2014): a window is covered, and the answer drops by so much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from raybench.answers import digest
from raybench.explain.base import Explainer, joined, need_classifier, target_class, to_shape
from raybench.explain.fills import AnyWholeFill, Black, one_image
from raybench.explain.perturbation import Keep
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Arrays, AttributionMap, Gray, Question, Subject, Unit

_NOTHING = -1
"""Stands for the window that covers nothing: the image as it is."""


class Occlusion(Explainer):
    """A sliding window is covered; a pixel's value is the mean drop over the windows that cover it.

    The window moves by cells of a grid and is a whole number of cells wide, so that settings mean
    the same at every input size and the cost is known: at 224 x 224 the defaults are windows of 32
    pixels at a stride of 8. A cell is the image's side divided by `cells`, rounded up; the last
    one, and the windows that reach into it, are cut at the border. That is captum's `Occlusion`
    with the cell as the stride.

    A window in which image and fill are the same changes nothing: it is not asked, its drop is 0.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "cells": Choice(choices=(14, 28)),
        "window": Choice(choices=(2, 4, 6)),
        "fill": Choice(choices=("black", "blur")),
    }

    name: Literal["occlusion"] = "occlusion"
    cells: int = Field(28, ge=1, le=224, description="of the grid, along each side: the stride")
    window: int = Field(4, ge=1, le=224, description="cells along each side of the window")
    fill: Annotated[AnyWholeFill, AfterValidator(one_image)] = Field(
        Black(), description="what the window shows; mean: of the whole image"
    )
    chunk: int = Field(64, ge=1, description="forward passes in a unit of work")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.window > self.cells:
            raise ValueError(
                f"window: expected at most as many cells as there are ({self.cells}), "
                f"found {self.window}"
            )
        return self

    def n_forward_planned(self) -> int:
        """The image as it is, and each place of the window, empty ones included."""
        return int(1 + (self.cells - self.window + 1) ** 2)

    def n_units_planned(self) -> int:
        """Chunks of windows."""
        return -(-self.n_forward_planned() // self.chunk)

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """Chunks of windows; row 0 of the answers is the image as it is."""
        if done:
            return []
        image, fill = subject.image, self.fill.draw(subject, None)[0]
        windows = self._windows(image.shape).asked(image, fill)
        key = digest("occlusion", f"{self.cells} {self.window}", image, fill)
        return [
            Unit(
                name=f"windows:{start:07d}",
                payload={
                    "image": image,
                    "fill": fill,
                    "windows": windows[start : start + self.chunk],
                },
                n_forward=len(windows[start : start + self.chunk]),
                question=Question(key, start, min(start + self.chunk, len(windows))),
            )
            for start in range(0, len(windows), self.chunk)
        ]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Cover a chunk of windows and ask."""
        model = need_classifier(unit, classifier)
        image = unit.payload["image"]
        windows = self._windows(image.shape)
        keep = windows.keep(unit.payload["windows"])
        fill = unit.payload["fill"]
        return {"answers": model.predict_perturbed(image, fill, windows.labels, keep)}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """Drops in the target's probability, averaged over the windows that cover each cell."""
        answers = joined(done, "windows:")
        target = target_class(answers[0], subject.target)
        windows = self._windows(subject.image.shape)
        asked = windows.asked(subject.image, self.fill.draw(subject, None)[0])
        scores = answers[:, target].astype(np.float64)
        drops = np.zeros(windows.places).ravel()
        drops[asked[1:]] = scores[0] - scores[1:]
        cells = windows.averaged(drops.reshape(windows.places))
        return AttributionMap(
            values=to_shape(cells.ravel()[windows.labels], subject.shape, smooth=False),
            target=target,
            n_forward=len(answers),
        )

    def _windows(self, shape: tuple[int, ...]) -> Windows:
        return Windows((shape[0], shape[1]), self.cells, self.window)


@dataclass(frozen=True, slots=True)
class Windows:
    """The places of a square window on the grid of an image.

    Args:
        shape: `(h, w)` of the image.
        cells: along each side, at most; fewer where a side has fewer pixels, or where cells of a
            whole number of pixels reach the border sooner.
        window: cells along each side of the window; as many as there are, where there are fewer.
    """

    shape: tuple[int, int]
    cells: int
    window: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of cells."""
        height, width = (-(-n // -(-n // self.cells)) for n in self.shape)
        return height, width

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of cells that a window covers."""
        rows, columns = self.grid
        return min(self.window, rows), min(self.window, columns)

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of places; a window's number counts them in reading order."""
        (rows, columns), (high, wide) = self.grid, self.size
        return rows - high + 1, columns - wide + 1

    @property
    def labels(self) -> NDArray[np.int32]:
        """The cell of each pixel, int32 `[h, w]`, in reading order."""
        down, across = (np.arange(n) // -(-n // self.cells) for n in self.shape)
        return (down[:, None] * self.grid[1] + across[None, :]).astype(np.int32)

    def asked(self, image: Gray, fill: Gray) -> NDArray[np.int32]:
        """Windows that change the image, by number, behind the one that covers nothing."""
        n_cells = self.grid[0] * self.grid[1]
        changed = np.bincount(self.labels.ravel(), (image != fill).ravel(), n_cells) > 0
        reached = sliding_window_view(changed.reshape(self.grid), self.size).any(axis=(2, 3))
        return np.concatenate([[_NOTHING], np.flatnonzero(reached)]).astype(np.int32)

    def keep(self, windows: NDArray[np.int32]) -> Keep:
        """Keep-vectors over the cells, bool `[n, K]`, of windows by number."""
        keep = np.ones((len(windows), *self.grid), bool)
        high, wide = self.size
        for row, window in zip(keep, windows.tolist(), strict=True):
            if window != _NOTHING:
                top, left = divmod(window, self.places[1])
                row[top : top + high, left : left + wide] = False
        return keep.reshape(len(windows), -1)

    def averaged(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each cell the mean over the windows that cover it, `[rows, columns]`.

        Args:
            values: one a window, at its place.
        """
        total, count = np.zeros(self.grid), np.zeros(self.grid)
        rows, columns = self.places
        for down in range(self.size[0]):
            for across in range(self.size[1]):
                part = (slice(down, down + rows), slice(across, across + columns))
                total[part] += values
                count[part] += 1
        return total / count
