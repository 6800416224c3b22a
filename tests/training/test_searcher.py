"""What Optuna hears of trials that end well, badly and halfway. No cluster; two seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from raybench.storage import Storage
from raybench.training.budget import Budget
from raybench.training.recipe import Recipe
from raybench.training.relay import listening
from raybench.training.searcher import Searcher, new_searcher
from raybench.training.space import SearchSpace, resolve

optuna.logging.set_verbosity(optuna.logging.ERROR)

LR = "test_resnet.phases.0.lr"
RECIPE = Recipe.model_validate(
    {
        "name": "test_resnet",
        "weights": "none",
        "batch_size": {"low": 4, "high": 64, "log": True, "first": 16},
        "dropout": {"low": 0.0, "high": 0.5},
        "label_smoothing": {"choices": [0.0, 0.1], "first": 0.1},
        "phases": [{"epochs": 2, "lr": {"low": 1e-5, "high": 1e-1, "log": True, "first": 1e-3}}],
    }
)
OTHER = Recipe.model_validate({"name": "vgg16", "phases": [{"epochs": 1, "lr": 1e-5}]})


def searcher(*metrics: str, n: int = 6, seed: int = 0) -> Searcher:
    space = SearchSpace((RECIPE, OTHER))
    return new_searcher(space, metrics or ("score",), space.first_points(n), seed, 3)


def states(of: Searcher) -> list[TrialState]:
    return [t.state for t in of._ot_study.trials if t.state != TrialState.WAITING]


def test_the_first_trial_of_a_backbone_takes_what_is_named_and_draws_the_rest() -> None:
    drawn = {seed: searcher(seed=seed).suggest("a") for seed in (0, 1, 2)}
    for found in drawn.values():
        recipe = resolve((RECIPE, OTHER), found)
        assert (recipe.batch_size, recipe.label_smoothing) == (16, 0.1)
        assert recipe.phases[0].lr == 1e-3
    assert len({found["test_resnet.dropout"] for found in drawn.values()}) == 3
    one = searcher()
    names = [one.suggest(str(i)) for i in range(4)]
    assert [found["backbone"] for found in names] == ["test_resnet", "vgg16"] * 2
    assert names[2][LR] != 1e-3, "the second is drawn"


def test_a_trial_that_diverged_is_told_as_failed_and_never_as_a_score() -> None:
    one = searcher()
    for name, result in (
        ("good", {"score": 0.5}),
        ("nan", {"score": math.nan}),
        ("nothing", None),
    ):
        one.suggest(name)
        one.on_trial_complete(name, result)
    one.suggest("dead")
    one.on_trial_complete("dead", {"score": 0.9}, error=True)
    assert states(one) == [TrialState.COMPLETE, *[TrialState.FAIL] * 3]
    assert one._ot_study.best_value == 0.5
    assert isinstance(one.suggest("next"), dict), "the search goes on"


def test_two_objectives_are_told_together_or_not_at_all() -> None:
    one = searcher("score", "second")
    told: list[tuple[str, dict[str, Any]]] = [
        ("both", {"score": 0.5, "second": 0.2}),
        ("half", {"score": 0.9, "second": math.nan}),
        ("lacks", {"score": 0.9}),
        ("other", {"score": 0.4, "second": 0.3}),
    ]
    for name, result in told:
        one.suggest(name)
        one.on_trial_complete(name, result)
    found = states(one)
    assert found == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert sorted(t.values for t in one._ot_study.best_trials) == [[0.4, 0.3], [0.5, 0.2]]


def test_two_objectives_draw_where_both_are_good() -> None:
    """Localisation peaks at 1e-3, and accuracy is flat: TPE has to look at the second figure."""
    space = SearchSpace((RECIPE,))
    one = new_searcher(space, ("score", "second"), [{}] * 40, 0, 10)
    drawn = []
    for number in range(40):
        rate = one.suggest(str(number))[LR]
        drawn.append(abs(math.log10(rate) + 3))
        one.on_trial_complete(str(number), {"score": 0.5, "second": -drawn[-1]})
    assert sum(drawn[25:]) / 15 < 0.6 * sum(drawn[:10]) / 10


class Nobody:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture
def spent(tmp_path: Path) -> Iterator[None]:
    ticks = iter([0.0, 3600.0])
    where = Storage(str(tmp_path)), "spent.json"
    budget = Budget(0.5, None, 0.0, *where, lambda: next(ticks), begun=True)
    budget.tick(0)
    with listening(Nobody(), budget):
        yield


def test_nothing_is_proposed_once_the_budget_is_used_up(spent: None) -> None:
    one = searcher()
    assert one.suggest("a") == Searcher.FINISHED
    assert states(one) == [], "Optuna was not even asked"
