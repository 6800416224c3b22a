"""Jobs and the one loop that drives them, wherever their units run.

A task (an explainer, a prediction) plans, runs and merges; a pool does single units, in this
process or over Ray; the loop here keeps a bounded number of units in flight, oldest job first, so
that jobs finish in about their order and memory stays flat however many there are.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from raybench.models.classifier import Classifier
from raybench.types import Arrays, Unit


class Task(Protocol):
    """What can be fanned out: explainers and predictions."""

    def plan(self, subject: Any, done: Mapping[str, Arrays], /) -> list[Unit]:
        """The units needed next; none when `merge` can be called."""

    def run(self, unit: Unit, classifier: Classifier | None, /) -> Arrays:
        """Do one unit."""

    def merge(self, subject: Any, done: Mapping[str, Arrays], /) -> Any:
        """Put the answers together."""


@runtime_checkable
class Batched(Task, Protocol):
    """A task whose units, of several jobs, can share a pass through the model."""

    @property
    def batch(self) -> int:
        """How many units are worth doing together; 1: none."""

    def run_many(self, units: Sequence[Unit], classifier: Classifier | None, /) -> list[Arrays]:
        """The answers of `run`, one a unit."""


@dataclass(frozen=True, slots=True)
class Job:
    """One subject and what to do with it.

    Attributes:
        key: names the job for whoever asked.
        model: key of the checkpoint its units need, or None.
    """

    key: Hashable
    task: Task
    subject: Any
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        result: what `merge` returned; None after an error.
        error: one line, where a unit, the plan or the merge failed.
        seconds: time that its units took, summed over workers.
        n_forward: forward passes that were made for it.
    """

    key: Hashable
    result: Any
    error: str | None
    seconds: float
    n_forward: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a unit."""

    ticket: int
    arrays: Arrays | None
    error: str | None
    seconds: float


class Pool(Protocol):
    """Does single units. `submit` never blocks; `next` waits for any one to end."""

    @property
    def slots(self) -> int:
        """How many units are worth having in flight."""

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Start a unit."""

    def next(self) -> Answer:
        """The next unit that ends. Only called with a unit in flight."""

    def close(self) -> None:
        """Let go of workers."""


@dataclass(slots=True)
class _Open:
    job: Job
    number: int
    done: dict[str, Arrays] = field(default_factory=dict)
    n_waiting: int = 0
    seconds: float = 0.0
    n_forward: int = 0
    error: str | None = None


def message(error: BaseException) -> str:
    """One line that names the kind of error and says what it said."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


@dataclass(frozen=True, slots=True)
class Together:
    """Units of a batched task as one unit, so that a pool need not know of batches."""

    task: Batched

    def plan(self, subject: Sequence[Unit], done: Mapping[str, Arrays], /) -> list[Unit]:
        """One unit that holds the others."""
        if done:
            return []
        n_forward = sum(unit.n_forward for unit in subject)
        return [Unit("together", {"units": tuple(subject)}, n_forward=n_forward)]

    def run(self, unit: Unit, classifier: Classifier | None, /) -> Arrays:
        """All of them in one go; one by one where that fails, so that the others are spared."""
        units = unit.payload["units"]
        answers: Iterable[Arrays]
        try:
            answers = self.task.run_many(units, classifier)
        except Exception:  # whose fault it was comes out one by one
            answers = (self._alone(one, classifier) for one in units)
        return {f"{i}/{name}": a for i, one in enumerate(answers) for name, a in one.items()}

    def _alone(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        try:
            return self.task.run(unit, classifier)
        except Exception as error:  # recorded for this unit; the others go on
            return {"error": np.array(message(error))}

    def merge(self, subject: Sequence[Unit], done: Mapping[str, Arrays], /) -> list[Arrays]:
        """The answers apart again; one that failed holds `error` alone."""
        return take_apart(done["together"], len(subject))


def take_apart(arrays: Arrays, n_units: int) -> list[Arrays]:
    """The answers of `Together.run`, one a unit."""
    apart: list[Arrays] = [{} for _ in range(n_units)]
    for key, array in arrays.items():
        number, _, name = key.partition("/")
        apart[int(number)][name] = array
    return apart


class _Loop:
    def __init__(self, jobs: Iterable[Job], pool: Pool, on_unit: Callable[[Unit], None]) -> None:
        self._jobs = enumerate(jobs)
        self._pool, self._on_unit = pool, on_unit
        self._ready: list[tuple[int, int, Unit]] = []
        self._open: dict[int, _Open] = {}
        self._flying: dict[int, list[tuple[int, Unit]]] = {}
        self._tickets = itertools.count()
        self._exhausted = False

    def run(self) -> Iterator[Outcome]:
        while True:
            yield from self._pull()
            while self._ready and len(self._flying) < self._pool.slots:
                self._launch()
            if not self._flying:
                return
            yield from self._land(self._pool.next())

    def _pull(self) -> Iterator[Outcome]:
        """Open jobs until there are units enough to keep the pool busy."""
        while not self._exhausted and self._n_ready() + len(self._flying) < self._pool.slots:
            pair = next(self._jobs, None)
            if pair is None:
                self._exhausted = True
                return
            number, job = pair
            opened = _Open(job, number)
            self._open[number] = opened
            yield from self._advance(opened)

    def _n_ready(self) -> float:
        """Units that wait; those that go in batches count as their share of one."""
        return sum(1 / _batch_of(self._open[number].job.task) for number, _, _ in self._ready)

    def _launch(self) -> None:
        number, _, unit = heapq.heappop(self._ready)
        job, group = self._open[number].job, [(number, unit)]
        # The last few are spread over all that is free instead of filling one batch.
        free = self._pool.slots - len(self._flying)
        most = min(_batch_of(job.task), -(-(len(self._ready) + 1) // free))
        while len(group) < most and self._fits(job, unit):
            number, _, following = heapq.heappop(self._ready)
            group.append((number, following))
        ticket = next(self._tickets)
        self._flying[ticket] = group
        model = job.model if unit.needs_model else None
        if len(group) == 1:
            self._pool.submit(ticket, job.task, unit, model)
            return
        assert isinstance(job.task, Batched)
        task = Together(job.task)
        self._pool.submit(ticket, task, task.plan([one for _, one in group], {})[0], model)

    def _fits(self, job: Job, unit: Unit) -> bool:
        """Whether the next unit can join this one in a batch."""
        if not self._ready:
            return False
        number, _, following = self._ready[0]
        other = self._open[number].job
        alike = (other.model, following.needs_model) == (job.model, unit.needs_model)
        return alike and other.task == job.task

    def _land(self, answer: Answer) -> Iterator[Outcome]:
        group = self._flying.pop(answer.ticket)
        for (number, unit), own in zip(group, self._apart(group, answer), strict=True):
            yield from self._settle(number, unit, own)

    def _apart(self, group: Sequence[tuple[int, Unit]], answer: Answer) -> list[Answer]:
        """The answers to the units of a group; each has its share of the time."""
        if len(group) == 1:
            return [answer]
        ticket, seconds = answer.ticket, answer.seconds / len(group)
        if answer.arrays is None:
            return [Answer(ticket, None, answer.error, seconds)] * len(group)
        return [
            Answer(ticket, None, str(one["error"]), seconds)
            if set(one) == {"error"}
            else Answer(ticket, one, None, seconds)
            for one in take_apart(answer.arrays, len(group))
        ]

    def _settle(self, number: int, unit: Unit, answer: Answer) -> Iterator[Outcome]:
        opened = self._open[number]
        opened.n_waiting -= 1
        opened.seconds += answer.seconds
        if answer.arrays is None:
            opened.error = opened.error or answer.error or "the unit gave no answer"
            opened.n_waiting -= self._forget(number)
        else:
            opened.done[unit.name] = answer.arrays
            opened.n_forward += unit.n_forward
            self._on_unit(unit)
        if opened.n_waiting == 0:
            yield from self._advance(opened)

    def _forget(self, number: int) -> int:
        """Drop what a failed job still had waiting; other jobs are not held up by it."""
        before = len(self._ready)
        self._ready = [entry for entry in self._ready if entry[0] != number]
        heapq.heapify(self._ready)
        return before - len(self._ready)

    def _advance(self, opened: _Open) -> Iterator[Outcome]:
        """Plan the next round of a job, or end it."""
        job, result = opened.job, None
        if opened.error is None:
            try:
                units = job.task.plan(job.subject, opened.done)
                if units:
                    for unit in units:
                        heapq.heappush(self._ready, (opened.number, next(self._tickets), unit))
                    opened.n_waiting = len(units)
                    return
                result = job.task.merge(job.subject, opened.done)
            except Exception as error:  # recorded for this job; the others go on
                opened.error = message(error)
        del self._open[opened.number]
        yield Outcome(job.key, result, opened.error, opened.seconds, opened.n_forward)


def _batch_of(task: Task) -> int:
    return task.batch if isinstance(task, Batched) else 1


def run_jobs(
    jobs: Iterable[Job], pool: Pool, on_unit: Callable[[Unit], None] = lambda unit: None
) -> Iterator[Outcome]:
    """Do all jobs and yield an outcome for each as it ends.

    Args:
        jobs: read lazily, a few ahead of what is in flight.
        pool: where units run; it stays open.
        on_unit: called after each unit that succeeded, for counting.

    Raises:
        ExecutionError: the pool cannot go on (not: a job failed, which its outcome says).
    """
    yield from _Loop(jobs, pool, on_unit).run()
