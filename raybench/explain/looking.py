"""What one pass through a network shows of a layer: its feature maps, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError, ModelError
from raybench.explain.base import target_class
from raybench.explain.given import untouched
from raybench.models.backbones import module_at
from raybench.models.classifier import Classifier
from raybench.models.features import feature_maps, read_instead
from raybench.models.nameable import nameable
from raybench.types import Unit, Values

# Of the largest sum of absolute values. What a normalisation adds for stability leaves a little.
_NOTHING = 1e-3


class _NoMaps(ExplainError):
    """A layer gives nothing, or not one tensor."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What one pass showed of a layer.

    Attributes:
        path: the layer's.
        activations, gradients: float32 `[N, C, h, w]`; gradients None where none were asked for.
        logits: float32 `[N, classes]`.
        targets: the class of each image.
    """

    path: str
    activations: Values
    gradients: Values | None
    logits: Values
    targets: Sequence[int]


def look(
    name: str, path: str | None, gradient: bool, units: Sequence[Unit], model: Classifier
) -> Looked:
    """Pass the units' images through the model and note what a layer gives.

    Args:
        name: of who asks, for messages.
        path: of the layer; None: the model's own for such maps.
        gradient: whether gradients of each image's own target are asked for.
        units: their payloads hold `image` and `target`.

    Raises:
        ExplainError: no layer is named, a class does not depend on it, there is no such class, or
            the layer's output is no feature map.
        ModelError: there is no such layer.
    """
    found = path or model.cam_layer
    if found is None:
        raise ExplainError(f"{name}: name the layer, this model has no entry in the table")
    images = [resize_gray(unit.payload["image"], model.input_size) for unit in units]
    wanted = [unit.payload["target"] for unit in units]
    inputs = model.prepare(np.stack(images))
    try:
        logits, targets, activations, slopes = _pass(
            name, found, gradient, inputs, wanted, model.net
        )
    except _NoMaps as error:
        with untouched(model.net):
            other = nameable(model.net, inputs)
        here = "" if other is None else f" (here `layer: {other}` does)"
        raise ExplainError(
            f"{error}{here}; net.named_modules() of the classifier lists them all"
        ) from error
    if len(activations) != len(units):
        raise ExplainError(
            f"{name}: {found!r} gives {len(activations)} feature maps for {len(units)} images, one "
            f"each window; name the block that it lies in{_instead(model.net, found)}"
        )
    reshape = feature_maps(model.net, found, model.input_size)
    try:
        maps = reshape(activations).numpy()
        gradients = None if slopes is None else reshape(slopes).numpy()
    except ModelError as error:
        raise ExplainError(f"{name}: {error}") from error
    if gradients is not None:
        _check_slopes(name, found, gradients, model.net)
    return Looked(found, maps, gradients, logits, targets)


def _pass(
    name: str,
    path: str,
    gradient: bool,
    inputs: torch.Tensor,
    wanted: Sequence[int | None],
    net: nn.Module,
) -> tuple[Values, list[int], torch.Tensor, torch.Tensor | None]:
    """Logits, targets, and the layer's output and its gradient, as they are."""
    from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients

    layer = module_at(net, path)

    handle = layer.register_forward_hook(_begin(name, path, gradient))
    with untouched(net), torch.set_grad_enabled(gradient):
        seen = ActivationsAndGradients(net, [layer], None)
        try:
            logits = seen(inputs)
            scores: Values = logits.detach().float().cpu().numpy()
            pairs = zip(scores, wanted, strict=True)
            targets = [target_class(row, target) for row, target in pairs]
            if gradient and logits.requires_grad:
                logits[range(len(targets)), targets].sum().backward()
            activations, gradients = list(seen.activations), list(seen.gradients)
        finally:
            seen.release()
            handle.remove()
    if not activations or (gradient and not gradients):
        what = "no gradient reaches" if gradient else "no activation comes from"
        raise _NoMaps(f"{name}: {what} {path!r}; name a layer that the classes depend on")
    if len(activations) > 1:
        raise ExplainError(
            f"{name}: {path!r} is used {len(activations)} times in a pass; name a layer that is "
            "used once"
        )
    return scores, targets, activations[0], gradients[0] if gradient else None


def _begin(name: str, path: str, gradient: bool) -> Callable[..., torch.Tensor | None]:
    """A hook of the layer: with it the graph begins there.

    What lies before the layer needs no gradient then, which saves its memory and half of the time,
    and whether the network is frozen does not matter. The layer's output is handed on as a copy,
    which may be changed in place, as the first of a graph may not.
    """

    def begin(module: nn.Module, args: Any, output: Any) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            raise _NoMaps(
                f"{name}: expected feature maps from {path!r}, found a {type(output).__name__}; "
                "name a layer inside that gives a single tensor"
            )
        return output.detach().requires_grad_().clone() if gradient else None

    return begin


def _check_slopes(name: str, path: str, gradients: Values, net: nn.Module) -> None:
    """Refuse an image that the layer says nothing of, whoever shares its batch."""
    if not gradients.any(axis=(1, 2, 3)).all():
        raise ExplainError(
            f"{name}: the gradient is 0 everywhere in {path!r}; name a layer that the classes "
            "depend on (of a transformer with a class token the last block's first normalisation)"
            f"{_instead(net, path)}"
        )


def check_sums(name: str, seen: Looked, net: nn.Module) -> None:
    """Refuse maps whose gradient times activation adds up to nothing at any place but for rounding.

    That is so wherever a normalisation of each place's channels follows the layer: what comes out
    of it does not change with their scale (Euler's theorem on homogeneous functions).

    Raises:
        ExplainError: it does for an image.
    """
    assert seen.gradients is not None
    products = seen.activations * seen.gradients
    sums = np.abs(products.sum(axis=1)).max(axis=(1, 2))
    sizes = np.abs(products).sum(axis=1).max(axis=(1, 2))
    if (sums < _NOTHING * sizes).any():
        raise ExplainError(
            f"{name}: gradient times activation adds up to 0 at every place of {seen.path!r}, "
            "because each place's channels are normalised behind it; name the layer of that "
            f"normalisation{_instead(net, seen.path)}, or choose grad_cam or layer_cam"
        )


def _instead(net: nn.Module, path: str) -> str:
    """A layer of this network that works in place of another, in brackets; empty: none is known."""
    found = read_instead(net, path)
    return "" if found is None else f" (here {found!r})"
