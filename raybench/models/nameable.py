"""A layer of any network that class activation maps can be made from, found by looking."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.features import feature_maps


def nameable(net: nn.Module, inputs: torch.Tensor) -> str | None:
    """The last layer that gives one tensor of feature maps, once a pass, that a class depends on.

    What lies within attention has maps of heads and not of places, and is passed over.

    Args:
        inputs: normalised float `[N, 3, H, W]`; the first is looked at.

    Returns:
        Its dotted path; None where there is none.
    """
    seen: list[tuple[str, torch.Tensor]] = []

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.requires_grad:
            seen.append((name, output))

    with ExitStack() as stack, torch.enable_grad():
        for name, module in net.named_modules():
            if name and "attn" not in name:
                stack.callback(module.register_forward_hook(partial(note, name)).remove)
        logit = net(inputs[:1].detach().requires_grad_())[0, 0]
        slopes = torch.autograd.grad(logit, [output for _, output in seen], allow_unused=True)
    times = Counter(name for name, _ in seen)
    size = (inputs.shape[2], inputs.shape[3])
    for (name, output), slope in zip(reversed(seen), reversed(slopes), strict=True):
        if slope is not None and times[name] == 1 and len(output) == 1:
            try:
                maps = feature_maps(net, name, size)(slope)
            except ModelError:
                continue
            if min(maps.shape[2:]) > 1 and maps.any():
                return name
    return None
