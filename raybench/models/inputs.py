"""What goes into a network: X-rays, perturbed ones too, at its size and normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raybench.data.preprocess import resize_gray
from raybench.models.forward import Compose
from raybench.models.perturbed import Blender, Composer, resize_matrices
from raybench.types import Gray


class Inputs:
    """Makes a network's inputs on its device.

    Args:
        input_size: `(height, width)` that it takes.
        mean, std: normalisation of RGB in [0, 1] that it was trained with.
        device: where it runs.
    """

    def __init__(
        self,
        input_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
    ) -> None:
        self._size, self._device = input_size, device
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255.0
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1) * 255.0

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Grey levels `[N, 1 or 3, H, W]` to float32 `[N, 3, H, W]`, channels last."""
        normalised = (batch.float().expand(-1, 3, -1, -1) - self._mean) / self._std
        return normalised.contiguous(memory_format=torch.channels_last)

    def prepare(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 `[N, h, w]` or `[N, h, w, 3]`, any size, to normalised float `[N, 3, H, W]`."""
        if images.shape[1:3] != self._size:
            images = np.stack([resize_gray(image, self._size) for image in images])
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        batch = batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        return self.normalise(batch)

    def perturbed(
        self,
        image: Gray,
        fills: NDArray[np.uint8],
        superpixels: NDArray[np.int32],
        keep: NDArray[np.bool_],
        which: NDArray[np.integer] | None,
    ) -> Compose:
        """Composes an image's perturbations; as for `Classifier.predict_perturbed`.

        Args:
            fills: uint8 `[F, h, w]`.
        """
        both = np.concatenate([image[None], fills])
        if image.shape == self._size:
            return Composer(self.prepare(both), superpixels, keep, which)
        if self._device.type != "cpu":
            return self.resizing(both, superpixels, keep, which)
        labels = np.asarray(superpixels)
        numbers = np.zeros(len(keep), np.intp) if which is None else which

        def rendered(start: int, stop: int) -> torch.Tensor:
            shown = keep[start:stop][:, labels]
            return self.prepare(np.where(shown, image, fills[numbers[start:stop]]))

        return rendered

    def resizing(
        self,
        both: NDArray[np.uint8],
        superpixels: NDArray[np.int32],
        keep: NDArray[np.bool_],
        which: NDArray[np.integer] | None,
    ) -> Compose:
        """Composes at the image's size and resizes on the device, as `resize_gray` would.

        Args:
            both: uint8 `[1 + F, h, w]`, the image and its fills.
        """
        shape = (both.shape[1], both.shape[2])
        composer = Composer(self._grey_levels(both), superpixels, keep, which)
        return self._resized(composer, shape, levels=True)

    def blended(self, image: Gray, fill: Gray, shown: Compose) -> Compose:
        """Composes soft perturbations; as for `Classifier.predict_blended`."""
        pixels = np.stack([image, fill])
        if image.shape == self._size:
            both = self.prepare(pixels)
            return Blender(both[:1], both[1:], shown)
        both = self._grey_levels(pixels)
        return self._resized(Blender(both[:1], both[1:], shown), image.shape, levels=False)

    def _grey_levels(self, images: NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(images).to(self._device).float().unsqueeze(1)

    def _resized(self, compose: Compose, shape: tuple[int, ...], levels: bool) -> Compose:
        """What is composed in grey levels at a shape, resized; to whole grey levels, or any."""
        rows, columns = (
            torch.from_numpy(matrix).to(self._device)
            for matrix in resize_matrices((shape[0], shape[1]), self._size)
        )

        def resized(start: int, stop: int) -> torch.Tensor:
            grey = rows @ compose(start, stop).contiguous() @ columns
            return self.normalise(grey.round().clamp(0, 255) if levels else grey)

        return resized
