"""Early stopping by backbone: who goes on and who does not. About 2 seconds."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import TrialScheduler

from raybench.training.recipe import Recipe
from raybench.training.schedulers import PerBackbone, most_brackets

STOP, CONTINUE = TrialScheduler.STOP, TrialScheduler.CONTINUE


def recipe(name: str, epochs: int) -> Recipe:
    raw = {"name": name, "weights": "none", "phases": [{"epochs": epochs, "lr": 1e-3}]}
    return Recipe.model_validate(raw)


RECIPES = (recipe("test_resnet", 27), recipe("test_efficientnet", 9))


def run(scheduler: PerBackbone, backbone: str, trial: str, score: float, n_epochs: int) -> int:
    """Epochs until a trial with one score throughout is stopped, or all of them."""
    fake: Any = SimpleNamespace(trial_id=trial, config={"backbone": backbone}, status="RUNNING")
    scheduler.on_trial_add(None, fake)
    for epoch in range(1, n_epochs + 1):
        result = {"n_epochs": epoch, "score": score, "training_iteration": epoch}
        if scheduler.on_trial_result(None, fake, result) == STOP:
            scheduler.on_trial_complete(None, fake, result)
            return epoch
    return n_epochs


@pytest.mark.parametrize(("n_brackets", "longest"), [(1, 9), (None, 27)])
def test_a_weak_trial_is_stopped_and_the_strongest_goes_on(
    n_brackets: int | None, longest: int
) -> None:
    """HyperBand's last bracket compares at the end alone: one trial in some is trained whole."""
    np.random.seed(0)  # noqa: NPY002  (Ray draws brackets from this generator)
    scheduler = PerBackbone(RECIPES, "score", 1, n_brackets)
    weak = []
    for number, score in enumerate(np.linspace(0.9, 0.95, 12)):
        # Each is the best so far.
        assert run(scheduler, "test_resnet", f"a{number}", float(score), 27) == 27
        weak += [run(scheduler, "test_resnet", f"w{number}{i}", 0.1, 27) for i in range(3)]
    assert max(weak[18:]) == longest  # three in four are weak, so some are among the upper third
    assert sum(epochs < 27 for epochs in weak[18:]) >= 12


def test_backbones_are_not_held_against_each_other() -> None:
    scheduler = PerBackbone(RECIPES, "score", 1)
    for number in range(9):
        assert run(scheduler, "test_resnet", f"a{number}", 0.9 + number / 100, 27) == 27
    assert run(scheduler, "test_efficientnet", "slow", 0.2, 9) == 9


def test_hyperbands_brackets_differ_in_when_they_first_compare() -> None:
    """Of many hopeless trials some are stopped after 1 epoch, some after 3, some after 9."""
    np.random.seed(1)  # noqa: NPY002
    scheduler = PerBackbone(RECIPES, "score", 1, None)
    for number in range(30):
        run(scheduler, "test_resnet", f"a{number}", 0.9 + number / 1000, 27)
    stops = Counter(run(scheduler, "test_resnet", f"w{n}", 0.1, 27) for n in range(40))
    assert set(stops) >= {1, 3, 9}
    one = PerBackbone(RECIPES, "score", 1)
    for number in range(30):
        run(one, "test_resnet", f"a{number}", 0.9 + number / 1000, 27)
    assert {run(one, "test_resnet", f"w{n}", 0.1, 27) for n in range(40)} == {1}


@pytest.mark.parametrize(
    ("n_epochs", "grace", "expected"),
    [(27, 1, 4), (26, 1, 3), (9, 1, 3), (9, 3, 2), (1, 1, 1), (2, 5, 1), (81, 3, 4)],
)
def test_as_many_brackets_as_have_a_first_rung_within_the_epochs(
    n_epochs: int, grace: int, expected: int
) -> None:
    assert most_brackets(n_epochs, grace) == expected
