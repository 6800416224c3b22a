"""A trained classifier with its parameters drawn anew, from its output layer down.

Cascading randomisation (Adebayo et al. 2018, "Sanity checks for saliency maps"). A randomised
classifier is named by its checkpoint's key with a suffix, so that workers make it of the checkpoint
that they have: nothing more is shipped.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.backbones import Backbone, backbone, trainable
from raybench.models.build import fresh
from raybench.models.checkpoint import read_parts, save_tensors
from raybench.models.runtime import DRAWN, split_key

Depth = Literal["head", "partial", "full"] | int
"""How far down parameters are drawn anew: as a phase's `unfreeze` says how far down it trains."""


def with_depth(key: str, depth: Depth, seed: int) -> str:
    """The key of a model that is randomised; a precision that the key names stays."""
    checkpoint, precision = split_key(key)
    drawn = f"{checkpoint}{DRAWN}{depth}.{seed}"
    return drawn if precision is None else f"{drawn}@{precision}"


def depth_of(key: str) -> tuple[Depth, int] | None:
    """What a key says of randomising: how deep, by which seed; None where it says nothing.

    Raises:
        ModelError: it says something that cannot be read.
    """
    told = key.partition("@")[0].partition(DRAWN)[2]
    if not told:
        return None
    name, _, seed = told.partition(".")
    if not seed.isdecimal():
        raise ModelError(f"{key}: expected a depth after {DRAWN}, then a dot and a seed")
    return depth_named(name), int(seed)


def depth_named(name: str) -> Depth:
    """The depth that a text names.

    Raises:
        ModelError: there is none of that name.
    """
    if name == "head":
        return "head"
    if name == "partial":
        return "partial"
    if name == "full":
        return "full"
    if name.isdecimal():
        return int(name)
    raise ModelError(f"expected head, partial, full or a number of stages, found {name!r}")


def redrawn(net: nn.Module, facts: Backbone, depth: Depth) -> list[str]:
    """Names of the tensors that are drawn anew: parameters, and what normalisations gathered.

    Those from the first parameter of the stage on, in the network's order.

    Raises:
        ModelError: the network has fewer stages.
    """
    names = list(net.state_dict())
    if depth == "full":
        return names
    first = names.index(trainable(net, facts, depth)[0])
    if depth == "head":
        return [n for n in names if n.startswith(tuple(f"{h}." for h in facts.head))]
    return names[first:]


def randomised(data: bytes, depth: Depth, seed: int, where: str = "checkpoint") -> bytes:
    """A checkpoint with some parameters as a network has them before its training.

    They are timm's own draw for the backbone (its normalisations without any statistics), and for
    the head raybench's (`build.fresh`). Of one seed the draw is the same whatever the depth, so
    that deeper ones go on from shallower ones.

    Args:
        data: a classifier's checkpoint; it is left as it is.

    Raises:
        ModelError: it is none, it is an ensemble's, or the network has fewer stages.
    """
    card, tensors = read_parts(data, where, "classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = fresh(card.backbone, len(card.classes))
    drawn = net.state_dict()
    names = redrawn(net, backbone(card.backbone), depth)
    state = tensors | {name: drawn[name] for name in names}
    return save_tensors(state, replace(card, scores={}))
