"""How far apart the outlines of two masks run.

An outline is the mask's pixels with a 4-neighbour that is not in the mask; beyond the image's edge
nothing is. Distances are Euclidean, in pixels, from each pixel of one outline to the nearest of the
other, in both directions. Outlines, the 95th percentile and the mean are those of MONAI's metrics.
Where masks are empty there is no outline, and no distance: NaN, which means leave out as they do
for the plain Hausdorff distance. `nsd` counts overlap of outlines, so it goes by overlap's rule.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.scoring.boundary import bounding_box
from raybench.scoring.overlap import check_masks
from raybench.types import Mask

NSD_TOLERANCE = 2
"""Pixels by which outlines may differ and still agree for `nsd`: 2 of the study's 256."""

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def hd95(predicted: Mask, truth: Mask) -> float:
    """Hausdorff distance of the outlines with each direction's longest 5% left out, in pixels.

    The larger of the two directions' 95th percentiles (linear between neighbours), as in MONAI;
    other packages take one percentile of both directions pooled, which is at most this.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The distance, 0 to the length of the image's diagonal; NaN where a mask is empty.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    squared = _squared_distances(predicted, truth)
    if squared is None:
        return math.nan
    return max(float(np.percentile(np.sqrt(d), 95)) for d in squared)


def hausdorff_outline(predicted: Mask, truth: Mask) -> float:
    """Symmetric Hausdorff distance of the outlines, in pixels.

    `boundary.hausdorff` runs over all pixels of the masks, as the study's does: there a pixel
    inside the other mask is at distance 0, here it is as far as the other's outline.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The distance, 0 to the length of the image's diagonal; NaN where a mask is empty.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    squared = _squared_distances(predicted, truth)
    return math.nan if squared is None else math.sqrt(max(float(d.max()) for d in squared))


def assd(predicted: Mask, truth: Mask) -> float:
    """Average symmetric surface distance: the mean over both outlines' pixels pooled, in pixels.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The distance, 0 to the length of the image's diagonal; NaN where a mask is empty.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    squared = _squared_distances(predicted, truth)
    return math.nan if squared is None else float(np.sqrt(np.concatenate(squared)).mean())


def nsd(predicted: Mask, truth: Mask) -> float:
    """Normalised surface Dice (Nikolov et al. 2018) at `NSD_TOLERANCE`, 0 to 1.

    The share of both outlines' pixels that lie at most the tolerance from the other outline. Every
    pixel counts as one, without the reference implementation's weights by length.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The score; 1.0 where both masks are empty, 0.0 where exactly one is.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    squared = _squared_distances(predicted, truth)
    if squared is None:
        return 0.0 if predicted.any() or truth.any() else 1.0
    return float((np.concatenate(squared) <= NSD_TOLERANCE**2).mean())


def outline(mask: Mask) -> Mask:
    """The mask without its erosion by a cross of 3 x 3, bool `[H, W]`; outside the image is False.

    Args:
        mask: bool `[H, W]`.
    """
    eroded = cv2.erode(mask.astype(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(mask & (eroded == 0), np.bool_)


def _squared_distances(
    predicted: Mask, truth: Mask
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Of each outline's pixels to the other outline, whole numbers; None where a mask is empty."""
    check_masks(predicted, truth)
    if not (predicted.any() and truth.any()):
        return None
    inside = bounding_box(predicted | truth)
    ours, theirs = outline(predicted[inside]), outline(truth[inside])
    return _directed(ours, theirs), _directed(theirs, ours)


def _directed(points: Mask, target: Mask) -> NDArray[np.float64]:
    away = np.where(target, np.uint8(0), np.uint8(1))
    distance = cv2.distanceTransform(away, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # As in `hausdorff`: float32's error is rounded away, squared distances being whole numbers.
    return np.asarray(np.rint(distance[points].astype(np.float64) ** 2))
