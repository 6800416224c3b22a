"""What sorts images into strata: how large their lesions are, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raybench.types import Mask

SIZES = ("small", "medium", "large")
"""Thirds of Val's images by lesion area, the smallest first."""


@dataclass(frozen=True, slots=True)
class Lesions:
    """What is drawn on one image.

    Attributes:
        area: infected pixels as a share of the image, 0 to 1.
        number: connected regions, by sides or corners.
    """

    area: float
    number: int

    @classmethod
    def of(cls, infection: Mask) -> Lesions:
        """Those of an infection mask, bool `[H, W]`.

        Raises:
            ValueError: not a bool mask with a pixel at least.
        """
        if infection.dtype != np.bool_ or infection.ndim != 2 or infection.size == 0:
            raise ValueError(
                f"infection: expected a bool array of shape [H, W], but got {infection.dtype} of "
                f"shape {infection.shape}"
            )
        n_labels, _ = cv2.connectedComponents(infection.astype(np.uint8), connectivity=8)
        return cls(float(infection.mean()), n_labels - 1)


def terciles(areas: Sequence[float] | NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The two areas that part images into thirds; to be called on Val, never on Test.

    Args:
        areas: of Val's images.

    Returns:
        The 1/3 and 2/3 quantiles, linear between neighbours.

    Raises:
        ValueError: there are no images.
    """
    if len(areas) == 0:
        raise ValueError("expected at least one Val image to choose sizes on, but got none")
    low, high = np.quantile(np.asarray(areas, np.float64), [1 / 3, 2 / 3])
    return float(low), float(high)


def size_of(area: float, cuts: tuple[float, float]) -> str:
    """One of `SIZES`; an area on a cut belongs to the lower third."""
    return SIZES[int(np.searchsorted(cuts, area, side="left"))]


def number_of(number: int) -> str:
    """`1`, `2`, or `3 or more` lesions."""
    return str(number) if number < 3 else "3 or more"


def confidence_of(probability: float) -> str:
    """How sure the classifier is of the class that it predicts, in three fixed bins."""
    if probability < 0.7:
        return "below 0.7"
    return "0.7 to 0.9" if probability < 0.9 else "0.9 and above"
