"""Networks and questions that the tests of backends and of composed batches share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raybench.models.build import build


def steep(name: str = "test_resnet") -> nn.Module:
    """A network whose answers move: a fresh head says 1/3 to everything."""
    torch.manual_seed(0)
    net = build(name, 3).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 64, 64))
        net.get_classifier().weight.mul_(40)
    return net.eval().to(memory_format=torch.channels_last)


class Tiny(nn.Module):
    """Compiles in seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 3)
        self.seen: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(batch)).mean(dim=(2, 3))) * 4


Question = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_]]


def question(n: int = 20, size: tuple[int, int] = (64, 64), seed: int = 0) -> Question:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, size, dtype=np.uint8)
    fill = rng.integers(0, 256, size, dtype=np.uint8)
    superpixels = rng.integers(0, 9, size).astype(np.int32)
    superpixels.flat[:9] = np.arange(9)
    return image, fill, superpixels, rng.random((n, 9)) > 0.5


def shares(n: int, size: tuple[int, int], device: str = "cpu") -> torch.Tensor:
    """How much of each pixel is shown: all, nothing, and anything between."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand((n, *size), generator=generator)
    drawn[0], drawn[1] = 1, 0
    return drawn.to(device)
