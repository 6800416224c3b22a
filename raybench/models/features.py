"""How a layer's output becomes feature maps `[N, C, h, w]`, told by facts of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from raybench.errors import ModelError

Reshape = Callable[[torch.Tensor], torch.Tensor]
"""A layer's output (or its gradient) to feature maps `[N, C, h, w]`."""

_CLASS_ATTENTION = ("blocks_token_only", "cls_attn_blocks")
"""What CaiT and XCiT call the blocks in which only the class token looks at the patches."""


@dataclass(frozen=True, slots=True)
class FeatureMaps:
    """Reshapes the output of one layer.

    Attributes:
        path: dotted path of the layer, for messages.
        input_size: `(H, W)` of the network's input.
        told: whether the layer's kind has channels last (`[N, h, w, C]`); None: works either way.
        likely: the same as what lies in and around it says, for shapes that could be both.
        grids: `(h, w)` that patch tokens may lie in, the network's own word first.
        n_prefix: tokens before the patches (class, distillation, registers).
        plain: a layer inside that can be told, for messages, or None.
        ordered: whether tokens come row by row.
    """

    path: str
    input_size: tuple[int, int]
    told: bool | None
    likely: bool | None
    grids: tuple[tuple[int, int], ...]
    n_prefix: int
    plain: str | None
    ordered: bool

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Feature maps `[N, C, h, w]`.

        Raises:
            ModelError: the output is neither feature maps nor the network's patch tokens, or its
                layout cannot be told.
        """
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2) if self._is_last(output) else output
        if output.ndim == 3 and not self.ordered:
            raise ModelError(
                f"the tokens of {self.path!r} come window by window and not row by row; name a "
                "block of the last stage"
            )
        if output.ndim == 3:
            for grid in self.grids:
                extra = output.shape[1] - grid[0] * grid[1]
                if extra in (0, self.n_prefix):  # no prefix yet before it is put there
                    tokens = output[:, extra:]
                    return tokens.transpose(1, 2).reshape(len(output), -1, *grid)
        advice = "name a layer before the pooling"
        if output.ndim == 3:
            advice = "name one that gives feature maps, or all patches row by row"
        raise ModelError(
            f"expected feature maps [N, C, h, w] from {self.path!r}, found {tuple(output.shape)}; "
            f"{advice}"
        )

    def _is_last(self, output: torch.Tensor) -> bool:
        """By the layer's kind, else by which two axes are the image's, else by its neighbours."""
        if self.told is not None:
            return self.told
        first, last = (_lies_in(output.shape[at : at + 2], self.input_size) for at in (2, 1))
        if first != last:
            return last
        if self.likely is not None:
            return self.likely
        instead = "a convolution or a normalisation" if self.plain is None else repr(self.plain)
        raise ModelError(
            f"{self.path!r} gives {tuple(output.shape)}, and nothing says which of its axes are "
            f"channels; name {instead} instead"
        )


def _lies_in(shape: Sequence[int], size: tuple[int, int]) -> bool:
    """Whether `(h, w)` may be an image's grid: both sides by one stride, rounded either way."""
    if size[0] == size[1]:
        return shape[0] == shape[1]
    most = [side / max(n - 1, 0.5) for side, n in zip(size, shape, strict=True)]
    least = [side / (n + 1) for side, n in zip(size, shape, strict=True)]
    return max(least) < min(most)


def feature_maps(net: nn.Module, path: str, input_size: tuple[int, int]) -> FeatureMaps:
    """How the output of the layer at `path` is reshaped, for inputs of `input_size`.

    Channels are last where the layer's kind says so (a layer normalisation or a linear layer); of
    all others the output's shape tells which axes are the image's. Where it could be either, it is
    what all layers inside say, what the network says of its stages (timm's `output_fmt`), or what
    all layers beside it say. The grid of patch tokens is the input's, by the network's patch
    embedding or by the strides of its stages (timm's `feature_info`).
    """
    layer = net.get_submodule(path)
    parts = path.split(".")
    owners = [net.get_submodule(".".join(parts[:n])) for n in range(len(parts) - 1, -1, -1)]
    formats = (str(o.output_fmt).endswith("NHWC") for o in owners if hasattr(o, "output_fmt"))
    around = (_inside(owner) for owner in owners[:-1])
    guesses = (
        _inside(layer),
        next(formats, None),
        next((g for g in around if g is not None), None),
    )
    prefixes = (getattr(owner, "num_prefix_tokens", None) for owner in owners)
    kinds = ((n, _kind(m)) for n, m in layer.named_modules() if n and not list(m.children()))
    return FeatureMaps(
        path,
        input_size,
        _kind(layer),
        next((guess for guess in guesses if guess is not None), None),
        tuple(grid for owner in owners for grid in _grids(owner, input_size)),
        next((int(str(n)) for n in prefixes if n is not None), 0),
        next((f"{path}.{n}" for n, kind in kinds if kind is not None), None),
        all(_in_rows(owner, parts[len(owners) - 1 - at :]) for at, owner in enumerate(owners)),
    )


def _kind(layer: nn.Module) -> bool | None:
    """Whether the layer's channels are last; None for what works in either way."""
    name = type(layer).__name__
    if "2d" in name:  # timm's LayerNorm2d is a LayerNorm, but of channels that come first
        return False
    if isinstance(layer, nn.Linear) or _normalises_places(layer):
        return True
    return None


def _normalises_places(layer: nn.Module | None) -> bool:
    """Whether it is a layer or RMS normalisation of each place's channels."""
    name = type(layer).__name__.lower()
    return any(kind in name for kind in ("layernorm", "rmsnorm", "simplenorm"))


def _inside(layer: nn.Module) -> bool | None:
    """What all layers inside say of their channels; None where they differ or say nothing."""
    kinds = {_kind(module) for module in layer.modules()} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def _grids(net: nn.Module, input_size: tuple[int, int]) -> list[tuple[int, int]]:
    """The grids that patch tokens may lie in, by one module's word."""
    found = []
    for name in ("patch_embed", "stem"):
        embed: Any = getattr(net, name, None)
        if hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size(input_size)
            found.append((int(rows), int(columns)))
    strides = {int(entry["reduction"]) for entry in _stages(net) if entry.get("reduction")}
    return found + [
        (-(-input_size[0] // stride), -(-input_size[1] // stride)) for stride in sorted(strides)
    ]


def _stages(net: nn.Module) -> list[dict[str, Any]]:
    """timm's record of the network's stages, first to last; empty where there is none."""
    info = getattr(net, "feature_info", None)
    return list(getattr(info, "info", info) or [])


def _in_rows(net: nn.Module, path: Sequence[str]) -> bool:
    """Whether tokens come row by row below a path: Hiera's do from where all windows are pooled."""
    schedule: Any = getattr(getattr(net, "reroll", None), "schedule", None)
    if schedule is None or len(path) < 2 or not path[1].isdigit():
        return True
    return not schedule[int(path[1])][0]


def cam_layer(net: nn.Module, stage: str) -> str:
    """The layer that Grad-CAM reads, where `stage` is the last one.

    A transformer that classifies by its class token alone has nothing of the patches behind the
    last attention: their gradient at the last block's output is 0. So it is read where the last
    attention takes them up, at the block's first normalisation; one whose class token comes in
    only behind its blocks (CaiT, XCiT) is read at the last of these.

    Where each place's channels are normalised behind the last stage and before the pooling (Swin,
    MaxViT, a ViT that pools its patches) it is read behind that: at the stage itself gradient times
    activation adds up to 0 at every place.
    """
    by_token = getattr(net, "global_pool", None) == "token"
    if by_token and _class_attention(net) is None and hasattr(net.get_submodule(stage), "norm1"):
        return f"{stage}.norm1"
    behind = None if by_token else _norm_behind(net, stage)
    return stage if behind is None else behind


def _norm_behind(net: nn.Module, stage: str) -> str | None:
    """The normalisation of each place's channels between the last stage and the pooling."""
    children = [name for name, _ in net.named_children()]
    for name in children[children.index(stage.split(".")[0]) + 1 :]:
        if name in ("norm", "norm_pre") and _normalises_places(getattr(net, name)):
            return name
    return None


def _class_attention(net: nn.Module) -> str | None:
    """The first normalisation of the last block in which the class token looks at the patches."""
    for name in _CLASS_ATTENTION:
        blocks = getattr(net, name, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) and hasattr(blocks[-1], "norm1"):
            return f"{name}.{len(blocks) - 1}.norm1"
    return None


def read_instead(net: nn.Module, path: str) -> str | None:
    """A layer of a network of timm's that says more than the one at `path`; None: none is known."""
    known = [str(entry["module"]) for entry in _stages(net) if entry.get("module")]
    own = [_class_attention(net)] if path.split(".")[0] not in _CLASS_ATTENTION else []
    if known and known[-1] in dict(net.named_modules()):
        own.append(cam_layer(net, known[-1]))
    return next((found for found in own if found is not None and found != path), None)
