"""What is done to an X-ray before a classifier or an explainer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
from pydantic import Field

from raybench.errors import DataError
from raybench.settings import Settings, values_of
from raybench.types import ChestXray, Gray, Mask


class Preprocess(Settings):
    """Lung masking and contrast, at the image's own resolution (the study, section 2).

    The study masks first and equalises then, and so does this: with equalisation first, ribs,
    shoulders and burnt-in letters outside the lungs would shape the contrast inside them. But CLAHE
    lifts the black background together with the darkest lung tissue, so pixels outside the lungs
    are set to 0 once more afterwards. That second masking is ours, and so is erasing the border,
    where burnt-in letters and the collimator's edges are: it goes with the masking.
    """

    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "clahe_clip": ("clahe", (True,)),
        "clahe_tiles": ("clahe", (True,)),
    }

    lung_masking: bool = Field(True, description="set pixels outside the lung mask to 0")
    clahe: bool = Field(False, description="contrast-limited adaptive histogram equalisation")
    clahe_clip: float = Field(
        2.0, gt=0, le=255, description="CLAHE's clip limit, in multiples of a flat histogram's bin"
    )
    clahe_tiles: int = Field(8, ge=1, le=64, description="CLAHE's tiles along each side")
    erase_border: float = Field(
        0.0, ge=0, lt=0.5, description="set this share of each side to 0, from every edge inwards"
    )

    def apply(self, xray: ChestXray) -> Gray:
        """The preprocessed image.

        Args:
            xray: a decoded X-ray, uint8 `[H, W]`; its lung mask is needed for `lung_masking`.

        Returns:
            A new uint8 `[H, W]` array, 0 to 255, of the same shape; exactly 0 outside the lungs
            where `lung_masking` is set, and in the border that is erased.

        Raises:
            DataError: `lung_masking` is set and the X-ray has no lung mask.
        """
        image = xray.image.copy()
        black = self._blackened(xray)
        if black is not None:
            image[black] = 0
        if self.clahe:
            tiles = (self.clahe_tiles, self.clahe_tiles)
            image = cv2.createCLAHE(clipLimit=self.clahe_clip, tileGridSize=tiles).apply(image)
            if black is not None:
                image[black] = 0
        return image

    def _blackened(self, xray: ChestXray) -> Mask | None:
        """Where the image is set to 0, bool `[H, W]`; None for nowhere."""
        if not self.lung_masking and not self.erase_border:
            return None
        black = np.zeros(xray.image.shape, bool)
        if self.lung_masking:
            if xray.lung_mask is None:
                raise DataError(
                    f"{xray.record.image_id}: expected a lung mask, found none; "
                    "set preprocess.lung_masking false to go without"
                )
            black |= ~xray.lung_mask
        height, width = xray.image.shape[0], xray.image.shape[1]
        rows, columns = round(self.erase_border * height), round(self.erase_border * width)
        inside = np.zeros_like(black)
        inside[rows : height - rows, columns : width - columns] = True
        return black | ~inside


def in_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of preprocessing's settings those that change an image: no clip limit without CLAHE.

    Args:
        settings: by name, plain values or searched ones; not all need be there.
    """

    def matters(name: str) -> bool:
        other, wanted = Preprocess.search_if.get(name, ("", ()))
        return other not in settings or any(v in wanted for v in values_of(settings[other]))

    return {name: value for name, value in settings.items() if matters(name)}


def resize_gray(image: Gray, size: tuple[int, int]) -> Gray:
    """The image at another size.

    Args:
        image: uint8 `[H, W]`.
        size: `(h, w)` to come out, in pixels.

    Returns:
        uint8 `[h, w]`: pixel areas averaged where no side grows (no aliasing), bilinear
        interpolation otherwise; the same array where the size is already right.
    """
    if image.shape == tuple(size):
        return image
    height, width = size
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Gray = np.asarray(cv2.resize(image, (width, height), interpolation=method))
    return resized
