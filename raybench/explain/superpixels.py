"""Superpixels: the regions that LIME switches off."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from skimage.segmentation import quickshift

from raybench.settings import Choice, Range, Settings
from raybench.types import Gray

_LIBRARY = f"scikit-image {version('scikit-image')}"


class Quickshift(Settings):
    """Quickshift (Vedaldi and Soatto 2008), with lime's defaults."""

    # Few values: with every other one the model is asked anew.
    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "kernel_size": Choice(choices=(3.0, 4.0, 6.0)),
        "ratio": Choice(choices=(0.2, 0.5)),
    }

    name: Literal["quickshift"] = "quickshift"
    kernel_size: float = Field(4.0, gt=0, description="width of the Gaussian, pixels")
    max_dist: float = Field(200.0, gt=0, description="longest link, in the joint space")
    ratio: float = Field(0.2, ge=0, le=1, description="colour against place")

    @property
    def identity(self) -> str:
        """Names all that decides the labels of an image, the library's version included."""
        return f"{_LIBRARY} {self.model_dump_json()}"

    def segment(self, image: Gray) -> NDArray[np.int32]:
        """Labels 0 to K - 1, int32 `[h, w]`, of a uint8 `[h, w]` image.

        The image is made RGB first, as lime does. Ties are broken by scikit-image's default seed:
        lime's own `random_seed` never reaches quickshift in the versions of today.
        """
        rgb = np.repeat(image[:, :, None], 3, axis=2)
        labels = quickshift(
            rgb, kernel_size=self.kernel_size, max_dist=self.max_dist, ratio=self.ratio
        )
        return np.unique(labels, return_inverse=True)[1].reshape(image.shape).astype(np.int32)
