"""Optuna as Tune asks it: the sampler, and what it is told of trials that ended badly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch

from raybench.training.relay import is_spent
from raybench.training.space import SearchSpace


class Searcher(OptunaSearch):  # type: ignore[misc]
    """Proposes nothing once the budget is used up, and tells Optuna of a failed trial as that.

    Ray's own would pass on what a trial last reported: one that diverged ends with NaN, of which
    Optuna would never hear at all, and one that lacks one of several objectives with half a result.
    """

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """See `OptunaSearch`."""
        found: dict[str, Any] | str | None = (
            Searcher.FINISHED if is_spent() else super().suggest(trial_id)
        )
        return found

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """See `OptunaSearch`."""
        whole = not error and self._is_whole(result)
        super().on_trial_complete(trial_id, result if whole else None, error=not whole)

    def _is_whole(self, result: Mapping[str, Any] | None) -> bool:
        wanted = [self.metric] if isinstance(self.metric, str) else self.metric
        values = [(result or {}).get(name) for name in wanted]
        return all(value is not None and math.isfinite(value) for value in values)


def new_searcher(
    space: SearchSpace,
    metrics: Sequence[str],
    points: list[dict[str, Any]],
    seed: int,
    n_start: int,
) -> Searcher:
    """TPE, multivariate within groups of settings that are drawn together.

    Args:
        metrics: what is maximised; several make it a search for a Pareto front.
        points: what the first trials take, as far as it is given.
        n_start: random proposals before TPE learns from them.
    """
    with warnings.catch_warnings():
        # `group` is called experimental; conditional spaces are the case it was made for.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=n_start, multivariate=True, group=True
        )
    one = len(metrics) == 1
    return Searcher(
        space,
        metric=metrics[0] if one else list(metrics),
        mode="max" if one else ["max"] * len(metrics),
        points_to_evaluate=points,
        sampler=sampler,
    )
