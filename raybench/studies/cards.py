"""What stands beside each checkpoint: a card in JSON, for people and for other tools.

`t0003.json` says all that is needed to use `t0003.safetensors` without raybench, and where it
comes from: backbone (of a U-Net the encoder) and timm's name of it, classes in the order of the
outputs (of a U-Net what it marks), input size, normalisation, preprocessing, recipe, digests of
settings and data, versions and scores. It names no folder of the machine and nothing of any
patient.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import PurePath
from typing import Any

import pandas as pd
import timm
import torch

from raybench import __version__
from raybench.models.backbones import backbone
from raybench.models.checkpoint import Card, card_of
from raybench.studies.context import Context
from raybench.training.recipe import Recipe


def checkpoint_name(trial_id: str) -> str:
    """Where a trial's parameters lie in the run folder."""
    return f"checkpoints/{trial_id}.safetensors"


def card_name(trial_id: str) -> str:
    """Where its card lies."""
    return f"checkpoints/{trial_id}.json"


def write_card(
    context: Context, trial_id: str, data: bytes, recipe: Recipe | None, name: str | None = None
) -> None:
    """Write the card of a checkpoint; scores join it when they are there (`add_scores`).

    Args:
        data: the checkpoint.
        recipe: how it was trained; None for an ensemble, whose members have cards of their own.
        name: what the checkpoint's file is called, where it is not the trial.
    """
    card = card_of(data, trial_id)
    told: dict[str, Any] = {"trial_id": trial_id, "kind": card.kind, **_facts(card)}
    if recipe is not None:
        told["recipe"] = _recipe(recipe)
    config = context.config
    told |= {
        "seed": config.seed,
        "sweep": config.name,
        "config_digest": context.run.digest,
        "data": config.data.name,
        "data_digest": context.data_digest,
        "versions": {
            "raybench": __version__,
            "torch": str(torch.__version__),
            "timm": timm.__version__,
        },
        "scores": {"kept_epoch": card.scores} if card.scores else {},
    }
    _write(context, name or trial_id, told)


def _facts(card: Card) -> dict[str, Any]:
    """What using it takes."""
    told: dict[str, Any] = {"backbone": card.backbone}
    if card.kind == "segmenter":
        told["network"] = "segmentation_models_pytorch.Unet"
    if not card.members:
        facts = backbone(card.backbone)
        told |= {"timm_name": facts.timm_name, "mean": facts.mean, "std": facts.std}
    told |= {
        "classes": card.classes,
        "input_size": card.input_size,
        "preprocess": card.preprocess,
    }
    if card.members:
        told["members"] = [
            {"trial_id": trial, "prefix": f"{number}.", **_facts(member)}
            for number, (trial, member) in enumerate(card.members.items())
        ]
    return told


def _recipe(recipe: Recipe) -> dict[str, Any]:
    raw = recipe.model_dump(mode="json")
    if recipe.weights not in ("hub", "none"):
        raw["weights"] = PurePath(recipe.weights).name
    return raw


def add_scores(context: Context, judged: pd.DataFrame) -> None:
    """Put the scores of judged trials into their cards; a card that says them is left alone.

    A card that is not there was never written (an older raybench trained the trial).

    Args:
        judged: trials with `val_*`, `test_*`, and the ends of their intervals.
    """
    for row in judged[judged.has_checkpoint].to_dict("records"):
        trial_id = str(row["trial_id"])
        if not context.run.storage.exists(card_name(trial_id)):
            continue
        told = json.loads(context.run.storage.read(card_name(trial_id)))
        found = {split: _scores(row, f"{split}_") for split in ("val", "test")}
        told["scores"] |= {split: scores for split, scores in found.items() if scores}
        _write(context, trial_id, told)


def _scores(row: Mapping[Hashable, Any], prefix: str) -> dict[str, Any]:
    """Score and interval by name; those that are not there or undefined are left out."""
    found = {}
    for column in map(str, row):
        if not column.startswith(prefix) or f"{column}_low" not in row or pd.isna(row[column]):
            continue
        ends = [row[f"{column}_{end}"] for end in ("low", "high")]
        interval = None if any(pd.isna(end) for end in ends) else [float(end) for end in ends]
        name = column.removeprefix(prefix)
        found[name] = {"value": float(row[column]), "interval": interval}
    return found


def _write(context: Context, trial_id: str, told: Mapping[str, Any]) -> None:
    name = card_name(trial_id)
    data = (json.dumps(told, indent=2, allow_nan=False) + "\n").encode()
    storage = context.run.storage
    if not storage.exists(name) or storage.read(name) != data:
        storage.write(name, data)
