"""Single X-rays painted over: infection maps, superpixel maps, outlines (PROTOCOL.md, 5)."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from raybench.scoring.binarise import min_max
from raybench.types import Gray, Mask, Values

Rgb = NDArray[np.uint8]
"""A colour picture, uint8 `[H, W, 3]`, red first."""

# A bluish green and a red that differ in lightness and in blue too: the common kinds of colour
# blindness tell them apart.
FOR_CLASS = (0, 170, 120)
AGAINST_CLASS = (204, 51, 17)
BOUNDARY = (240, 228, 66)


def infection_map(image: Gray, values: Values, alpha: float = 0.5) -> Rgb:
    """The attribution as a jet colour scale, translucent over the X-ray; zero is not shown.

    Only evidence for the class is painted: negative values count as zero, and what is left is
    stretched to [0, 1]. So blue is weak and red is strong, and a pixel without positive evidence
    keeps the X-ray's own grey. A map that is constant or nowhere positive paints nothing.

    The scale is the study's. It belongs to pictures only: what is scored is the binarised map,
    which is stretched with its sign (`scoring.binarise`).

    Args:
        image: the X-ray, uint8 `[H, W]`.
        values: attribution map, float32 `[H, W]`, any scale and sign.
        alpha: opacity of the paint, 0 to 1.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: shapes differ, `alpha` is out of range, or the map is not finite.
    """
    _check(image, values)
    _check_alpha(alpha)
    strength = min_max(np.maximum(values, 0))
    paint = colormaps["jet"](strength)[..., :3] * 255
    return _blend(image, paint, alpha * (strength > 0))


def superpixel_map(
    image: Gray,
    superpixels: NDArray[np.integer[Any]],
    weights: NDArray[np.floating[Any]],
    alpha: float = 0.6,
) -> Rgb:
    """Superpixels that speak for the class in green, against it in red, boundaries marked.

    A superpixel is the more opaque the heavier its weight; one of weight zero keeps the X-ray's
    grey. The boundary is one pixel wide, on the upper or left of the two superpixels.

    Args:
        image: the X-ray, uint8 `[H, W]`, on the grid of the superpixels.
        superpixels: int `[H, W]`, 0 to n - 1.
        weights: `[n]`, the surrogate's, signed; index i belongs to superpixel i.
        alpha: opacity of the heaviest superpixel, 0 to 1.

    Returns:
        uint8 `[H, W, 3]`.

    Raises:
        ValueError: shapes differ, a superpixel has no weight, a weight is not finite, or `alpha`
            is out of range.
    """
    _check(image, superpixels)
    _check_alpha(alpha)
    if superpixels.min() < 0 or superpixels.max() >= len(weights):
        raise ValueError(
            f"superpixels run from {superpixels.min()} to {superpixels.max()}, but there are "
            f"{len(weights)} weights: expected one weight each"
        )
    if not np.isfinite(weights).all():
        raise ValueError("expected finite weights, but some are NaN or infinite")
    heaviest = float(np.abs(weights).max())
    share = weights.astype(np.float64) / heaviest if heaviest > 0 else np.zeros(len(weights))
    painted = share[superpixels]
    paint = np.where(painted[..., None] > 0, FOR_CLASS, AGAINST_CLASS).astype(np.float64)
    picture = _blend(image, paint, alpha * np.abs(painted))
    picture[_boundaries(superpixels)] = BOUNDARY
    return picture


def contour(
    picture: Rgb, mask: Mask, colour: tuple[int, int, int], thickness: int = 1, dotted: bool = False
) -> Rgb:
    """A copy of the picture with the outlines of a mask's regions and of their holes.

    Args:
        picture: uint8 `[H, W, 3]`.
        mask: bool `[H, W]`; an empty one draws nothing.
        colour: red, green, blue, 0 to 255.
        thickness: width of the line in pixels.
        dotted: two pixels drawn, three left out, along the outline.

    Returns:
        uint8 `[H, W, 3]`; the line runs on the mask's own outermost pixels.

    Raises:
        ValueError: shapes differ.
    """
    if picture.ndim != 3 or picture.shape[:2] != mask.shape:
        raise ValueError(f"expected a mask of shape {picture.shape[:2]}, but got {mask.shape}")
    lines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    drawn = np.ascontiguousarray(picture).copy()
    if dotted:
        for line in lines:
            dots = line[np.arange(len(line)) % 5 < 2]
            cv2.drawContours(drawn, list(dots[:, None]), -1, colour, thickness)
    else:
        cv2.drawContours(drawn, lines, -1, colour, thickness)
    return drawn


def _blend(image: Gray, paint: NDArray[np.float64], opacity: NDArray[np.floating[Any]]) -> Rgb:
    gray = np.repeat(image[..., None], 3, axis=2).astype(np.float64)
    weight = opacity[..., None].astype(np.float64)
    return np.rint((1 - weight) * gray + weight * paint).astype(np.uint8)


def _boundaries(superpixels: NDArray[np.integer[Any]]) -> Mask:
    edge = np.zeros(superpixels.shape, np.bool_)
    edge[:, :-1] |= superpixels[:, :-1] != superpixels[:, 1:]
    edge[:-1] |= superpixels[:-1] != superpixels[1:]
    return edge


def _check(image: Gray, other: NDArray[Any]) -> None:
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError(
            f"image: expected uint8 of shape [H, W], but got {image.dtype} of {image.shape}"
        )
    if other.shape != image.shape:
        raise ValueError(f"expected an array of the image's shape {image.shape}, got {other.shape}")


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, but got {alpha}")
