"""How a layer's output becomes feature maps `[N, C, h, w]`, told by facts of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raybench.errors import ModelError

Reshape = Callable[[torch.Tensor], torch.Tensor]
"""A layer's output (or its gradient) to feature maps `[N, C, h, w]`."""


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """Reshapes the output of one layer.

    Attributes:
        path: dotted path of the layer, for messages.
        last: whether a four-dimensional output has its channels last (`[N, h, w, C]`).
        grid: `(h, w)` of the patches where the network has patch tokens, or None.
        n_prefix: tokens before the patches (class, distillation, registers).
    """

    path: str
    last: bool
    grid: tuple[int, int] | None
    n_prefix: int

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Feature maps `[N, C, h, w]`.

        Raises:
            ModelError: the output is neither feature maps nor the network's patch tokens.
        """
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self.last else output
        if output.ndim == 3 and self.grid is not None:
            n_patches = self.grid[0] * self.grid[1]
            extra = output.shape[1] - n_patches
            if extra in (0, self.n_prefix):  # no prefix yet before it is put there
                tokens = output[:, extra:]
                return tokens.transpose(1, 2).reshape(len(output), -1, *self.grid)
        raise ModelError(
            f"expected feature maps [N, C, h, w] from {self.path!r}, found {tuple(output.shape)}; "
            "name a layer before the pooling"
        )


def feature_maps(net: nn.Module, path: str, input_size: tuple[int, int]) -> FeatureMaps:
    """How the output of the layer at `path` is reshaped, for inputs of `input_size`.

    Channels are last where the layer's kind says so (a layer normalisation or a linear layer), or,
    for a block or a stage, where the network that it lies in says that of its own output (timm's
    `output_fmt`). The grid of patch tokens is the input's, by the network's patch embedding.
    """
    layer = net.get_submodule(path)
    parts = path.split(".")
    owners = [net.get_submodule(".".join(parts[:n])) for n in range(len(parts) - 1, -1, -1)]
    formats = (str(o.output_fmt) for o in owners if hasattr(o, "output_fmt"))
    told = _kind(layer)
    last = told if told is not None else next(formats, "NCHW").endswith("NHWC")
    grids = [_grid(owner, input_size) for owner in owners]
    grid = next((g for g in grids if g is not None), None)
    prefixes = (getattr(owner, "num_prefix_tokens", None) for owner in owners)
    n_prefix = next((int(str(n)) for n in prefixes if n is not None), 0)
    return FeatureMaps(path, last, grid, n_prefix)


def _kind(layer: nn.Module) -> bool | None:
    """Whether the layer's channels are last; None for what works in either way."""
    name = type(layer).__name__
    if "2d" in name:  # timm's LayerNorm2d is a LayerNorm, but of channels that come first
        return False
    if isinstance(layer, nn.LayerNorm | nn.Linear | nn.RMSNorm):
        return True
    return None


def _grid(net: nn.Module, input_size: tuple[int, int]) -> tuple[int, int] | None:
    embed: Any = getattr(net, "patch_embed", None)
    if embed is None or not hasattr(embed, "dynamic_feat_size"):
        return None
    rows, columns = embed.dynamic_feat_size(input_size)
    return int(rows), int(columns)


def cam_layer(net: nn.Module, stage: str) -> str:
    """The layer that Grad-CAM reads, where `stage` is the last one.

    A transformer with a class token classifies by that token alone, and behind the last attention
    nothing of the patches reaches it: their gradient at the last block's output is 0. So it is read
    where the last attention takes them up, at the block's first normalisation. A network whose
    maps have their channels last (Swin) is read behind its final normalisation, whose mean
    is what the classes are told from.
    """
    if hasattr(net, "num_prefix_tokens") and hasattr(net.get_submodule(stage), "norm1"):
        return f"{stage}.norm1"
    if str(getattr(net, "output_fmt", "")).endswith("NHWC") and isinstance(
        getattr(net, "norm", None), nn.LayerNorm
    ):
        return "norm"
    return stage
