"""What a search has spent: by the clock, by GPUs held, over resumes. Less than a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from raybench.training import budget
from raybench.training.budget import Budget


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += 3600 * hours


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(budget, "time", fake)
    return fake


def test_gpu_hours_are_those_of_the_trials_that_hold_gpus(clock: Clock, tmp_path: Path) -> None:
    spent = Budget(None, 3.0, 0.5, tmp_path / "spent.json")
    clock.pass_hours(1)  # nothing runs
    spent.started("t0000")
    clock.pass_hours(2)
    spent.started("t0001")
    clock.pass_hours(1)
    spent.ended("t0000")
    clock.pass_hours(1)
    assert spent.exhausted() is None
    assert spent.spent == pytest.approx({"hours": 5.0, "gpu_hours": 0.5 * (2 + 2 * 1 + 1)})
    clock.pass_hours(1)
    assert spent.exhausted() == "the budget of 3 gpu hours is used up"


def test_hours_before_a_kill_count_and_those_in_between_do_not(
    clock: Clock, tmp_path: Path
) -> None:
    path = tmp_path / "spent.json"
    first = Budget(2.0, None, 0, path)
    clock.pass_hours(1.5)
    assert first.exhausted() is None
    clock.pass_hours(10)  # killed; nobody counts
    second = Budget(2.0, None, 0, path)
    assert second.exhausted() is None
    clock.pass_hours(0.4)
    assert second.exhausted() is None
    clock.pass_hours(0.1)
    assert second.exhausted() == "the budget of 2 hours is used up"


def test_without_a_limit_nothing_is_ever_used_up(clock: Clock, tmp_path: Path) -> None:
    unlimited = Budget(None, None, 1, tmp_path / "spent.json")
    unlimited.started("t0000")
    clock.pass_hours(10_000)
    assert unlimited.exhausted() is None
