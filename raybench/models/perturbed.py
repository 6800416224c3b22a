"""Perturbed images composed where the model is: a map of regions and a bit for each, no pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from raybench.errors import ModelError
from raybench.types import Gray


def check_perturbed(
    image: Gray,
    fills: NDArray[np.uint8],
    superpixels: NDArray[np.int32],
    keep: NDArray[np.bool_],
    which: NDArray[np.integer] | None,
) -> None:
    """Refuse what cannot be composed.

    Raises:
        ModelError: a shape or dtype is wrong, a label has no bit, or a row's fill is not there.
    """
    check_pixels(image, fills)
    _check_which(which, len(fills), len(keep))
    if superpixels.shape != image.shape or superpixels.dtype.kind not in "iu":
        raise ModelError(
            f"superpixels: expected whole numbers {list(image.shape)}, found {superpixels.dtype} "
            f"{list(superpixels.shape)}"
        )
    if keep.dtype != np.bool_ or keep.ndim != 2 or len(keep) == 0:
        raise ModelError(
            f"keep: expected bool [n, K] with n > 0, found {keep.dtype} {list(keep.shape)}"
        )
    low, high = int(superpixels.min()), int(superpixels.max())
    if low < 0 or high >= keep.shape[1]:
        raise ModelError(
            f"superpixels: expected labels 0 to {keep.shape[1] - 1} (keep has {keep.shape[1]} "
            f"columns), found {low} to {high}"
        )


def _check_which(which: NDArray[np.integer] | None, n_fills: int, n_rows: int) -> None:
    if which is None:
        if n_fills != 1:
            raise ModelError(f"which: expected the fill of each row, for there are {n_fills}")
        return
    if which.shape != (n_rows,) or which.dtype.kind not in "iu":
        raise ModelError(
            f"which: expected whole numbers [{n_rows}], found {which.dtype} {list(which.shape)}"
        )
    if n_rows and not 0 <= int(which.min()) <= int(which.max()) < n_fills:
        raise ModelError(
            f"which: expected 0 to {n_fills - 1}, found {int(which.min())} to {int(which.max())}"
        )


def check_pixels(image: Gray, fills: NDArray[np.uint8]) -> None:
    """Refuse an image `[h, w]` and fills `[F, h, w]` that do not fit together.

    Raises:
        ModelError: a shape or dtype is wrong.
    """
    for name, array, shape in (("image", image, image.shape), ("fill", fills, fills.shape[1:])):
        if array.dtype != np.uint8 or len(shape) != 2 or shape != image.shape:
            raise ModelError(
                f"{name}: expected uint8 {list(image.shape)}, found {array.dtype} {list(shape)}"
            )


class Composer:
    """The perturbations of one image, on a device.

    Pixels and their channels lie in one row, as channels-last images do in memory: bits are
    gathered and pixels selected along it in long runs, three times as fast on a CPU as in blocks.

    Args:
        both: `[1 + F, C, h, w]` on the device: the image, and what stands in for it.
        superpixels: `[h, w]`, labels 0 to K - 1.
        keep: bool `[n, K]`; True shows the image, False the fill.
        which: `[n]`, the number of each row's fill; None: there is one.
    """

    def __init__(
        self,
        both: torch.Tensor,
        superpixels: NDArray[np.int32],
        keep: NDArray[np.bool_],
        which: NDArray[np.integer] | None = None,
    ) -> None:
        image = both[:1]
        _, self._channels, self._height, self._width = image.shape
        self._image, self._fills = (
            pixels.permute(0, 2, 3, 1).reshape(len(pixels), -1).contiguous()
            for pixels in (image, both[1:])
        )
        self._which = None if which is None else torch.from_numpy(which.astype(np.int64))
        labels = torch.from_numpy(superpixels.astype(np.int64).ravel()).to(image.device)
        self._labels = labels.repeat_interleave(self._channels)
        self._keep = torch.from_numpy(np.ascontiguousarray(keep)).to(image.device)

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Perturbations `start` to `stop`, `[n, C, h, w]`, channels last."""
        n = stop - start
        shown = self._keep[start:stop].gather(1, self._labels.expand(n, -1))
        fill = self._fills
        if self._which is not None and len(fill) > 1:
            fill = fill[self._which[start:stop].to(fill.device)]
        batch = torch.where(shown, self._image, fill)
        return batch.view(n, self._height, self._width, self._channels).permute(0, 3, 1, 2)


class Blender:
    """Blends of an image and a fill, on a device: soft perturbations.

    Args:
        image, fill: `[1, C, h, w]` on the device.
        shown: from and up to which index, to float `[n, h, w]` on the device: 1 shows the image, 0
            the fill, what lies between a part of both.
    """

    def __init__(
        self,
        image: torch.Tensor,
        fill: torch.Tensor,
        shown: Callable[[int, int], torch.Tensor],
    ) -> None:
        self._image, self._fill, self._shown = image, fill, shown

    def __call__(self, start: int, stop: int) -> torch.Tensor:
        """Blends `start` to `stop`, `[n, C, h, w]`, channels last; an end is met exactly."""
        shown = self._shown(start, stop)
        if shown.shape != (stop - start, *self._image.shape[2:]):
            expected = [stop - start, *self._image.shape[2:]]
            raise ModelError(f"shown: expected {expected}, found {list(shown.shape)}")
        blend = torch.lerp(self._fill, self._image, shown.unsqueeze(1))
        return blend.contiguous(memory_format=torch.channels_last)


def resize_matrices(
    shape: tuple[int, int], size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows and columns of `resize_gray` as a pair of matrices.

    Args:
        shape: `(H, W)` of the image.
        size: `(h, w)` to come out.

    Returns:
        `rows` float32 `[h, H]` and `columns` `[W, w]`: `rows @ image @ columns`, rounded, is
        `resize_gray(image, size)` to within a grey level (OpenCV rounds its coefficients).
    """
    shrinks = size[0] <= shape[0] and size[1] <= shape[1]
    each = _areas if shrinks else _lines
    return each(shape[0], size[0]), np.ascontiguousarray(each(shape[1], size[1]).T)


def _areas(n_in: int, n_out: int) -> NDArray[np.float32]:
    """Each pixel that comes out is the mean over the stretch of pixels that it covers."""
    edges = np.arange(n_out + 1) * (n_in / n_out)
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(n_in)[None, :]
    overlap = np.clip(np.minimum(right, pixel + 1) - np.maximum(left, pixel), 0, None)
    return np.asarray(overlap / (n_in / n_out), dtype=np.float32)


def _lines(n_in: int, n_out: int) -> NDArray[np.float32]:
    """Each pixel that comes out lies between two; beyond the outermost they are repeated."""
    place = np.clip((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5, 0, n_in - 1)
    low = np.floor(place).astype(np.intp)
    high = np.minimum(low + 1, n_in - 1)
    matrix = np.zeros((n_out, n_in), np.float32)
    every = np.arange(n_out)
    matrix[every, low] += (1 - (place - low)).astype(np.float32)
    matrix[every, high] += (place - low).astype(np.float32)
    return matrix
