"""What every kind of superpixels shares: dense labels, and confinement to the lungs."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from skimage.measure import label

from raybench.errors import ExplainError
from raybench.settings import Choice, Range, Settings
from raybench.types import Gray, Mask

Labels = NDArray[np.int32]
"""Superpixels 0 to K - 1, each of which has a pixel, int32 `[h, w]`."""

_LIBRARY = f"scikit-image {version('scikit-image')}"


class Superpixels(Settings):
    """How an image is cut into regions."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "confine": Choice(choices=(False, True))
    }

    confine: bool = Field(
        False,
        description="to the lungs: superpixels are cut at the lung mask, and all outside is one "
        "superpixel of its own",
    )
    smallest_piece: int = Field(
        20,
        ge=1,
        description="of `confine`: pieces of fewer pixels join the neighbour in the lungs that "
        "they share the longest border with",
    )

    @property
    def identity(self) -> str:
        """Names all that decides the labels of an image, the library's version included."""
        unused = None if self.confine else {"confine", "smallest_piece"}
        return f"{_LIBRARY} {self.model_dump_json(exclude=unused)}"

    @abstractmethod
    def cut(self, image: Gray) -> NDArray[np.integer]:
        """Regions of a uint8 `[h, w]` image, whole numbers `[h, w]`, any at all."""

    def segment(self, image: Gray, lungs: Mask | None = None) -> Labels:
        """Labels 0 to K - 1, int32 `[h, w]`, of a uint8 `[h, w]` image.

        Args:
            lungs: bool, of any resolution; only looked at where `confine` is set.

        Raises:
            ExplainError: `confine` is set, and there is no lung mask or nothing in it.
        """
        labels = self.cut(image)
        if self.confine:
            if lungs is None:
                raise ExplainError(
                    "superpixels: expected a lung mask to confine them to, found none; set "
                    "superpixels.confine false"
                )
            labels = confined(labels, on_grid(lungs, labels.shape), self.smallest_piece)
        return dense(labels)


def dense(labels: NDArray[np.integer]) -> Labels:
    """The same regions numbered 0 to K - 1, in the order of their labels."""
    found = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    return np.asarray(found, dtype=np.int32)


def on_grid(mask: Mask, shape: tuple[int, ...]) -> Mask:
    """A mask at another resolution, by nearest neighbour; the same array where it has it."""
    if mask.shape == shape:
        return mask
    size = (shape[1], shape[0])
    small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(small, dtype=np.bool_)


def confined(labels: NDArray[np.integer], lungs: Mask, smallest: int) -> NDArray[np.int64]:
    """Superpixels cut at the lung mask; 0 outside of the lungs, where any of that is.

    A superpixel that reaches into both lungs becomes a piece in each: pieces are connected by
    their sides. A piece below the smallest size joins its neighbour; one that is a whole island of
    the lung mask has none, and stays.

    Args:
        labels: `[h, w]`.
        lungs: bool `[h, w]`.
        smallest: pixels.

    Raises:
        ExplainError: the lung mask is empty.
    """
    if not lungs.any():
        raise ExplainError(
            "superpixels: expected a lung mask to confine them to, found an empty one; set "
            "superpixels.confine false"
        )
    inside = np.where(lungs, labels.astype(np.int64) - int(labels.min()) + 1, 0)
    pieces = label(inside, background=0, connectivity=1)
    return np.asarray(_merged(pieces, smallest)[pieces], dtype=np.int64)


def _merged(pieces: NDArray[np.integer], smallest: int) -> NDArray[np.intp]:
    """What each piece becomes part of, the smallest first, so that slivers do not chain."""
    areas = np.bincount(pieces.ravel()).tolist()
    borders = _borders(pieces)
    became = np.arange(len(areas))
    queue = [(areas[piece], piece) for piece in borders if areas[piece] < smallest]
    heapq.heapify(queue)
    while queue:
        area, piece = heapq.heappop(queue)
        if became[piece] != piece or area != areas[piece]:
            continue  # it has been merged, or has grown, since it was put here
        around = borders.pop(piece)
        if not around:
            continue
        host = max(around, key=lambda other: (around[other], -other))
        became[became == piece] = host
        areas[host] += area
        for other, length in around.items():
            del borders[other][piece]
            if other != host:
                borders[other][host] += length
                borders[host][other] += length
        if areas[host] < smallest:
            heapq.heappush(queue, (areas[host], host))
    return became


def _borders(pieces: NDArray[np.integer]) -> dict[int, Counter[int]]:
    """For each piece (0 is none), how many sides of pixels it shares with each neighbour."""
    n = int(pieces.max()) + 1
    found: dict[int, Counter[int]] = {piece: Counter() for piece in range(1, n)}
    for one, other in ((pieces[1:], pieces[:-1]), (pieces[:, 1:], pieces[:, :-1])):
        meet = (one != other) & (one > 0) & (other > 0)
        codes, lengths = np.unique(one[meet].astype(np.int64) * n + other[meet], return_counts=True)
        for code, length in zip(codes.tolist(), lengths.tolist(), strict=True):
            a, b = divmod(code, n)
            found[a][b] += length
            found[b][a] += length
    return found
