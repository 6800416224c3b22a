"""What is done to an X-ray before a classifier or an explainer sees it."""

from __future__ import annotations

import cv2
import numpy as np
from pydantic import Field

from raybench.errors import DataError
from raybench.settings import Settings
from raybench.types import ChestXray, Gray


class Preprocess(Settings):
    """Lung masking and contrast, at the image's own resolution (the study, section 2).

    The study masks first and equalises then, and so does this: with equalisation first, ribs,
    shoulders and burnt-in letters outside the lungs would shape the contrast inside them. But CLAHE
    lifts the black background together with the darkest lung tissue, so pixels outside the lungs
    are set to 0 once more afterwards. That second masking is ours.
    """

    lung_masking: bool = Field(True, description="set pixels outside the lung mask to 0")
    clahe: bool = Field(False, description="contrast-limited adaptive histogram equalisation")
    clahe_clip: float = Field(
        2.0, gt=0, le=255, description="CLAHE's clip limit, in multiples of a flat histogram's bin"
    )
    clahe_tiles: int = Field(8, ge=1, le=64, description="CLAHE's tiles along each side")

    def apply(self, xray: ChestXray) -> Gray:
        """The preprocessed image.

        Args:
            xray: a decoded X-ray, uint8 `[H, W]`; its lung mask is needed for `lung_masking`.

        Returns:
            A new uint8 `[H, W]` array, 0 to 255, of the same shape; exactly 0 outside the lungs
            where `lung_masking` is set.

        Raises:
            DataError: `lung_masking` is set and the X-ray has no lung mask.
        """
        image = xray.image.copy()
        outside = None
        if self.lung_masking:
            if xray.lung_mask is None:
                raise DataError(
                    f"{xray.record.image_id}: expected a lung mask, found none; "
                    "set preprocess.lung_masking false to go without"
                )
            outside = ~xray.lung_mask
            image[outside] = 0
        if self.clahe:
            tiles = (self.clahe_tiles, self.clahe_tiles)
            image = cv2.createCLAHE(clipLimit=self.clahe_clip, tileGridSize=tiles).apply(image)
            if outside is not None:
                image[outside] = 0
        return image


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
