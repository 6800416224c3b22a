"""Units over Ray actors that keep the classifier loaded."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import torch

from raybench.answers import AnswerStore
from raybench.errors import ExecutionError
from raybench.executor.jobs import Answer, Task, message
from raybench.executor.local import Resident, do_unit
from raybench.executor.members import Member, Members
from raybench.executor.ray_metrics import UnitMetrics
from raybench.models.runtime import EAGER, Runtime, check_backend, split_key
from raybench.types import Unit

log = logging.getLogger(__name__)

_AHEAD = 2  # in flight for each worker: the next unit is there when the last one ends

_START_SECONDS = 120.0  # actors may take to start (imports, a new node), and the first at most:
_PATIENCE_SECONDS = 600.0

TRIES = 3
"""Workers that may die of one unit before it is given up, and the others go on."""

_LOOK = 1.0
"""Seconds between two looks for units that hang."""


class _Worker:
    """One actor. Plain tasks would load the model again each time (Ray ends GPU workers)."""

    def __init__(self, n_threads: int, runtime: Runtime, device: str, store: str | None) -> None:
        self._store = None if store is None else AnswerStore(store)
        torch.set_num_threads(n_threads)
        self._resident = Resident(runtime, device)

    def pid(self) -> int:
        return os.getpid()

    def run(
        self, ticket: int, task: Task, unit: Unit, model: str | None, checkpoint: list[Any]
    ) -> Answer:
        try:
            classifier = (
                None
                if model is None
                else self._resident.get(model, lambda: bytes(ray.get(checkpoint[0])))
            )
        except Exception as problem:  # a checkpoint that does not load fails its own images only
            return Answer(ticket, None, message(problem), 0.0)
        return do_unit(ticket, task, unit, classifier, self._store)


@dataclass(slots=True)
class _Sent:
    """A unit in flight or waiting for somebody to send it to; `n_deaths` workers died of it."""

    ticket: int
    task: Task
    unit: Unit
    model: str | None
    n_deaths: int = 0
    order: int = 0


class RayPool:
    """A set of actors, each with a bounded number of units in flight.

    Beside workers with GPUs there can be helpers: actors of one core that do the units which need
    no model (superpixels), so that a GPU never waits for them.

    The units of an actor that dies are given to others (units are deterministic, and what it had
    answered stays); one that `TRIES` workers died of, or took longer than `deadline` for, becomes
    an error of its own job.

    Args:
        models: reads a checkpoint by its key, in this process; it travels by the object store.
        n_workers: actors that are asked for.
        n_at_once: how many of them the cluster has room for now; the others join when it has (a
            cluster that grows adds nodes for them). None: all.
        cpus, gpus: what each holds; `cpus` is also its number of threads.
        runtime: how forward passes are made.
        n_helpers: actors of one core for the units without a model; 0: the workers do them.
        store: folder that all workers see, where answers are kept; None: nothing is.
        deadline: seconds that a unit may take.
    """

    def __init__(
        self,
        models: Callable[[str], bytes],
        n_workers: int,
        cpus: int,
        gpus: float,
        runtime: Runtime = EAGER,
        n_helpers: int = 0,
        store: str | None = None,
        deadline: float = 900.0,
        n_at_once: int | None = None,
    ) -> None:
        self._models, self._deadline = models, deadline
        self.device = "cuda" if gpus > 0 else "cpu"
        check_backend(runtime.backend, self.device)
        worker, helper = _actor(cpus, gpus), _actor(1, 0.0)
        self.workers = Members(lambda: worker.remote(cpus, runtime, self.device, store), n_workers)
        self.helpers = Members(lambda: helper.remote(1, runtime, "cpu", store), n_helpers)
        self._flying: dict[Any, tuple[_Sent, Members, Member]] = {}
        self._waiting: deque[_Sent] = deque()
        self._given_up: deque[Answer] = deque()
        self._checkpoints: dict[str, Any] = {}
        self._looked, self._n_sent, self._metrics = time.monotonic(), 0, UnitMetrics()
        self._start(min(n_workers, n_at_once or n_workers))
        self._n_helpers = len(self.helpers.living)

    @property
    def slots(self) -> int:
        """Units worth having in flight at the workers."""
        return _AHEAD * max(1, len(self.workers.living))

    @property
    def free_slots(self) -> int:
        """Units without a model worth having in flight at the helpers; 0: there are none."""
        return _AHEAD * self._n_helpers

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Give the unit to the worker (without a model: the helper) with the least in flight."""
        self._send(_Sent(ticket, task, unit, model))

    def next(self) -> Answer:
        """Wait for any unit.

        Raises:
            ExecutionError: there is no worker, and none can be started.
        """
        since = time.monotonic()
        while not self._given_up:
            joining = self.workers.calls + self.helpers.calls
            ready, _ = ray.wait([*self._flying, *joining], num_returns=1, timeout=_LOOK)
            self._look_for_the_stuck()
            if not ready:
                if not self.workers.living and time.monotonic() - since > _PATIENCE_SECONDS:
                    raise ExecutionError(_NOBODY.format(self.workers.n, _PATIENCE_SECONDS))
                continue
            if ready[0] in self._flying:
                answer = self._land(ready[0])
                if answer is not None:
                    return answer
            elif self.workers.join(ready[0]) or self.helpers.join(ready[0]):
                self._send_waiting()
        return self._given_up.popleft()

    def close(self) -> None:
        """End the actors and give their resources back."""
        for members in (self.workers, self.helpers):
            members.close()
        self._flying, self._checkpoints = {}, {}
        self._waiting.clear()

    def _start(self, n_at_once: int) -> None:
        """Wait for the actors that the cluster has room for now; the others join later.

        Raises:
            ExecutionError: not one could be started.
        """
        begin = time.monotonic()
        while len(self.workers.living) < n_at_once or self.helpers.calls:
            calls = self.workers.calls
            passed = time.monotonic() - begin
            patience = _START_SECONDS if self.workers.living else _PATIENCE_SECONDS
            if passed > patience:
                break
            every = calls + self.helpers.calls
            for call in ray.wait(every, num_returns=1, timeout=patience - passed)[0]:
                if not self.workers.join(call):
                    self.helpers.join(call)
        self.helpers.give_up_joining()
        if not self.workers.living:
            self.close()
            raise ExecutionError(_NOBODY.format(self.workers.n, _PATIENCE_SECONDS))

    def _send(self, sent: _Sent) -> None:
        members = self.helpers if sent.model is None and self.helpers.living else self.workers
        if not members.living:
            self._waiting.append(sent)
            return
        member = members.least_loaded()
        checkpoint = [] if sent.model is None else [self._checkpoint(sent.model)]
        reference = member.actor.run.remote(
            sent.ticket, sent.task, sent.unit, sent.model, checkpoint
        )
        member.give(sent.ticket)
        self._n_sent += 1
        sent.order = self._n_sent
        self._flying[reference] = (sent, members, member)

    def _send_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for sent in waiting:
            self._send(sent)

    def _checkpoint(self, model: str) -> Any:
        name, _ = split_key(model)
        if name not in self._checkpoints:
            # One at a time: jobs come a trial after the other, and object stores are small.
            self._checkpoints = {name: ray.put(self._models(name))}
        return self._checkpoints[name]

    def _land(self, reference: Any) -> Answer | None:
        """The answer behind a reference that has ended; None where its worker died instead."""
        sent, members, member = self._flying[reference]
        try:
            answer = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._lost(members, member, message(error))
            return None
        except ray.exceptions.ObjectLostError as error:  # its node died after it had answered
            del self._flying[reference]
            member.took(sent.ticket)
            self._again(sent, message(error))
            return None
        except ray.exceptions.RayError as error:
            answer = Answer(sent.ticket, None, message(error), 0.0)
        del self._flying[reference]
        member.took(sent.ticket)
        if not isinstance(answer, Answer):
            raise ExecutionError(f"a worker answered with a {type(answer).__name__}")
        self._metrics.ended(sent.task, answer)
        return answer

    def _lost(self, members: Members, member: Member, why: str, at_once: bool = False) -> None:
        """Give the units of an actor that is no more to others, but for one that is to blame.

        Args:
            at_once: whether the unit that it was at is given up without another try.
        """
        log.warning("a worker is lost (%s); another one takes over its units", why[:300])
        mine = {r: s for r, (s, _, of) in self._flying.items() if of is member}
        lost = {r: s for r, s in mine.items() if not _answered(r)}
        members.bury(member)
        for reference in lost:
            del self._flying[reference]
        # It does them in the order of its queue: the first was the one it was at.
        for number, sent in enumerate(sorted(lost.values(), key=lambda s: s.order)):
            if number == 0 and at_once:
                self._given_up.append(Answer(sent.ticket, None, why, 0.0))
            elif number == 0:
                self._again(sent, why)
            else:
                self._send(sent)

    def _again(self, sent: _Sent, why: str) -> None:
        """Send a unit that a worker died of once more, but not for ever."""
        sent.n_deaths += 1
        if sent.n_deaths < TRIES:
            self._send(sent)
            return
        said = f"{sent.n_deaths} workers died of it, the last one: {why}"
        self._given_up.append(Answer(sent.ticket, None, said, 0.0))

    def _look_for_the_stuck(self) -> None:
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        for members in (self.workers, self.helpers):
            for member in [m for m in members.living if m.seconds() > self._deadline]:
                if any(_answered(r) for r, (_, _, of) in self._flying.items() if of is member):
                    continue  # it did end: this process was busy meanwhile
                why = f"did not end within {self._deadline:g} s (execution.unit_deadline)"
                self._lost(members, member, why, at_once=True)


_NOBODY = (
    "none of {} workers could be started within {:.0f} s: the cluster's cores or GPUs are taken, "
    "or its nodes are gone; wait until they are free, or lower execution.cpus_per_worker"
)


def _answered(reference: Any) -> bool:
    """Whether an answer is there that did not go down with its worker."""
    if not ray.wait([reference], timeout=0)[0]:
        return False
    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return False
    return True


def _actor(cpus: int, gpus: float) -> Any:
    # Not restarted by Ray: it would wait for its node, which may be gone for good.
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker)
