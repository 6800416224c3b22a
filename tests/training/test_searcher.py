"""What Optuna is told of trials, whole and broken. About a second."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from raybench.training.recipe import Recipe
from raybench.training.searcher import Searcher, new_searcher
from raybench.training.space import SearchSpace

SPACE = SearchSpace(
    tuple(
        Recipe.model_validate(
            {
                "name": name,
                "weights": "none",
                "weight_decay": {"low": 1e-4, "high": 1e-1, "log": True, "first": 1e-2},
                "dropout": {"low": 0.0, "high": 0.5},
                "phases": [{"epochs": 1, "lr": {"choices": [1e-3, 1e-4], "first": 1e-4}}],
            }
        )
        for name in ("test_resnet", "test_efficientnet")
    )
)


def searcher(*metrics: str) -> Searcher:
    return new_searcher(SPACE, metrics, SPACE.first_points(3), 0, 2)


def states(subject: Searcher) -> list[TrialState]:
    return [t.state for t in subject._ot_study.get_trials()]


def test_a_failed_trial_is_told_as_failed_whatever_it_had_reached() -> None:
    subject = searcher("score")
    for name in ("a", "b", "c"):
        subject.suggest(name)
    subject.on_trial_complete("a", {"score": 0.9}, error=True)
    subject.on_trial_complete("b", {"score": math.nan})
    subject.on_trial_complete("c", {"score": 0.5})
    done = [t for t in subject._ot_study.get_trials() if t.state.is_finished()]
    assert [t.state for t in done] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
    assert subject._ot_study.best_value == 0.5


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_of_two_objectives_half_a_result_is_a_failure() -> None:
    subject = searcher("score", "second")
    for name in ("a", "b", "c"):
        subject.suggest(name)
    subject.on_trial_complete("a", {"score": 0.9, "second": math.nan})
    subject.on_trial_complete("b", {"score": 0.8, "second": 0.1})
    subject.on_trial_complete("c", {"score": 0.7, "second": 0.2})
    fail, whole = TrialState.FAIL, TrialState.COMPLETE
    assert states(subject)[:3] == [fail, whole, whole]
    assert subject._ot_study.directions == [optuna.study.StudyDirection.MAXIMIZE] * 2
    assert [t.values for t in subject._ot_study.best_trials] == [[0.8, 0.1], [0.7, 0.2]]


def test_the_first_trial_of_each_backbone_takes_what_its_domains_say() -> None:
    subject = searcher("score")
    drawn: list[dict[str, Any]] = [subject.suggest(str(n)) for n in range(6)]
    assert [d["backbone"] for d in drawn] == ["test_resnet", "test_efficientnet"] * 3
    for first in drawn[:2]:
        name = first["backbone"]
        assert first[f"{name}.weight_decay"] == 1e-2
        assert first[f"{name}.phases.0.lr"] == 1e-4
    assert len({d[f"{d['backbone']}.weight_decay"] for d in drawn[2:]} - {1e-2}) == 4
    assert len({d[f"{d['backbone']}.dropout"] for d in drawn}) == 6  # that has no `first`
