"""Images in memory as uint8, and augmentation of whole batches on the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch.nn import functional

from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import DataError
from raybench.training.balance import balanced_order
from raybench.training.recipe import Augment
from raybench.types import ChestXray, Dataset, XrayRecord

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_TELL_SECONDS = 2.0

Empty = Callable[[tuple[int, ...], Any], np.ndarray]


@dataclass(frozen=True, slots=True)
class Images:
    """One split, ready to train on.

    Attributes:
        pixels: uint8 `[N, H, W]`.
        targets: class indices int64 `[N]`, or masks uint8 `[N, H, W]`, 0 or 1.
    """

    pixels: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)


def load_images(
    dataset: Dataset,
    records: Sequence[XrayRecord],
    preprocess: Preprocess,
    size: tuple[int, int],
    target: Callable[[ChestXray], int | torch.Tensor],
    n_threads: int = 4,
    empty: Empty = np.empty,
) -> Images:
    """Decode, preprocess and resize the records, in their order.

    Args:
        target: what is to be learned of an image: its class, or a mask uint8 `[h, w]` of its own
            size, which is brought to `size` by the nearest pixel.
        empty: makes the array of pixels and then that of targets, from shape and dtype.
    """

    def one(record: XrayRecord) -> tuple[np.ndarray, np.ndarray]:
        xray = dataset.load(record)
        wanted = target(xray)
        if isinstance(wanted, torch.Tensor):
            width_height = (size[1], size[0])
            mask = cv2.resize(wanted.numpy(), width_height, interpolation=cv2.INTER_NEAREST_EXACT)
            return resize_gray(preprocess.apply(xray), size), np.asarray(mask)
        return resize_gray(preprocess.apply(xray), size), np.asarray(wanted, np.int64)

    pixels = empty((len(records), *size), np.uint8)
    targets: np.ndarray | None = None
    told = time.monotonic()
    with ThreadPoolExecutor(n_threads) as pool:
        for index, (image, wanted) in enumerate(pool.map(one, records)):
            if targets is None:
                targets = empty((len(records), *wanted.shape), wanted.dtype)
            pixels[index], targets[index] = image, wanted
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                log.info("decoded %d of %d images", index + 1, len(records))
    if targets is None:
        raise DataError("expected images to train on, found none")
    return Images(torch.from_numpy(pixels), torch.from_numpy(targets))


def batches(
    images: Images, batch_size: int, generator: torch.Generator, balanced: bool = False
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches; a last batch of one image joins the one before (BatchNorm needs two).

    Args:
        balanced: draw as many images with replacement, each class as likely.
    """
    if balanced:
        order = balanced_order(images.targets, generator)
    else:
        order = torch.randperm(len(images), generator=generator)
    parts = list(torch.split(order, batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    for index in parts:
        yield images.pixels[index], images.targets[index]


def ahead(parts: Iterator[_T]) -> Iterator[_T]:
    """The same, each made in a thread while the one before is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, parts, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parts, None)
            yield part


def on_device(
    parts: Iterator[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches as float `[n, 1, H, W]` in [0, 255] and their targets, on the device.

    For a GPU they are picked from memory and pinned ahead, and copied without waiting.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        parts = ahead((pixels.pin_memory(), wanted.pin_memory()) for pixels, wanted in parts)
    for pixels, wanted in parts:
        there = pixels.to(device, non_blocking=on_gpu).float().unsqueeze(1)
        yield there, wanted.to(device, non_blocking=on_gpu)


Augmenter = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def augmenter(augment: Augment, generator: torch.Generator) -> Augmenter:
    """A function from images, float `[N, 1, H, W]` in [0, 255], and their targets to the same.

    Images are mirrored, rotated and scaled about their centre and moved, bilinear; what comes in
    from outside is black. Masks go the same way, by the nearest pixel; classes stay.
    """

    def apply(pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        theta = _sent(_geometry(augment, len(pixels), generator), pixels.device)
        grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
        moved = functional.grid_sample(pixels, grid, align_corners=False)
        if targets.ndim > 1:
            masks = targets[:, None].to(pixels.dtype)
            warped = functional.grid_sample(masks, grid, mode="nearest", align_corners=False)
            targets = warped[:, 0].to(targets.dtype)
        return _exposure(augment, moved, generator), targets

    return apply


def _geometry(augment: Augment, n: int, generator: torch.Generator) -> torch.Tensor:
    """Where each image's pixels come from: affine maps `[n, 2, 3]`, as `affine_grid` has them."""

    def up_to(most: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * most

    flip = torch.ones(n)
    if augment.flip:
        flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    angle = torch.deg2rad(up_to(augment.rotation))
    # What is off draws nothing, so that adding a kind of change leaves older sweeps as they were.
    shrink = 1 / (1 + up_to(augment.scale)) if augment.scale else torch.ones(n)
    move = [2 * up_to(augment.shift) if augment.shift else torch.zeros(n) for _ in range(2)]
    cos, sin = torch.cos(angle) * shrink, torch.sin(angle) * shrink
    rows = (
        torch.stack([flip * cos, -sin, move[0]], 1),
        torch.stack([flip * sin, cos, move[1]], 1),
    )
    return torch.stack(rows, 1)


def _sent(drawn: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A few drawn numbers on the device; a GPU is not waited for."""
    return drawn.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else drawn


def _exposure(augment: Augment, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    def factor(most: float) -> torch.Tensor:
        drawn = 1 + (torch.rand(len(pixels), generator=generator) * 2 - 1) * most
        return _sent(drawn, pixels.device)[:, None, None, None]

    if augment.contrast:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        pixels = mean + (pixels - mean) * factor(augment.contrast)
    if augment.brightness:
        pixels = pixels * factor(augment.brightness)
    return pixels.clamp(0, 255) if augment.contrast or augment.brightness else pixels
