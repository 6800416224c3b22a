"""A backbone with a fresh head: random, from the hub, or with weights from a file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from raybench.errors import ModelError
from raybench.models.backbones import Backbone, backbone
from raybench.models.misfit import misfit

UNFIT = (
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OSError,
)
"""What safetensors, torch and timm raise for a file that holds no weights, or other ones."""


def build(name: str, n_classes: int, weights: str = "none", dropout: float = 0.0) -> nn.Module:
    """A timm model with a fresh head.

    Args:
        weights: `none` (random, from torch's seed), `hub` (the tag in the table or in the name),
            or the path of a file with timm's parameter names (safetensors, or a state dict that
            `torch.load(weights_only=True)` takes).

    Raises:
        ModelError: the hub cannot be reached, the file is missing or its shapes do not fit.
    """
    facts = backbone(name)
    options: dict[str, Any] = {"num_classes": n_classes, "drop_rate": dropout}
    if weights == "none":
        return _module(timm.create_model(facts.timm_name, pretrained=False, **options))
    if weights == "hub":
        return _fresh_head(_from_hub(facts, options), facts)
    if not Path(weights).is_file():
        raise ModelError(f"{name}: no weights file {weights!r}; give a file, `hub` or `none`")
    try:
        return _fresh_head(_from_file(facts, options, weights), facts)
    except UNFIT as error:
        why = _misfit(facts, options, weights) or brief(error)
        raise ModelError(
            f"{name}: {weights} does not fit ({why}); give weights made for {facts.timm_name}"
        ) from error


def fresh(name: str, n_classes: int) -> nn.Module:
    """A timm model before any training: random from torch's seed, with a head that is undecided.

    Raises:
        ModelError: timm has no such model.
    """
    return _fresh_head(build(name, n_classes), backbone(name))


def _misfit(facts: Backbone, options: dict[str, Any], weights: str) -> str | None:
    """Which of a file's tensors do not fit, by the names that they have there.

    The head is left out: it is drawn anew, whatever the file holds of it.

    Returns:
        None where the file holds no tensors, or none that do not fit.
    """
    try:
        found = timm.models.load_state_dict(weights, weights_only=True)
        held = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    except UNFIT:
        return None
    with torch.device("meta"):
        net = _module(timm.create_model(facts.timm_name, pretrained=False, **options))
    head = tuple(f"{h}." for h in facts.head)
    body, others = (
        {name: value for name, value in tensors.items() if not name.startswith(head)}
        for tensors in (net.state_dict(), held)
    )
    return misfit(body, others, facts.head) if held else None


def _from_file(facts: Backbone, options: dict[str, Any], weights: str) -> nn.Module:
    """timm leaves what a file does not hold as it was drawn, and says so in its log only."""
    with torch.random.fork_rng(devices=[]):
        drawn = _module(timm.create_model(facts.timm_name, pretrained=False, **options))
    net = _module(
        timm.create_model(
            facts.timm_name,
            pretrained=True,
            pretrained_cfg_overlay={"file": weights},
            **options,
        )
    )
    before = dict(drawn.named_parameters())
    body = [
        (name, parameter)
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1 and not name.startswith(tuple(f"{h}." for h in facts.head))
    ]
    missing = [name for name, parameter in body if torch.equal(parameter, before[name])]
    if missing:
        raise ValueError(f"it lacks {len(missing)} of {len(body)} weights, {missing[0]} first")
    return net


def _from_hub(facts: Backbone, options: dict[str, Any]) -> nn.Module:
    try:
        return _module(timm.create_model(facts.timm_name, pretrained=True, **options))
    except Exception as error:  # the hub's client raises a dozen unrelated types when offline
        raise ModelError(
            f"{facts.name}: the weights {facts.timm_name} could not be fetched from the hub "
            f"({type(error).__name__}). With a network, try again; without one, download "
            f"timm/{facts.timm_name} elsewhere and set `weights: FILE.safetensors`, or train from "
            "scratch with `weights: none`."
        ) from error


def _fresh_head(net: nn.Module, facts: Backbone) -> nn.Module:
    """A head that starts out undecided: weights of deviation 0.01, no bias.

    timm draws the heads of its EfficientNets for a thousand classes; with three, their first
    logits are off by tens and fine-tuning spends its epochs on unlearning them.
    """
    for name in facts.head:
        head = net.get_submodule(name)
        if isinstance(head, nn.Linear):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
    return net


def brief(error: Exception) -> str:
    """One line: torch lists every tensor that does not fit."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}..."


def _module(net: Any) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise ModelError(f"timm returned a {type(net).__name__}, not a module")
    return net
