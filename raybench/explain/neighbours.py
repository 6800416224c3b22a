"""Neighbours: what a similar patient has at the same place, for KP-LIME and K*LIME.

The definition is raybench's own (no sound reference code exists; docs/explainers.md). A `Bank`
holds the features of training images and gives, for an image, the nearest of them laid over it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain.base import to_shape
from raybench.types import Gray, Mask

PIXELS = (16, 16)
"""Size at which `embedding: pixels` compares images."""

_MOST_SAMPLES = 32
"""Along each side of a pixel that stands for many of a neighbour's."""


class Bank:
    """Training images among which neighbours are looked for. One serves all images of a model.

    Args:
        features: float `[n, d]`, one row an image: `Classifier.embed`, or `pixel_features`. Kept as
            rows of length 1.
        load: of an image's number: uint8 `[H, W]`, preprocessed, and its lung mask or None.
        labels: class of each.
        patients: of each, or None where unknown; they leave nobody out then.
    """

    def __init__(
        self,
        features: NDArray[np.floating],
        load: Callable[[int], tuple[Gray, Mask | None]],
        labels: Sequence[str] = (),
        patients: Sequence[str | None] = (),
    ) -> None:
        self.load, self.labels, self.patients = load, labels, patients
        self._rows = _unit(features)

    def nearest(
        self,
        feature: NDArray[np.floating],
        n: int,
        patient: str | None = None,
        among: str | None = None,
    ) -> list[int]:
        """Numbers of the n nearest, nearest first, by cosine; ties go to the lower number.

        Args:
            feature: `[d]`, of the image that is explained.
            patient: whose images are left out.
            among: the class they are taken from; None: every class.

        Raises:
            ExplainError: there are fewer than n.
        """
        n_rows = len(self._rows)
        allowed = np.ones(n_rows, bool)
        if among is not None and len(self.labels) != n_rows:
            raise ExplainError(
                f"among {among}: expected a label for each of the bank's {n_rows} "
                f"images, found {len(self.labels)}"
            )
        if among is not None:
            allowed &= np.array([label == among for label in self.labels], bool)
        if patient is not None and self.patients:
            allowed &= np.array([other != patient for other in self.patients], bool)
        numbers = np.flatnonzero(allowed)
        if len(numbers) < n:
            raise ExplainError(
                f"fill: expected {n} neighbours of other patients"
                f"{f' in class {among}' if among else ''}, the bank has {len(numbers)}"
            )
        likeness = (self._rows @ _unit(feature[None])[0])[numbers]
        return [int(i) for i in numbers[np.argsort(-likeness, kind="stable")[:n]]]

    def neighbours(
        self,
        image: Gray,
        lungs: Mask | None,
        feature: NDArray[np.floating],
        n: int,
        patient: str | None = None,
        among: str | None = None,
    ) -> NDArray[np.uint8]:
        """The n nearest laid over the image, uint8 `[n, h, w]`, as `Subject.neighbours` wants them.

        Args:
            image: uint8 `[h, w]`, on the grid where it is perturbed.
            lungs: bool `[H, W]`, any size.
            feature, n, patient, among: as for `nearest`.

        Raises:
            ExplainError: as `nearest`.
        """
        chosen = self.nearest(feature, n, patient, among)
        return np.stack([lay_over(*self.load(number), image, lungs) for number in chosen])


def pixel_features(images: Sequence[Gray]) -> NDArray[np.float32]:
    """Images at 16 x 16 less their mean, float32 `[n, 256]`: an embedding that knows no model."""
    small = np.stack([resize_gray(image, PIXELS).astype(np.float32).ravel() for image in images])
    return np.asarray(small - small.mean(axis=1, keepdims=True), np.float32)


def distances(features: NDArray[np.floating], bank: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine distance of each row of `[m, d]` to the nearest of `[n, d]`: `[m]`, 0 to 2."""
    ours, theirs = _unit(features.astype(np.float64)), _unit(bank.astype(np.float64))
    return np.asarray(1.0 - (ours @ theirs.T).max(axis=1))


def lay_over(other: Gray, its_lungs: Mask | None, image: Gray, lungs: Mask | None) -> Gray:
    """A neighbour's X-ray on another's grid, so that the bounding boxes of their lungs coincide.

    Where the image is lung-masked (black outside), so is what comes out; and where the image's
    lungs reach further than the neighbour's, the neighbour's nearest lung pixel stands, so that no
    hole is left. Without both lung masks the whole neighbour is brought to the image's size.
    Where it is shown smaller than it is, pixel areas are averaged.

    Args:
        other: uint8 `[H', W']`, preprocessed as the image was, with its lungs, bool of its shape.
        image: uint8 `[h, w]`, with its lungs, bool of any shape.

    Returns:
        uint8 `[h, w]`.
    """
    shape = (image.shape[0], image.shape[1])
    own = None if lungs is None else to_shape(lungs, shape, smooth=False) > 0.5
    if own is None or its_lungs is None or not own.any() or not its_lungs.any():
        return resize_gray(other, shape)
    to_other = _box_to_box(own, its_lungs)
    found = _shown(other, to_other, shape)
    # Resized with pixel areas, masked lungs have a rim that lies just outside the resized mask.
    about = cv2.dilate(own.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if image[~about].any():
        return found
    flags, size = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, (shape[1], shape[0])
    covered = cv2.warpAffine(its_lungs.astype(np.uint8), to_other, size, flags=flags) > 0
    # At the rim a pixel is part background: only pixels well inside stand for others.
    covered = cv2.erode(covered.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    if covered.any():
        rows, columns = distance_transform_edt(
            ~covered, return_distances=False, return_indices=True
        )
        found = np.where(covered, found, found[rows, columns])
    return np.where(own | (image > 0), found, 0).astype(np.uint8)


def _box_to_box(own: Mask, other: Mask) -> NDArray[np.float64]:
    """Affine `[2, 3]` that takes `(x, y)` on this image to the place in the other's lung box."""
    matrix = np.zeros((2, 3))
    for row, axis in enumerate((0, 1)):  # x runs along columns: any() over axis 0
        here, there = (np.flatnonzero(mask.any(axis=axis)) for mask in (own, other))
        scale = (there[-1] - there[0] + 1) / (here[-1] - here[0] + 1)
        matrix[row, row] = scale
        # Pixel centres: the boxes' edges lie half a pixel outside the first and last.
        matrix[row, 2] = there[0] - 0.5 - scale * (here[0] - 0.5)
    return matrix


def _shown(other: Gray, to_other: NDArray[np.float64], shape: tuple[int, int]) -> Gray:
    """Another image where an affine without shear takes each pixel: uint8 `[h, w]`.

    Where it is shown smaller than it is, a pixel is the mean over the area it covers: the image is
    sampled about once a pixel of its own, and the samples are averaged. Bilinear interpolation
    alone looks at four pixels whatever lies between them, and thin bright lines (ribs' edges,
    tubes) would come and go.
    """
    counts = np.clip(np.ceil(np.diag(to_other[:, :2]) - 1e-9), 1, _MOST_SAMPLES)
    fine = to_other.copy()
    fine[:, 2] += np.diag(to_other[:, :2]) * (0.5 / counts - 0.5)  # pixel centres
    fine[[0, 1], [0, 1]] /= counts
    size = (int(shape[1] * counts[0]), int(shape[0] * counts[1]))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(other, fine, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return resize_gray(np.asarray(found, np.uint8), shape)


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of length 1: float64 where they are, else float32 (half the memory of a bank)."""
    kept = rows if rows.dtype == np.float64 else rows.astype(np.float32, copy=False)
    norms = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.asarray(kept / np.maximum(norms, 1e-12))
