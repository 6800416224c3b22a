"""Training on permuted labels: what is permuted, what is trained, and what sanity makes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raybench.config import SweepConfig
from raybench.data import Phantom
from raybench.models.build import build
from raybench.models.checkpoint import Card, read_parts, save_checkpoint
from raybench.studies import shuffled_stage
from raybench.studies.cards import card_name, checkpoint_name
from raybench.studies.context import Context
from raybench.studies.explain_stage import explain
from raybench.studies.sanity_stage import sanity
from raybench.studies.shuffled_stage import (
    Relabelled,
    permuted,
    shuffled_key,
    train_shuffled,
)
from tests.studies.searching import CONFIG, Counted, context_at

BEST = {"t0": "test_resnet", "ensemble": "ensemble"}


def test_labels_change_places_and_pixels_stay() -> None:
    data = Phantom(name="phantom", n_train=6, n_val=1, n_test=1, size=64)
    train = [r for r in data.records() if r.split == "Train"]
    found = permuted(train, 0)
    assert found == permuted(train, 0)
    assert found != permuted(train, 1)
    assert Counter(r.label for r in found) == Counter(r.label for r in train)
    assert [replace(r, label="") for r in found] == [replace(r, label="") for r in train]
    moved = [(old, new) for old, new in zip(train, found, strict=True) if old.label != new.label]
    assert moved
    relabelled = Relabelled(data, {(r.split, r.image_id): r.label for r in train})
    for old, new in moved[:3]:
        xray = relabelled.load(new)
        assert xray.record == new, "the label that is learned"
        np.testing.assert_array_equal(xray.image, data.load(old).image)


def _context(folder: Path) -> Context:
    recipe = {"name": "test_resnet", "weights": "none", "input_size": 64, "batch_size": 4}
    config = SweepConfig.model_validate(
        CONFIG
        | {"backbones": [recipe | {"phases": [{"epochs": 4, "lr": 1e-3}]}]}
        | {"data": CONFIG["data"] | {"n_train": 3, "size": 64}, "explainer_search": None}
        | {"explain": {"explainers": [{"name": "saliency"}, {"name": "whole_lung"}]}}
        | {"sanity": {"n_images": 2, "depths": ["full"], "draws": 1, "shuffled_labels": True}}
        | {"training": {"cache_gb": 0.0}}
    )
    context = replace(context_at(folder), config=config, dataset=config.data)
    records = tuple(config.data.records())
    explained = {s: tuple(r for r in of) for s, of in context.explained.items()}
    said = json.dumps({"recipe": config.recipes[0].model_dump(mode="json")})
    context.run.storage.write(card_name("t0"), said.encode())
    return replace(context, records=records, explained=explained)


def test_it_is_trained_once_and_its_maps_are_compared(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _context(tmp_path)
    torch.manual_seed(0)
    net = build("test_resnet", 3)
    checkpoint = save_checkpoint(net, Card("test_resnet", context.dataset.classes, (64, 64)))
    learned = train_shuffled(context, BEST, resume=False)
    assert list(learned) == ["t0"]
    assert 0 <= learned["t0"] <= 1
    name = checkpoint_name(shuffled_key("t0"))
    card, _ = read_parts(context.run.storage.read(name), name, "classifier")
    assert card.scores["val_accuracy"] == learned["t0"]
    assert not context.run.storage.exists("tune_shuffled")
    monkeypatch.setattr("raybench.studies.shuffled_stage.search", None)  # not called again
    assert train_shuffled(context, BEST, resume=True) == learned

    files = {"t0": checkpoint, shuffled_key("t0"): context.run.storage.read(name)}
    pool = Counted(checkpoint)
    pool._models = files.__getitem__
    explain(context, pool, {"t0": (64, 64)}, ["t0"], {})
    found = sanity(context, pool, {"t0": (64, 64)}, BEST, {}, learned)
    rows = found.set_index(["explainer", "depth"])
    assert rows.loc[("saliency", "labels"), ["n", "learned"]].tolist() == [2, learned["t0"]]
    assert rows.loc[("saliency", "labels"), "rank"] < 1
    assert rows.loc[("whole_lung", "labels"), "by_construction"]


@pytest.mark.slow  # Tune thrice
def test_a_kill_costs_no_epoch_but_the_one_under_way(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, killed = _context(tmp_path / "calm"), _context(tmp_path / "killed")
    name = checkpoint_name(shuffled_key("t0"))
    expected = train_shuffled(calm, BEST, resume=False)
    heard: list[int] = []

    def told(_: object, trial_id: str, recipe: object, epoch: Mapping[str, Any]) -> None:
        heard.append(int(epoch["epoch"]))
        if len(heard) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(shuffled_stage._Bar, "epoch_finished", told)
    with pytest.raises(KeyboardInterrupt):
        train_shuffled(killed, BEST, resume=False)
    assert not killed.run.storage.exists(name)
    assert train_shuffled(killed, BEST, resume=True) == expected
    kept = (context.run.storage.read(name) for context in (calm, killed))
    assert len(set(kept)) == 1, "to the byte"
    assert sorted(set(heard)) == [0, 1, 2, 3]
    assert len(heard) <= 4 + 1, "the epoch under way, at most"
