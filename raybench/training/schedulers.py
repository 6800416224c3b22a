"""Early stopping of trials, each backbone by itself, around Ray Tune's schedulers."""

from __future__ import annotations

import math
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from raybench.training.recipe import Recipe

_ETA = 3
"""Of the trials that reach a rung, about one in three goes on."""


class PerBackbone(FIFOScheduler):  # type: ignore[misc]
    """ASHA or asynchronous HyperBand (Li et al. 2020) among the trials of each backbone alone.

    One over all of them would hold a slow starter against a fast one, and stop every trial of a
    backbone after the first rung; each is to get the same chances.

    HyperBand here is ASHA in several brackets, as the paper's section 3.2 has it: a trial is put
    at random into a bracket, and brackets differ in how late they first compare. So a
    backbone's slow starters are not all lost to an early rung; the last bracket stops nobody. The
    synchronous HyperBand of 2017 is not offered: it waits until a rung is full and pauses trials
    meanwhile, which idles the GPUs.

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
        self._of_backbone = {
            r.name: ASHAScheduler(
                time_attr="n_epochs",
                metric=metric,
                mode="max",
                max_t=r.n_epochs,
                grace_period=min(grace_epochs, r.n_epochs),
                reduction_factor=_ETA,
                brackets=n_brackets or most_brackets(r.n_epochs, grace_epochs),
            )
            for r in recipes
        }

    def _of(self, trial: Any) -> ASHAScheduler:
        return self._of_backbone[trial.config["backbone"]]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._of(trial).on_trial_remove(tune_controller, trial)


def most_brackets(n_epochs: int, grace_epochs: int) -> int:
    """Brackets whose first rung is not after the end: floor(log3(epochs / grace)) + 1."""
    return math.floor(math.log(max(n_epochs / min(grace_epochs, n_epochs), 1), _ETA) + 1e-9) + 1
