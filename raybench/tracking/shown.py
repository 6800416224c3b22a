"""Runs as MLflow should show them: what `view` and `explanation_view` make of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RunStatus = Literal["RUNNING", "FINISHED", "FAILED"]


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a curve. `number` counts the trial's epoch events, in the order of the log."""

    key: str
    value: float
    time_ms: int
    step: int
    number: int


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as MLflow should show it.

    Attributes:
        trial_id: None for the sweep itself.
        name: the run's name.
        params: flat name to text; they never change.
        tags: text; they may change.
        curve: the points of all epochs, the last occurrence of each.
        n_epoch_events: how many epoch events the log holds for the trial.
        metrics: single figures; `metrics_ms` says when they were written.
        status, start_ms, end_ms: of the run; milliseconds since 1970.
        files: local path and the folder they go to, in order.
        explanation: names a row of the leaderboard (`lime.val`); empty for sweep and trials.
        texts: name and contents of files that are made for MLflow alone.
    """

    trial_id: str | None
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    curve: tuple[Point, ...]
    n_epoch_events: int
    metrics: dict[str, float]
    metrics_ms: int
    status: RunStatus
    start_ms: int
    end_ms: int | None
    files: tuple[tuple[Path, str], ...]
    explanation: str = ""
    texts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SweepView:
    """A sweep: `key` finds its runs again, `started` tells it from one that was overwritten.

    Attributes:
        explanations: a run a row of the leaderboard, each nested below its trial.
    """

    name: str
    key: str
    started: str
    parent: RunView
    trials: tuple[RunView, ...]
    explanations: tuple[RunView, ...] = ()
