"""A search through Ray Tune: what diverges, is judged, or is ended by a budget.

About 20 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from raybench.data import Phantom
from raybench.training import budget
from raybench.training.recipe import Recipe
from raybench.training.settings import Search
from raybench.training.task import Classify
from raybench.training.trial import Judge, TrialJob
from raybench.training.tune import TrialResult, search

PHANTOM = Phantom(name="phantom", n_train=4, n_val=2, n_test=1, size=64)


@dataclass
class Heard:
    """Every event, in order."""

    started: list[str] = field(default_factory=list)
    epochs: list[tuple[str, int]] = field(default_factory=list)
    ended: dict[str, bool] = field(default_factory=dict)

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        self.started.append(trial_id)

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        self.epochs.append((trial_id, int(epoch["epoch"])))

    def trial_ended(self, trial_id: str, recipe: Recipe, failed: bool) -> None:
        self.ended[trial_id] = failed


def a_judge() -> Judge:
    """Made in here, so that it travels to the workers whole and not by its module's name."""

    def judge(checkpoint: bytes, recipe: Recipe, device: str) -> float:
        assert len(checkpoint) > 1000
        return float(recipe.dropout)

    return judge


def job(**changes: Any) -> TrialJob:
    records = PHANTOM.records()
    recipe = {
        "name": "test_resnet",
        "weights": "none",
        "input_size": 64,
        "batch_size": 6,
        "optimizer": "sgd",
        "dropout": {"low": 0.0, "high": 0.5},
        "phases": [{"epochs": 2, "lr": {"choices": [1e-3, 1e18], "first": 1e18}}],
    }
    whole = TrialJob(
        PHANTOM,
        tuple(r for r in records if r.split == "Train"),
        tuple(r for r in records if r.split == "Val"),
        (Recipe.model_validate(recipe),),
        Classify(PHANTOM.classes),
        seed=0,
        n_threads=1,
    )
    return replace(whole, **changes)


def run(
    at: Path, heard: Heard, settings: Mapping[str, Any], resume: bool = False, **changes: Any
) -> list[TrialResult]:
    given = Search.model_validate({"max_concurrent": 1, **settings})
    return search(job(**changes), given, 0, at / "tune", heard, resume)


def test_what_diverges_fails_with_its_reason_once_and_the_others_are_judged(
    tmp_path: Path, ray_cluster: None
) -> None:
    heard = Heard()
    results = run(tmp_path, heard, {"trials_per_backbone": 3}, judge=a_judge())
    first, *others = results
    assert first.status == "failed"
    assert first.error is not None
    assert "the loss became" in first.error
    assert "lower the learning rate" in first.error
    assert heard.ended["t0000"] is True
    assert first.localisation is None
    good = [r for r in others if r.recipe.phases[0].lr == 1e-3]
    assert good
    for result in good:
        assert (result.status, result.n_epochs) == ("finished", 2)
        assert result.localisation == pytest.approx(result.recipe.dropout)
    # Asked again it fails again without training an epoch: the figures would be the same.
    again = Heard()
    resumed = run(tmp_path, again, {"trials_per_backbone": 3}, resume=True, judge=a_judge())
    assert [r.status for r in resumed] == [r.status for r in results]
    assert [r.error for r in resumed] == [r.error for r in results]
    assert set(again.epochs) <= set(heard.epochs)


def test_a_budget_ends_the_search_and_keeps_what_was_trained(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes when the third epoch has been heard of."""
    heard = Heard()

    class Clock:
        def monotonic(self) -> float:
            return time.monotonic() + 3600 * (len(heard.epochs) >= 3)

    monkeypatch.setattr(budget, "time", Clock())
    raw = job().recipes[0].model_dump() | {"phases": [{"epochs": 500, "lr": 1e-3}], "dropout": 0.1}
    settings = {"trials_per_backbone": 5, "hours": 1}
    endless = (Recipe.model_validate(raw),)
    first, *others = run(tmp_path, heard, settings, recipes=endless)
    assert first.status == "stopped"
    assert 3 <= first.n_epochs < 500
    assert first.checkpoint is not None
    assert first.checkpoint.is_file()
    assert first.error is None
    assert heard.ended["t0000"] is False
    assert {trial for trial, _ in heard.epochs} == {"t0000"}
    assert all(result.n_epochs == 0 for result in others)
    assert not (tmp_path / "tune_spent.json").exists()
