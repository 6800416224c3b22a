"""Early stopping of trials, each backbone by itself, around Ray Tune's schedulers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from raybench.training.recipe import Recipe

_ETA = 3
"""Of the trials that reach a rung, about one in three goes on."""


class PerBackbone(FIFOScheduler):  # type: ignore[misc]
    """ASHA or asynchronous HyperBand (Li et al. 2020) among the trials of each backbone alone.

    One over all of them would hold a slow starter against a fast one, and stop every trial of a
    backbone after the first rung; each is to get the same chances.

    HyperBand here is ASHA in several brackets, which differ in how late they first compare, so that
    slow starters are not all lost to an early rung. Trials are dealt to brackets by their number,
    in the proportions of HyperBand (Li et al. 2018), so a resumed search deals as before; Ray's own
    brackets are drawn from a generator that no seed of a sweep reaches.

    The synchronous HyperBand is not offered. It waits until a rung is full and pauses trials
    meanwhile: workers idle, states have to be carried to wherever a trial goes on, and trials of
    backbones with unlike numbers of epochs would have to share its brackets.

    Args:
        metric: what is compared, higher is better.
        grace_epochs: epochs before a trial may be stopped.
        n_brackets: 1 is ASHA; None takes as many as fit a backbone's epochs.
    """

    def __init__(
        self,
        recipes: tuple[Recipe, ...],
        metric: str,
        grace_epochs: int,
        n_brackets: int | None = 1,
    ) -> None:
        super().__init__()
        self._metric_name = metric
        self._brackets: dict[str, list[ASHAScheduler]] = {}
        for recipe in recipes:
            count = n_brackets or most_brackets(recipe.n_epochs, grace_epochs)
            grace = min(grace_epochs, recipe.n_epochs)
            self._brackets[recipe.name] = [
                ASHAScheduler(
                    time_attr="n_epochs",
                    metric=metric,
                    mode="max",
                    max_t=recipe.n_epochs,
                    grace_period=grace * _ETA**late,
                    reduction_factor=_ETA,
                )
                for late in range(count)
            ]

    def _of(self, trial: Any) -> ASHAScheduler:
        brackets = self._brackets[trial.config["backbone"]]
        # Backbones take turns, so this counts the trials of one.
        number = int(trial.config["trial_number"]) // len(self._brackets)
        return brackets[bracket_of(number, bracket_shares(len(brackets)))]

    def _can_compare(self, result: dict[str, Any]) -> bool:
        return math.isfinite(result.get(self._metric_name, math.nan))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not self._can_compare(result):
            return str(FIFOScheduler.CONTINUE)
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if self._can_compare(result):
            self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)


def most_brackets(n_epochs: int, grace_epochs: int) -> int:
    """Brackets whose first rung comes by the end: floor(log3(epochs / grace)) + 1."""
    count, first = 1, min(grace_epochs, n_epochs)
    while (first := first * _ETA) <= n_epochs:
        count += 1
    return count


def bracket_shares(n_brackets: int) -> list[int]:
    """Trials that HyperBand begins in each bracket, the one that compares earliest first.

    ceil(B / (r + 1) * 3**r) of B brackets, where r is the number of times that a bracket keeps one
    in three; Li et al. 2018, algorithm 1.
    """
    rounds = range(n_brackets - 1, -1, -1)
    return [-(-n_brackets * _ETA**r // (r + 1)) for r in rounds]


def bracket_of(number: int, shares: Sequence[int]) -> int:
    """The bracket of a backbone's trial: dealt evenly, so that shares hold for few trials too."""
    dealt = [0] * len(shares)
    for _ in range(number + 1):
        place = min(range(len(shares)), key=lambda i: ((dealt[i] + 0.5) / shares[i], i))
        dealt[place] += 1
    return place
