"""Images in memory as uint8, and augmentation of whole batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from raybench.data.preprocess import Preprocess, resize_gray
from raybench.training.recipe import Augment
from raybench.types import Dataset, XrayRecord


@dataclass(frozen=True, slots=True)
class Images:
    """One split, ready to train on: uint8 `[N, H, W]` and class indices int64 `[N]`."""

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def load_images(
    dataset: Dataset,
    records: Sequence[XrayRecord],
    preprocess: Preprocess,
    size: tuple[int, int],
    n_threads: int = 4,
) -> Images:
    """Decode, preprocess and resize the records, in their order."""

    def one(record: XrayRecord) -> np.ndarray:
        return resize_gray(preprocess.apply(dataset.load(record)), size)

    with ThreadPoolExecutor(n_threads) as pool:
        pixels = np.stack(list(pool.map(one, records)))
    labels = [dataset.classes.index(record.label) for record in records]
    return Images(torch.from_numpy(pixels), torch.tensor(labels))


def batches(
    images: Images, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches; a last batch of one image joins the one before (BatchNorm needs two)."""
    order = torch.randperm(len(images), generator=generator)
    parts = list(torch.split(order, batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    for index in parts:
        yield images.pixels[index], images.labels[index]


def augmenter(
    augment: Augment, generator: torch.Generator
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from float `[N, 1, H, W]` in [0, 255] to the same, mirrored and rotated.

    Rotation is about the centre, bilinear; what comes in from outside is black.
    """

    def apply(batch: torch.Tensor) -> torch.Tensor:
        n = len(batch)
        flip = torch.ones(n)
        if augment.flip:
            flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        angle = torch.deg2rad((torch.rand(n, generator=generator) * 2 - 1) * augment.rotation)
        cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros(n)
        theta = torch.stack(
            [torch.stack([flip * cos, -sin, zero], 1), torch.stack([flip * sin, cos, zero], 1)], 1
        ).to(batch.device)
        grid = functional.affine_grid(theta, list(batch.shape), align_corners=False)
        return functional.grid_sample(batch, grid, align_corners=False)

    return apply
