"""Images in memory as uint8, and augmentation of whole batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional

from raybench.data.preprocess import Preprocess, resize_gray
from raybench.training.recipe import Augment
from raybench.types import ChestXray, Dataset, XrayRecord


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
) -> Images:
    """Decode, preprocess and resize the records, in their order.

    Args:
        target: what is to be learned of an image: its class, or a mask uint8 `[h, w]` of its own
            size, which is brought to `size` by the nearest pixel.
    """

    def one(record: XrayRecord) -> tuple[np.ndarray, int | np.ndarray]:
        xray = dataset.load(record)
        wanted = target(xray)
        if isinstance(wanted, torch.Tensor):
            width_height = (size[1], size[0])
            wanted = cv2.resize(wanted.numpy(), width_height, interpolation=cv2.INTER_NEAREST_EXACT)
        return resize_gray(preprocess.apply(xray), size), wanted

    with ThreadPoolExecutor(n_threads) as pool:
        found = list(pool.map(one, records))
    pixels = np.stack([image for image, _ in found])
    targets = np.stack([np.asarray(wanted) for _, wanted in found])
    return Images(torch.from_numpy(pixels), torch.from_numpy(targets))


def batches(
    images: Images, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches; a last batch of one image joins the one before (BatchNorm needs two)."""
    order = torch.randperm(len(images), generator=generator)
    parts = list(torch.split(order, batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    for index in parts:
        yield images.pixels[index], images.targets[index]


Augmenter = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def augmenter(augment: Augment, generator: torch.Generator) -> Augmenter:
    """A function from images, float `[N, 1, H, W]` in [0, 255], and their targets to the same.

    Images are mirrored, rotated and scaled about their centre and moved, bilinear; what comes in
    from outside is black. Masks go the same way, by the nearest pixel; classes stay.
    """

    def apply(pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        theta = _geometry(augment, len(pixels), generator).to(pixels.device)
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


def _exposure(augment: Augment, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    def factor(most: float) -> torch.Tensor:
        drawn = 1 + (torch.rand(len(pixels), generator=generator) * 2 - 1) * most
        return drawn.to(pixels.device)[:, None, None, None]

    if augment.contrast:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        pixels = mean + (pixels - mean) * factor(augment.contrast)
    if augment.brightness:
        pixels = pixels * factor(augment.brightness)
    return pixels.clamp(0, 255) if augment.contrast or augment.brightness else pixels
