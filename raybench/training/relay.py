"""What Tune says while it runs trials, passed on; and its question whether to go on, answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from ray import tune

from raybench.training.budget import Budget
from raybench.training.recipe import Recipe
from raybench.training.space import resolve
from raybench.training.state import Epoch

log = logging.getLogger(__name__)

N_LEFT = "n_left"
"""Reported with each epoch: how many there are still to come."""

GAVE_UP = "gave_up"
"""Reported in place of an epoch's figures: why there will be no more of them."""


class TrialListener(Protocol):
    """What the driver hears of the trials while they run."""

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        """A trial begins, or goes on after an interruption."""

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        """A trial finished an epoch; named as `Epoch.figures` has it.

        Where memory was out, `micro_batch` is the number of images of each pass since.
        """

    def trial_ended(self, trial_id: str, recipe: Recipe, failed: bool) -> None:
        """A trial is done: trained, stopped by scheduler or budget, or failed."""

    def budget_spent(self, said: str) -> None:
        """No further trial begins, those under way end with their epoch; `said` says why."""


def trial_name(drawn: Mapping[str, Any]) -> str:
    """`t0003` for Optuna's trial number 3: the same after a resume and in every rerun."""
    return f"t{int(drawn['trial_number']):04d}"


_listener: TrialListener | None = None
"""Who hears of the trials of this process. Tune pickles its callbacks and, after a restore, calls
the unpickled one; a listener holds files and cannot travel that way."""

_budget: Budget | None = None
"""What may be spent by this process's search; not pickled either, for it goes on counting."""


@contextmanager
def listening(listener: TrialListener, budget: Budget) -> Iterator[None]:
    """While the block runs, trials' events go to the listener and their time to the budget."""
    global _listener, _budget
    _listener, _budget = listener, budget
    try:
        yield
    finally:
        _listener, _budget = None, None
        budget.write()


def is_spent() -> bool:
    """Whether the budget of this process's search is used up."""
    return _budget is not None and _budget.is_over


class SpentStopper(tune.Stopper):  # type: ignore[misc]
    """Ends each trial with its epoch once the budget is used up.

    Tune's own way (`stop_all`) would throw away the epochs under way, and tell neither callbacks
    nor searcher. A trial that has trained its last epoch is let be: it has yet to be judged.
    """

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if _budget is not None and result.get("n_epochs", 0) > 0:
            _budget.begin()  # here, since Tune asks this before it tells any callback
        return is_spent() and result.get(N_LEFT, 1) > 0

    def stop_all(self) -> bool:
        return False


class Relay(tune.Callback):  # type: ignore[misc]
    """Passes Tune's events on. An exception in a Tune callback would abort every trial."""

    def __init__(self, recipes: tuple[Recipe, ...], score: str) -> None:
        self._recipes, self._score = recipes, score

    def _tell(self, call: Callable[[TrialListener], None]) -> None:
        if _listener is None:
            return
        try:
            call(_listener)
        except Exception:
            log.exception("an event of a trial could not be recorded")

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if _budget is None:
            return
        said = _budget.tick(sum(trial.status == "RUNNING" for trial in trials))
        if said is not None:
            self._tell(lambda to: to.budget_spent(said))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        recipe = resolve(self._recipes, trial.config)
        self._tell(lambda to: to.trial_started(trial_name(trial.config), recipe))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        recipe = resolve(self._recipes, trial.config)
        names = [*Epoch.names(self._score), "micro_batch"]
        epoch = {name: result[name] for name in names if name in result}
        if not epoch:  # it gave up, or was not begun
            return
        name = trial_name(trial.config)
        self._tell(lambda to: to.epoch_finished(name, recipe, epoch))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, failed=GAVE_UP in trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, failed=True)

    def _ended(self, trial: Any, failed: bool) -> None:
        recipe, name = resolve(self._recipes, trial.config), trial_name(trial.config)
        self._tell(lambda to: to.trial_ended(name, recipe, failed=failed))
