"""RISE's masks: random grids, enlarged and shifted, that say how much of each pixel is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from raybench.models.perturbed import resize_matrices

_BLOCK = 64
"""Masks drawn from one seed sequence. It is part of what a seed means: never to be changed."""

Grids = NDArray[np.bool_]
Shifts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SoftMasks:
    """An endless sequence of masks for images of one shape.

    A mask is a grid of coins, enlarged bilinearly to one cell more than the image needs along each
    side, of which a window of the image's shape is taken at random, so that the borders of cells
    fall anywhere. It lies in [0, 1], and each pixel's expectation is `keep`.

    Args:
        shape: `(h, w)` of the image.
        cells: coins along each side.
        keep: their probability of showing.
        seed: of coins and shifts. Masks are drawn in blocks of 64, each from its own seed
            sequence, so that a mask depends on its number alone.
    """

    shape: tuple[int, int]
    cells: int
    keep: float
    seed: int

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a cell, pixels: the image's divided by the cells, rounded up."""
        return -(-self.shape[0] // self.cells), -(-self.shape[1] // self.cells)

    def drawn(self, start: int, stop: int) -> tuple[Grids, Shifts]:
        """Coins bool `[n, s, s]` and shifts `[n, 2]` (down, across) of some masks."""
        if start == stop:
            return np.zeros((0, self.cells, self.cells), bool), np.zeros((0, 2), np.int64)
        numbers = range(start // _BLOCK, -(-stop // _BLOCK))
        blocks = [_block(self.seed, n, self.cells, self.keep, self.cell) for n in numbers]
        part = slice(start - numbers.start * _BLOCK, stop - numbers.start * _BLOCK)
        return (
            np.concatenate([grids for grids, _ in blocks])[part],
            np.concatenate([shifts for _, shifts in blocks])[part],
        )

    def render(self, start: int, stop: int, device: torch.device) -> torch.Tensor:
        """Masks `start` to `stop`, float32 `[n, h, w]`, made on a device."""
        grids, shifts = self.drawn(start, stop)
        down, across = (
            torch.from_numpy(matrix)[offset[:, None] + np.arange(n)].to(device)
            for matrix, offset, n in zip(self._enlarge(), shifts.T, self.shape, strict=True)
        )
        coins = torch.from_numpy(grids.astype(np.float32)).to(device)
        return (down @ coins @ across.transpose(1, 2)).clamp_(0, 1)

    def weighted_sum(self, weights: NDArray[np.floating]) -> NDArray[np.float64]:
        """The sum of the first masks, each times its weight, float64 `[h, w]`.

        No mask is rendered: of those with the same shift down, only the enlargement across is
        done one by one, which is far less work, and memory stays that of a block.

        Args:
            weights: `[n]`, those of the first n masks.
        """
        rows, columns = (matrix.astype(np.float64) for matrix in self._enlarge())
        height, width = self.shape
        total = np.zeros((self.cell[0], self.cells, width))
        for start in range(0, len(weights), _BLOCK):
            part = weights[start : start + _BLOCK]
            grids, shifts = self.drawn(start, start + len(part))
            across = columns[shifts[:, 1, None] + np.arange(width)]
            weighted = grids * part.astype(np.float64)[:, None, None]
            np.add.at(total, shifts[:, 0], weighted @ across.transpose(0, 2, 1))
        windows = np.lib.stride_tricks.sliding_window_view(rows, height, axis=0)
        found = np.einsum("dsy,dsx->yx", windows[: self.cell[0]], total, optimize=True)
        return np.asarray(found)

    def _enlarge(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What enlarges a grid down and across, `[(s + 1) * cell, s]` each."""
        size = ((self.cells + 1) * self.cell[0], (self.cells + 1) * self.cell[1])
        rows, columns = resize_matrices((self.cells, self.cells), size)
        return rows, np.ascontiguousarray(columns.T)


@lru_cache(maxsize=256)
def _block(
    seed: int, number: int, cells: int, keep: float, cell: tuple[int, int]
) -> tuple[Grids, Shifts]:
    """A block of masks, kept for a while: every image of a shape is shown the same ones."""
    rng = np.random.default_rng([seed, number])
    grids = rng.random((_BLOCK, cells, cells)) < keep
    shifts = rng.integers(0, cell, (_BLOCK, 2))
    for array in (grids, shifts):
        array.flags.writeable = False
    return grids, shifts
