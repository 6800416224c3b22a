"""Checkpoints: a classifier's parameters and what it says of itself, as one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from raybench.errors import ModelError
from raybench.models.build import brief, build


@dataclass(frozen=True, slots=True)
class Card:
    """What a checkpoint says of itself; stored as JSON inside the safetensors file.

    Attributes:
        backbone: name in the table of backbones, or timm's.
        classes: in the order of the outputs.
        input_size: `(height, width)` that the classifier takes.
        preprocess: the settings that its training images went through.
        scores: figures on Val of the epoch that was kept.
        kind: what the parameters are of: `classifier`, or `segmenter` (a U-Net).
    """

    backbone: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    preprocess: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    kind: str = "classifier"


def save_checkpoint(net: nn.Module, card: Card) -> bytes:
    """Parameters and card as one safetensors file."""
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    return bytes(safetensors.torch.save(state, metadata={"raybench": json.dumps(asdict(card))}))


def read_card(path: str) -> Card:
    """The card of a checkpoint file.

    Raises:
        ModelError: the file is no checkpoint of raybench.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _parse_card(file.metadata(), path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: no checkpoint of raybench ({error})") from error


def _parse_card(metadata: dict[str, str] | None, where: str) -> Card:
    if not metadata or "raybench" not in metadata:
        raise ModelError(f"{where}: no checkpoint of raybench (it carries no card)")
    try:
        raw = json.loads(metadata["raybench"])
        tuples = {"classes": tuple(raw["classes"]), "input_size": tuple(raw["input_size"])}
        return Card(**(raw | tuples))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{where}: its card is not one of this raybench ({error!r})") from error


def read_parts(data: bytes, where: str, kind: str) -> tuple[Card, dict[str, torch.Tensor]]:
    """Card and parameters of a checkpoint, without a network to put them in.

    Args:
        kind: what it has to be of, as `Card.kind` has it.

    Raises:
        ModelError: not a checkpoint of raybench, a damaged one, or one of another kind.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = dict(json.loads(data[8 : 8 + length]))
        card = _parse_card(header.get("__metadata__"), where)
        if card.kind != kind:
            raise ModelError(f"{where}: expected the checkpoint of a {kind}, found a {card.kind}'s")
        return card, dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{where}: not a checkpoint that fits ({brief(error)})") from error


def load_checkpoint(data: bytes, where: str = "checkpoint") -> tuple[nn.Module, Card]:
    """The classifier that `save_checkpoint` wrote, in evaluation mode.

    Raises:
        ModelError: not a classifier's checkpoint of raybench, or its shapes do not fit its
            backbone.
    """
    card, tensors = read_parts(data, where, "classifier")
    try:
        net = build(card.backbone, len(card.classes))
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{where}: not a checkpoint that fits ({brief(error)})") from error
    return net.eval(), card
