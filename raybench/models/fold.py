"""Normalisation folded into convolutions: the same function in fewer passes over memory.

In evaluation mode a batch normalisation behind a convolution is a scale and a shift of each
channel, which the convolution's own weights and bias can take over (Jacob et al. 2018, equation
14). The answers differ by rounding alone.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from raybench.models.ensemble import Ensemble


class _Tracer(fx.Tracer):
    """timm's convolutions, normalisations and pooling are looked at as a whole."""

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        kinds = (_BatchNorm, nn.Conv2d)
        return isinstance(module, kinds) or super().is_leaf_module(module, path)


def fold(net: nn.Module) -> nn.Module | None:
    """A copy with every batch normalisation folded that stands right behind a convolution.

    Of an ensemble each member is folded that can be.

    Returns:
        The copy, in evaluation mode, which does not follow later changes of `net`; None where
        there is nothing to fold, or the network cannot be traced (its way through depends on what
        it is shown).
    """
    if isinstance(net, Ensemble):
        return _fold_members(net)
    plain = copy.deepcopy(net).eval()
    try:
        traced = fx.GraphModule(plain, _Tracer().trace(plain))
    except Exception:  # fx raises whatever the network's own code does with a symbol
        return None
    with torch.no_grad():
        n_folded = sum(_fold_one(traced, node) for node in list(traced.graph.nodes))
    if n_folded == 0:
        return None
    folded: nn.Module = traced.to(memory_format=torch.channels_last)
    return folded


def _fold_members(ensemble: Ensemble) -> nn.Module | None:
    other = copy.deepcopy(ensemble).eval()
    folded = {member: fold(member.net) for member in other}
    for member, net in folded.items():
        if net is not None:
            member.net = net
    return other if any(net is not None for net in folded.values()) else None


def _fold_one(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Fold the normalisation at a node of the graph, where it is one behind a convolution."""
    norm = _module(traced, node)
    before = node.args[0] if node.args else None
    if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node):
        return False
    conv = _module(traced, before)
    if not isinstance(conv, nn.Conv2d) or len(before.users) != 1 or norm.running_mean is None:
        return False
    mean, variance = norm.running_mean, norm.running_var
    assert variance is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    # timm's normalisations carry the activation that follows them.
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    parent, _, leaf = str(node.target).rpartition(".")
    setattr(traced.get_submodule(parent), leaf, nn.Sequential(*rest))
    return True


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None
