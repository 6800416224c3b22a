"""Predicted lung masks: made of probabilities, kept as files, and read beside a data set's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes

from raybench.data.images import encode_png, read_mask
from raybench.storage import Storage
from raybench.types import ChestXray, Dataset, Mask, XrayRecord

PREDICTED = "predicted:"
"""What the name of a predicted lung mask begins with in a record."""

N_LUNGS = 2


def lungs_of(probabilities: NDArray[np.float32], threshold: float = 0.5) -> Mask:
    """The two largest regions above a threshold, their holes filled.

    Regions are connected by sides or corners. What is smaller than the two largest is taken for
    something else, and a hole (a vessel, a dense infection) for lung.

    Args:
        probabilities: `[H, W]` in [0, 1].

    Returns:
        bool `[H, W]`; empty where nothing is above the threshold.
    """
    above = (probabilities > threshold).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = 1 + np.argsort(-areas, kind="stable")[:N_LUNGS]
    return np.asarray(binary_fill_holes(np.isin(labels, largest)), np.bool_)


def is_predicted(record: XrayRecord) -> bool:
    """Whether a record's lung mask is a predicted one."""
    return record.lung_mask is not None and record.lung_mask.startswith(PREDICTED)


@dataclass(frozen=True)
class WithLungs:
    """A data set whose images without a lung mask have predicted ones (`types.Dataset`).

    A predicted mask is a PNG file, named by a digest of the image's id, at the image's own size.

    Attributes:
        inner: the data set itself.
        masks: the folder of the masks.
    """

    inner: Dataset
    masks: Storage

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Dataset`."""
        return self.inner.classes

    @property
    def infection_class(self) -> str:
        """See `Dataset`."""
        return self.inner.infection_class

    def mapped(self, label: str) -> str:
        """The classifier's name for a label, where the data set is one that is explained."""
        found = getattr(self.inner, "mapped", None)
        return label if found is None else str(found(label))

    def records(self) -> list[XrayRecord]:
        """See `Dataset`: all of them, with the masks that are predicted or will be."""
        return list(self.named(self.inner.records()))

    @staticmethod
    def named(records: Sequence[XrayRecord]) -> tuple[XrayRecord, ...]:
        """The records, with the name of a predicted mask where they have none."""
        return tuple(
            r if r.lung_mask is not None else replace(r, lung_mask=f"{PREDICTED}{file_of(r)}")
            for r in records
        )

    def load(self, record: XrayRecord) -> ChestXray:
        """See `Dataset`.

        Raises:
            BadImageError: likewise, and where the predicted mask is missing or damaged.
        """
        if not is_predicted(record):
            return self.inner.load(record)
        xray = self.inner.load(replace(record, lung_mask=None))
        shape = (xray.image.shape[0], xray.image.shape[1])
        mask = read_mask(self.masks, file_of(record), shape)
        return replace(xray, record=record, lung_mask=mask)

    def has(self, record: XrayRecord) -> bool:
        """Whether the mask of an image was predicted before."""
        return self.masks.exists(file_of(record))

    def write(self, record: XrayRecord, mask: Mask) -> None:
        """Keep a predicted mask, bool `[H, W]`; atomically.

        Raises:
            StorageError: it cannot be written.
        """
        self.masks.write(file_of(record), encode_png(mask))


def file_of(record: XrayRecord) -> str:
    """The file of an image's predicted mask; a data set's ids need not be names of files."""
    digest = hashlib.sha256(f"{record.split}/{record.image_id}".encode()).hexdigest()
    return f"{digest[:32]}.png"
