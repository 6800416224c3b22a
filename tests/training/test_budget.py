"""What a search has spent, over interruptions. No Ray; well under a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybench.storage import Storage
from raybench.training.budget import Budget, was_over


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_hours_go_by_the_clock_and_gpu_hours_by_the_trials_that_run(tmp_path: Path) -> None:
    clock, where = Clock(), (Storage(str(tmp_path)), "tune_spent.json")
    budget = Budget(2.0, 3.0, 0.5, *where, clock, begun=True)
    for minutes, n_running in ((30, 0), (30, 2), (45, 4)):
        clock.now += 60 * minutes
        budget.tick(n_running)
    assert budget.spent["hours"] == pytest.approx(1.75)
    assert budget.spent["gpu_hours"] == pytest.approx(0.5 + 1.5)
    assert (budget.is_over, was_over(*where)) == (False, False)
    clock.now += 60 * 30
    budget.tick(4)
    assert budget.used_up == "the budget of 2 hours (search.hours) is used up"
    assert was_over(*where)


def test_what_was_spent_before_a_kill_counts(tmp_path: Path) -> None:
    clock, where = Clock(), (Storage(str(tmp_path)), "tune_spent.json")
    first = Budget(None, 1.0, 2.0, *where, clock, begun=True)
    clock.now += 1200.0
    first.tick(1)  # killed after this: nothing is written any more
    clock.now += 86400.0  # a day of which nothing was spent
    second = Budget(None, 1.0, 2.0, *where, clock, begun=True)
    assert second.spent["gpu_hours"] == pytest.approx(2 / 3)
    assert not second.is_over
    clock.now += 600.0
    second.tick(1)
    assert second.used_up == "the budget of 1 GPU hour (search.gpu_hours) is used up"
    assert Budget(None, 1.0, 2.0, *where, clock, begun=True).is_over


def test_without_a_limit_nothing_is_ever_used_up(tmp_path: Path) -> None:
    clock, where = Clock(), (Storage(str(tmp_path)), "tune_spent.json")
    budget = Budget(None, None, 1.0, *where, clock)
    clock.now += 1e9
    budget.tick(100)
    assert budget.used_up is None
    assert not was_over(where[0], "none_such.json")


def test_nothing_is_over_before_a_trial_has_an_epoch(tmp_path: Path) -> None:
    clock, where = Clock(), (Storage(str(tmp_path)), "tune_spent.json")
    budget = Budget(1.0, None, 0.0, *where, clock)
    clock.now += 7200.0
    assert budget.tick(1) is None
    assert (budget.is_over, was_over(*where)) == (False, False)
    killed = Budget(1.0, None, 0.0, *where, clock)  # resumed with no epoch on disk
    assert (killed.is_over, was_over(*where)) == (False, False)
    killed.begin()
    assert (killed.is_over, was_over(*where)) == (True, True), "trials not begun read it at once"
    assert killed.tick(1) == "the budget of 1 hour (search.hours) is used up"
    assert killed.tick(1) is None, "it is said once"
    resumed = Budget(1.0, None, 0.0, *where, clock, begun=True)
    assert (resumed.is_over, resumed.tick(1)) == (True, None)


@pytest.mark.parametrize(
    ("hours", "gpu_hours", "said"),
    [
        (1.0, None, "the budget of 1 hour (search.hours) is used up"),
        (0.5, None, "the budget of 0.5 hours (search.hours) is used up"),
        (None, 1.0, "the budget of 1 GPU hour (search.gpu_hours) is used up"),
    ],
)
def test_what_is_used_up_is_told_in_words(
    hours: float | None, gpu_hours: float | None, said: str, tmp_path: Path
) -> None:
    ticks = iter([0.0, 7200.0])
    where = (Storage(str(tmp_path)), "spent.json")
    budget = Budget(hours, gpu_hours, 1.0, *where, lambda: next(ticks), begun=True)
    assert budget.tick(1) == said
