"""Which trials are stopped early, by feeding results to the schedulers. No cluster; a second."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from raybench.training.recipe import Recipe
from raybench.training.schedulers import (
    PerBackbone,
    bracket_of,
    bracket_shares,
    most_brackets,
)

GO_ON, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP


def recipe(name: str, epochs: int = 27) -> Recipe:
    phases = [{"epochs": epochs, "lr": 1e-3}]
    return Recipe.model_validate({"name": name, "weights": "none", "phases": phases})


@dataclass
class Trial:
    trial_id: str
    config: dict[str, Any] = field(default_factory=dict)


def trial(number: int, backbone: str = "test_resnet") -> Trial:
    return Trial(f"x{number}", {"backbone": backbone, "trial_number": number})


def tell(scheduler: PerBackbone, one: Trial, epoch: int, score: float) -> str:
    return scheduler.on_trial_result(None, one, {"n_epochs": epoch, "score": score})


def until_stopped(scheduler: PerBackbone, one: Trial, score: float, epochs: int = 27) -> int:
    """The epoch that a trial ends after, its score rising a little with each."""
    scheduler.on_trial_add(None, one)
    for epoch in range(1, epochs + 1):
        if tell(scheduler, one, epoch, score + epoch / 1e4) == STOP:
            return epoch
    return epochs + 1


@pytest.mark.parametrize("n_brackets", [1, None])
def test_weak_trials_are_stopped_and_strong_ones_go_on(n_brackets: int | None) -> None:
    scheduler = PerBackbone((recipe("test_resnet"),), "score", 1, n_brackets)
    middling = [until_stopped(scheduler, trial(n), 0.5) for n in range(12)]
    weak = [until_stopped(scheduler, trial(n), 0.1) for n in range(12, 24)]
    strong = [until_stopped(scheduler, trial(n), 0.9 + n / 1e3) for n in range(24, 36)]
    assert middling[0] == 27
    assert set(strong) == {27}, "the last epoch is the end of all"
    if n_brackets == 1:
        assert set(weak) == {1}, "at the first rung"
    else:  # each at the first rung of its bracket; one bracket of four waits to the end
        assert set(weak) == {1, 3, 9, 27}


def test_a_slow_starter_is_lost_to_asha_and_not_to_every_bracket_of_hyperband() -> None:
    """Weak to epoch 3, the best of all from then on."""

    def survivors(n_brackets: int | None) -> int:
        scheduler = PerBackbone((recipe("test_resnet"),), "score", 1, n_brackets)
        for number in range(40):
            until_stopped(scheduler, trial(number), 0.5)
        count = 0
        for number in range(40, 60):
            one = trial(number)
            scheduler.on_trial_add(None, one)
            said = [tell(scheduler, one, e, 0.1 if e < 4 else 0.95) for e in range(1, 27)]
            count += STOP not in said
        return count

    assert survivors(1) == 0
    assert 0 < survivors(None) < 20


def test_backbones_are_not_held_against_each_other() -> None:
    recipes = (recipe("test_resnet"), recipe("test_efficientnet", 9))
    scheduler = PerBackbone(recipes, "score", 1)
    for number in range(0, 20, 2):
        until_stopped(scheduler, trial(number), 0.9)
    assert until_stopped(scheduler, trial(1, "test_efficientnet"), 0.1, 9) == 9
    assert until_stopped(scheduler, trial(20), 0.1) == 1


@pytest.mark.parametrize("n_brackets", [1, None])
def test_a_score_that_is_no_number_decides_nothing(n_brackets: int | None) -> None:
    scheduler = PerBackbone((recipe("test_resnet"),), "score", 1, n_brackets)
    for number in range(4):
        bad = trial(number)
        scheduler.on_trial_add(None, bad)
        assert tell(scheduler, bad, 1, math.nan) == GO_ON
        scheduler.on_trial_complete(None, bad, {"n_epochs": 0, "score": math.nan})
    assert until_stopped(scheduler, trial(4), 0.2) == 27, "there was nothing to fall behind"


def test_brackets_are_dealt_by_number_whatever_a_generator_says() -> None:
    """HyperBand's own example (Li et al. 2018, table 1): eta 3, 81 epochs, shares by bracket."""
    assert bracket_shares(5) == [81, 34, 15, 8, 5]
    assert [most_brackets(n, 1) for n in (1, 2, 3, 26, 27, 81, 243)] == [1, 1, 2, 3, 4, 5, 6]
    assert (most_brackets(20, 2), most_brackets(5, 9)) == (3, 1)
    dealt = Counter(bracket_of(n, [81, 34, 15, 8, 5]) for n in range(143))
    assert [dealt[i] for i in range(5)] == [81, 34, 15, 8, 5]
    first = [bracket_of(n, bracket_shares(3)) for n in range(17)]
    assert {0, 1, 2} <= set(first[:6]), "few trials see every bracket"
    found = []
    for seed in (0, 1):
        np.random.seed(seed)  # noqa: NPY002  (Ray draws from the global generator)
        scheduler = PerBackbone((recipe("test_resnet"),), "score", 1, None)
        middling = [until_stopped(scheduler, trial(n), 0.5) for n in range(12)]
        found.append(middling + [until_stopped(scheduler, trial(n), 0.1) for n in range(12, 24)])
    assert found[0] == found[1]
