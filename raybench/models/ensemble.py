"""The mean of several classifiers' probabilities, as one more classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from raybench.models.perturbed import resize_matrices

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""An ensemble takes RGB in [0, 1] as it is: each member normalises for itself."""


class Member(nn.Module):
    """One classifier of an ensemble, with the way from the ensemble's input to its own.

    Args:
        net: takes normalised float `[N, 3, h, w]`, returns logits `[N, C]`.
        shape: `(H, W)` of the ensemble's input, no side below the member's.
        size: `(h, w)` of the member's.
        mean, std: the normalisation that it was trained with.
    """

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, int],
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.net: nn.Module = net
        self.resizes = shape != size
        rows, columns = resize_matrices(shape, size)
        for name, value in (
            ("rows", torch.from_numpy(rows)),
            ("columns", torch.from_numpy(columns)),
            ("mean", torch.tensor(mean).view(1, 3, 1, 1)),
            ("std", torch.tensor(std).view(1, 3, 1, 1)),
        ):
            self.register_buffer(name, value, persistent=False)

    def inputs(self, batch: torch.Tensor) -> torch.Tensor:
        """RGB in [0, 1], float `[N, 3, H, W]`, as the member wants it, `[N, 3, h, w]`.

        Where it shrinks, areas are averaged as `resize_gray` does, but nothing is rounded. That is
        done in float32 whatever the arithmetic of the networks is.
        """
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        with torch.autocast(batch.device.type, enabled=False):
            batch = (batch.float() - self.get_buffer("mean")) / self.get_buffer("std")
            if self.resizes:  # last: OpenVINO cannot compile a matrix product with channels' terms
                batch = rows @ batch.contiguous() @ columns
        return batch.contiguous(memory_format=torch.channels_last)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Logits `[N, C]`."""
        logits: torch.Tensor = self.net(self.inputs(batch))
        return logits


class Ensemble(nn.Module):
    """Several classifiers of one image: their softmax is the mean of its members' softmaxes.

    Args:
        members: two or more, with the same classes.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def __iter__(self) -> Iterator[Member]:
        """The members in order."""
        for member in self.members:
            assert isinstance(member, Member)
            yield member

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The logarithm of the members' mean probability, float32 `[N, C]`.

        It is finite where the members' logits are, also for a class whose probability all of them
        put below what float32 can hold.

        Args:
            batch: RGB in [0, 1], float `[N, 3, H, W]`.
        """
        every = [torch.log_softmax(member(batch).float(), dim=1) for member in self]
        return torch.logsumexp(torch.stack(every), dim=0) - math.log(len(every))
