"""Jobs and the one loop that drives them, wherever their units run.

A task (an explainer, a prediction) plans, runs and merges; a pool does single units, in this
process or over Ray; the loop here keeps a bounded number of units in flight, oldest job first, so
that jobs finish in about their order and memory stays flat however many there are.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raybench.errors import ExplainError, UnavailableError
from raybench.models.classifier import Classifier
from raybench.models.runtime import is_out_of_memory
from raybench.types import Arrays, AttributionMap, Unit


class Task(Protocol):
    """What can be fanned out: explainers and predictions."""

    def plan(self, subject: Any, done: Mapping[str, Arrays], /) -> list[Unit]:
        """The units needed next; none when `merge` can be called."""

    def run(self, unit: Unit, classifier: Classifier | None, /) -> Arrays:
        """Do one unit."""

    def merge(self, subject: Any, done: Mapping[str, Arrays], /) -> Any:
        """Put the answers together."""


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
    """What became of a unit; `n_forward` passes were made, fewer than planned where some of its
    answers were kept from before. `stops_all`: the store refuses, which is no fault of the unit."""

    ticket: int
    arrays: Arrays | None
    error: str | None
    seconds: float
    n_forward: int = 0
    stops_all: bool = False


class Pool(Protocol):
    """Does single units. `submit` never blocks; `next` waits for any one to end."""

    @property
    def slots(self) -> int:
        """How many units are worth having in flight."""

    @property
    def free_slots(self) -> int:
        """Units without a model worth having in flight beside those; 0: all share the slots."""

    @property
    def device(self) -> str:
        """`cpu` or `cuda`: where the models run."""

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Start a unit."""

    def hurry(self) -> None:
        """Said before `next` where all that is left is in flight: nobody need be idle."""

    def next(self) -> Answer | None:
        """The next unit that ends; None: none did, but there may be more slots than before.

        Only called with a unit in flight.
        """

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


LESS_MEMORY = (
    "make batches smaller (execution.batch_size), or run fewer workers (execution.workers) where "
    "several share a machine"
)
"""What to do where memory is out."""


def message(error: BaseException) -> str:
    """One line that names the kind of error and says what it said; of memory, what to do too."""
    said = " ".join(str(error).split())
    line = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{line} (memory is out: {LESS_MEMORY})" if is_out_of_memory(error) else line


def failed(ticket: int, problem: Exception, seconds: float = 0.0) -> Answer:
    """The answer of a unit that raised."""
    if isinstance(problem, UnavailableError):
        return Answer(ticket, None, str(problem), seconds, stops_all=True)
    return Answer(ticket, None, message(problem), seconds)


_Queue = list[tuple[int, int, Unit]]


class _Loop:
    def __init__(
        self, jobs: Iterable[Job], pool: Pool, on_unit: Callable[[Unit, int], None]
    ) -> None:
        self._jobs = enumerate(jobs)
        self._pool, self._on_unit = pool, on_unit
        # Units wait in two queues, oldest job first: at the workers, and (where the pool has them)
        # at its helpers, which do units without a model ahead of the workers.
        self._ready: tuple[_Queue, _Queue] = ([], [])
        self._open: dict[int, _Open] = {}
        self._flying: dict[int, tuple[int, Unit]] = {}
        self._aloft = [0, 0]
        self._tickets = itertools.count()
        self._exhausted = False

    def run(self) -> Iterator[Outcome]:
        while True:
            yield from self._pull()
            for side, slots in enumerate((self._pool.slots, self._pool.free_slots)):
                while self._ready[side] and self._aloft[side] < slots:
                    self._launch(side)
            if not self._flying:
                return
            if self._exhausted and not any(self._ready):
                self._pool.hurry()
            answer = self._pool.next()
            if answer is not None:
                yield from self._land(answer)

    def _pull(self) -> Iterator[Outcome]:
        """Open jobs until there are units enough to keep the pool busy."""
        while not self._exhausted and self._wants_jobs():
            pair = next(self._jobs, None)
            if pair is None:
                self._exhausted = True
                return
            number, job = pair
            opened = _Open(job, number)
            self._open[number] = opened
            yield from self._advance(opened)

    def _wants_jobs(self) -> bool:
        slots, free = self._pool.slots, self._pool.free_slots
        if free:  # the units of young jobs are got ready while those of old ones keep workers busy
            return len(self._open) < slots + free
        return len(self._ready[0]) + len(self._flying) < slots

    def _side(self, unit: Unit) -> int:
        """0: at a worker; 1: at a helper."""
        return int(not unit.needs_model and self._pool.free_slots > 0)

    def _launch(self, side: int) -> None:
        number, _, unit = heapq.heappop(self._ready[side])
        opened = self._open[number]
        ticket = next(self._tickets)
        self._flying[ticket] = (number, unit)
        self._aloft[side] += 1
        model = opened.job.model if unit.needs_model else None
        self._pool.submit(ticket, opened.job.task, unit, model)

    def _land(self, answer: Answer) -> Iterator[Outcome]:
        if answer.stops_all:  # recorded as failed, its image would be missing from the figures
            raise UnavailableError(str(answer.error))
        number, unit = self._flying.pop(answer.ticket)
        self._aloft[self._side(unit)] -= 1
        opened = self._open[number]
        opened.n_waiting -= 1
        opened.seconds += answer.seconds
        if answer.arrays is None:
            opened.error = opened.error or answer.error or "the unit gave no answer"
            opened.n_waiting -= self._forget(number)
        else:
            opened.done[unit.name] = answer.arrays
            opened.n_forward += answer.n_forward
            self._on_unit(unit, answer.n_forward)
        if opened.n_waiting == 0:
            yield from self._advance(opened)

    def _forget(self, number: int) -> int:
        """Drop what a failed job still had waiting; other jobs are not held up by it."""
        n_dropped = 0
        for queue in self._ready:
            kept = [entry for entry in queue if entry[0] != number]
            n_dropped += len(queue) - len(kept)
            queue[:] = kept
            heapq.heapify(queue)
        return n_dropped

    def _advance(self, opened: _Open) -> Iterator[Outcome]:
        """Plan the next round of a job, or end it."""
        job, result = opened.job, None
        if opened.error is None:
            try:
                units = job.task.plan(job.subject, opened.done)
                if units:
                    for unit in units:
                        entry = (opened.number, next(self._tickets), unit)
                        heapq.heappush(self._ready[self._side(unit)], entry)
                    opened.n_waiting = len(units)
                    return
                result = _finite(job.task.merge(job.subject, opened.done))
            except Exception as error:  # recorded for this job; the others go on
                opened.error = message(error)
        del self._open[opened.number]
        yield Outcome(job.key, result, opened.error, opened.seconds, opened.n_forward)


def _finite(result: Any) -> Any:
    """Refuse a map that is not finite, before thresholds are chosen on it."""
    if isinstance(result, AttributionMap) and not np.isfinite(result.values).all():
        n_bad = int(np.count_nonzero(~np.isfinite(result.values)))
        raise ExplainError(f"{n_bad} of {result.values.size} values of the map are not finite")
    return result


def run_jobs(
    jobs: Iterable[Job],
    pool: Pool,
    on_unit: Callable[[Unit, int], None] = lambda unit, n_forward: None,
) -> Iterator[Outcome]:
    """Do all jobs and yield an outcome for each as it ends.

    Args:
        jobs: read lazily, a few ahead of what is in flight.
        pool: where units run; it stays open.
        on_unit: called after each unit that succeeded, with the forward passes made for it.

    Raises:
        ExecutionError: the pool cannot go on (not: a job failed, which its outcome says).
        UnavailableError: the store of answers, or of checkpoints, refuses.
    """
    yield from _Loop(jobs, pool, on_unit).run()
