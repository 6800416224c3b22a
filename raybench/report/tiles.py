"""Small pictures for the page's browser of images: compressed photos, outlines as SVG paths."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.types import Mask

SIDE = 192
"""Pixels of a picture's longer side."""

BYTES = 9_000
"""About what one takes: decides whether all of them go into the page."""

_QUALITY = 82
_TOLERANCE = 0.6


def photo(picture: NDArray[np.uint8], side: int = SIDE) -> bytes:
    """A JPEG file of a grey or colour picture, its longer side `side` pixels.

    Args:
        picture: uint8 `[H, W]` or `[H, W, 3]`, red first.
    """
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    if small.ndim == 3:
        small = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()


def outline(mask: Mask | None) -> str:
    """The outlines of a mask's regions as one SVG path in a square of 100 by 100.

    Args:
        mask: bool `[H, W]`; None or an empty one gives an empty path.
    """
    if mask is None or not mask.any():
        return ""
    height, width = mask.shape
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for line in lines:
        points = cv2.approxPolyDP(line, _TOLERANCE * width / SIDE, True)[:, 0].astype(np.float64)
        xy = (points + 0.5) * (100 / width, 100 / height)
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in xy) + "Z")
    return "".join(parts)
