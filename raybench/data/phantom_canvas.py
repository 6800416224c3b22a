"""What phantoms are drawn on: layers in canonical coordinates, curves, blur and smooth noise.

Canonical coordinates run from 0 to 1, `x` to the right and `y` down; a canvas turns, stretches and
shifts them by one random pose and brings them to pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.types import Gray

Plane = NDArray[np.float32]
"""A float32 `[size, size]` image."""

Points = NDArray[np.float64]
"""Canonical points, float64 `[n, 2]`, as (x, y)."""


class Canvas:
    """Layers of one size, drawn in canonical coordinates and placed by one pose."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        angle = np.deg2rad(rng.uniform(-5.0, 5.0))
        scale = rng.uniform(0.97, 1.10, size=2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._matrix = turn * scale
        self._centre = np.array([0.5, 0.48])
        self._shift = rng.uniform(-0.03, 0.03, size=2)

    def pixels(self, points: Points) -> NDArray[np.int32]:
        """Fixed-point pixel positions (4 fractional bits), int32 `[..., n, 2]`."""
        placed = (points - self._centre) @ self._matrix.T + self._centre + self._shift
        fixed: NDArray[np.int32] = np.round(placed * self.size * 16).astype(np.int32)
        return fixed

    def blank(self) -> Gray:
        """An empty layer, uint8 `[size, size]`."""
        return np.zeros((self.size, self.size), np.uint8)

    def fill(self, layer: Gray, points: Points, value: int = 255, smooth: bool = True) -> None:
        """Fill a polygon `[n, 2]`, its border softened or not."""
        kind = cv2.LINE_AA if smooth else cv2.LINE_8
        cv2.fillPoly(layer, [self.pixels(points)], value, kind, 4)

    def stroke(self, layer: Gray, points: Points, width: float, value: int = 255) -> None:
        """Draw one path `[n, 2]`, or several `[k, n, 2]`."""
        thick = max(1, round(width * self.size))
        paths = list(self.pixels(points.reshape(-1, *points.shape[-2:])))
        cv2.polylines(layer, paths, False, value, thick, cv2.LINE_AA, 4)

    def soft(self, layer: Gray, sigma: float) -> Plane:
        """The layer as float32 (255 becomes 1), blurred; `sigma` is a share of the width."""
        soft: Plane = blur(layer, sigma * self.size).astype(np.float32)
        soft *= np.float32(1 / 255)
        return soft


def blur(plane: NDArray[Any], sigma: float) -> NDArray[Any]:
    """Gaussian blur, cut at three deviations; a wide one is made on a coarser grid."""
    step = 4 if sigma >= 6 else 2 if sigma >= 3 else 1
    small: NDArray[Any] = plane
    if step > 1:
        small = cv2.resize(plane, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    spread = max(sigma / step, 0.2)
    side = 2 * int(np.ceil(3 * spread)) + 1
    small = cv2.GaussianBlur(small, (side, side), spread, borderType=cv2.BORDER_REPLICATE)
    if step > 1:
        small = cv2.resize(small, plane.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return small


def closed_curve(control: Points, n: int = 10) -> Points:
    """A closed smooth curve (Catmull-Rom) through the control points, `n` points a piece."""
    t = np.linspace(0, 1, n, endpoint=False)[None, :, None]
    before, here, after, later = (np.roll(control, s, axis=0)[:, None] for s in (1, 0, -1, -2))
    piece = here + 0.5 * t * (
        after - before
        + t * (2 * before - 5 * here + 4 * after - later
               + t * (3 * (here - after) + later - before))
    )  # fmt: skip
    return np.asarray(piece.reshape(-1, 2))


def smooth_noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> Plane:
    """Smooth noise, float32 `[size, size]`, the first octave of about unit deviation and `cells`
    cells a side, each further one of twice as many cells and two thirds of the weight."""
    total = np.zeros((cells, cells), np.float32)
    for octave in range(octaves):
        side = cells * 2**octave
        total = cv2.resize(total, (side, side), interpolation=cv2.INTER_CUBIC)
        grid = rng.standard_normal((side, side), dtype=np.float32)
        total += grid * np.float32(1.4 * 0.67**octave)
    return np.asarray(cv2.resize(total, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
