"""Checkpoints: a classifier's parameters and what it says of itself, as one safetensors file.

The parameters have timm's own names, so timm loads the file as it is. An ensemble is one file too:
its members' parameters with `0.`, `1.`, ... before their names, in the order of its card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from raybench.data.preprocess import in_effect
from raybench.errors import ModelError
from raybench.models.backbones import backbone
from raybench.models.build import brief, build
from raybench.models.ensemble import Ensemble, Member
from raybench.models.misfit import misfit

ENSEMBLE: Literal["ensemble"] = "ensemble"
"""Name of the ensemble among trials, backbones and kinds of checkpoint."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a checkpoint says of itself; stored as JSON inside the safetensors file.

    It holds what loading needs and nothing of the sweep, so that equal training gives equal bytes,
    and answers known of one sweep's model are known of the next one's. All else stands in the JSON
    file beside it (`studies.cards`).

    Attributes:
        backbone: name in the table of backbones, or timm's; `ensemble`.
        classes: in the order of the outputs.
        input_size: `(height, width)` that the classifier takes.
        preprocess: the settings that its training images went through.
        scores: figures on Val of the epoch that was kept; of an ensemble none.
        members: an ensemble's, by trial, in the order of their prefixes; else empty.
        kind: what the parameters are of: one classifier, several, or a U-Net.
    """

    backbone: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    preprocess: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    members: dict[str, Card] = field(default_factory=dict)
    kind: Literal["classifier", "ensemble", "segmenter"] = "classifier"


def _plain(card: Card) -> dict[str, Any]:
    """A card as JSON; one classifier's says nothing of members or of other kinds."""
    raw = asdict(card)
    del raw["members"]
    if card.kind == "classifier":
        del raw["kind"]
    if card.members:
        raw["members"] = {t: _plain(c) for t, c in card.members.items()}
    return raw


def save_checkpoint(net: nn.Module, card: Card) -> bytes:
    """Parameters and card as one safetensors file."""
    return save_tensors(net.state_dict(), card)


def save_tensors(tensors: Mapping[str, torch.Tensor], card: Card) -> bytes:
    """The same of parameters by name; equal ones give equal bytes."""
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return bytes(safetensors.torch.save(state, metadata={"raybench": json.dumps(_plain(card))}))


def read_card(path: str) -> Card:
    """The card of a checkpoint file; only the file's head is read.

    Raises:
        ModelError: the file is no checkpoint of raybench.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _parse_card(file.metadata(), path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: no checkpoint of raybench ({error})") from error


def card_of(data: bytes, where: str = "checkpoint") -> Card:
    """The card of a checkpoint that was read.

    Raises:
        ModelError: it is no checkpoint of raybench.
    """
    return _told(where, lambda: _card(data, where))


def _card(data: bytes, where: str) -> Card:
    length = int.from_bytes(data[:8], "little")
    return _parse_card(dict(json.loads(data[8 : 8 + length])).get("__metadata__"), where)


def _parse_card(metadata: dict[str, str] | None, where: str) -> Card:
    if not metadata or "raybench" not in metadata:
        raise ModelError(f"{where}: no checkpoint of raybench (it carries no card)")
    try:
        return _from_plain(json.loads(metadata["raybench"]))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{where}: its card is not one of this raybench ({error!r})") from error


def _from_plain(raw: dict[str, Any]) -> Card:
    tuples = {"classes": tuple(raw["classes"]), "input_size": tuple(raw["input_size"])}
    members = {trial: _from_plain(card) for trial, card in raw.get("members", {}).items()}
    return Card(**(raw | tuples | {"members": members}))


def read_parts(data: bytes, where: str, *kinds: str) -> tuple[Card, dict[str, torch.Tensor]]:
    """Card and parameters of a checkpoint, without a network to put them in.

    Args:
        kinds: what it may be of, as `Card.kind` has it.

    Raises:
        ModelError: not a checkpoint of raybench, a damaged one, or one of another kind.
    """
    card = card_of(data, where)
    if card.kind not in kinds:
        raise ModelError(f"{where}: expected the checkpoint of a {kinds[0]}, found a {card.kind}'s")
    return card, _tensors(data, where)


def load_checkpoint(data: bytes, where: str = "checkpoint") -> tuple[nn.Module, Card]:
    """The classifier that `save_checkpoint` wrote, or the `Ensemble` of `join`, in evaluation mode.

    Raises:
        ModelError: not a classifier's checkpoint of raybench, or its tensors do not fit its
            backbone; the message names those that do not, and how.
    """
    card, tensors = read_parts(data, where, "classifier", ENSEMBLE)
    net = _ensemble(card, tensors, where) if card.members else _fitted(card, tensors, where)
    return net.eval(), card


def _tensors(data: bytes, where: str) -> dict[str, torch.Tensor]:
    return _told(where, lambda: dict(safetensors.torch.load(data)))


def _fitted(card: Card, tensors: Mapping[str, torch.Tensor], where: str) -> nn.Module:
    net = build(card.backbone, len(card.classes))
    why = misfit(net.state_dict(), tensors, backbone(card.backbone).head)
    if why is not None:
        raise ModelError(
            f"{where}: not a checkpoint that fits {card.backbone} with {len(card.classes)} "
            f"classes: {why}"
        )
    _told(where, lambda: net.load_state_dict(tensors))
    return net


def _ensemble(card: Card, tensors: Mapping[str, torch.Tensor], where: str) -> Ensemble:
    members = []
    for number, (trial, own) in enumerate(card.members.items()):
        prefix = f"{number}."
        held = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
        net, facts = _fitted(own, held, f"{where}, {trial}"), backbone(own.backbone)
        members.append(Member(net, card.input_size, own.input_size, facts.mean, facts.std))
    return Ensemble(members)


_Read = TypeVar("_Read")


def _told(where: str, read: Callable[[], _Read]) -> _Read:
    """What `read` returns; what it raises of a file that is no checkpoint becomes one line."""
    try:
        return read()
    except (SafetensorError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ModelError(f"{where}: not a checkpoint that fits ({brief(error)})") from error


def join(members: Mapping[str, bytes]) -> bytes:
    """Several checkpoints as one: the ensemble whose answer is the mean of theirs.

    Args:
        members: checkpoints by trial.

    Raises:
        ModelError: there are fewer than two, or they do not answer alike: other classes, or
            training images that were preprocessed in another way.
    """
    if len(members) < 2:
        found = ", ".join(members) or "none"
        raise ModelError(f"an ensemble: expected two members at least, found {found}")
    card = _common({trial: card_of(data, trial) for trial, data in members.items()})
    tensors: dict[str, torch.Tensor] = {}
    for number, (trial, data) in enumerate(members.items()):
        held = _tensors(data, trial)
        tensors |= {f"{number}.{name}": value for name, value in held.items()}
    return save_tensors(tensors, card)


def _common(cards: dict[str, Card]) -> Card:
    """The card of an ensemble: the largest input, so that no member sees an image enlarged."""
    nested = [trial for trial, card in cards.items() if card.members]
    if nested:
        raise ModelError(f"an ensemble: expected single classifiers, {nested[0]} is an ensemble")
    differing = _differing({f"{t} ({c.backbone})": _image_facts(c) for t, c in cards.items()})
    if differing:
        raise ModelError(
            "an ensemble: its members see one image and name one list of classes, but these "
            f"differ: {'; '.join(differing)}"
        )
    first = next(iter(cards.values()))
    heights, widths = zip(*(card.input_size for card in cards.values()), strict=True)
    size = (max(heights), max(widths))
    return Card(ENSEMBLE, first.classes, size, first.preprocess, members=cards, kind=ENSEMBLE)


def _image_facts(card: Card) -> dict[str, Any]:
    return {"classes": list(card.classes)} | {
        f"preprocess.{key}": value for key, value in in_effect(card.preprocess).items()
    }


def _differing(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not one for all, and what it is of whom."""
    said = []
    for key in dict.fromkeys(key for of_one in facts.values() for key in of_one):
        trials: dict[str, list[str]] = {}
        for trial, of_one in facts.items():
            trials.setdefault(repr(of_one.get(key)), []).append(trial)
        if len(trials) > 1:
            said.append(
                f"{key} is " + ", ".join(f"{v} of {'/'.join(t)}" for v, t in trials.items())
            )
    return said
