"""Units over Ray actors that keep the classifier loaded."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray

from raybench.errors import ExecutionError
from raybench.executor.actors import actor_class, is_answered
from raybench.executor.jobs import Answer, Task, message
from raybench.executor.lost import NOBODY, why_lost
from raybench.executor.members import Flight, Member, Members, Probes, Sent
from raybench.executor.object_store import ObjectStore
from raybench.executor.ray_metrics import UnitMetrics
from raybench.executor.waiting import Waiting
from raybench.models.runtime import EAGER, Runtime, check_backend
from raybench.types import Unit

log = logging.getLogger(__name__)

_AHEAD = 2  # in flight for each worker: the next unit is there when the last one ends

_START_SECONDS = 120.0  # actors may take to start (imports, a new node), and the first at most:
_PATIENCE_SECONDS = 600.0

_LOOK = 1.0
"""Seconds between two looks for units that hang."""


class RayPool:
    """A set of actors, each with a bounded number of units in flight.

    Beside workers with GPUs there can be helpers: actors of one core that do the units which need
    no model (superpixels), so that a GPU never waits for them.

    The units of an actor that dies are given to others (units are deterministic, and what it had
    answered stays); one that `waiting.TRIES` workers died of, or took longer than `deadline` for,
    becomes an error of its own job.

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
        self._deadline = deadline
        self.device = "cuda" if gpus > 0 else "cpu"
        check_backend(runtime.backend, self.device)
        worker, helper = actor_class(cpus, gpus), actor_class(1, 0.0)
        self.workers = Members(lambda: worker.remote(cpus, runtime, self.device, store), n_workers)
        self.helpers = Members(lambda: helper.remote(1, runtime, "cpu", store), n_helpers)
        self._flying: dict[Any, Flight] = {}
        self._waiting, self._probes = Waiting(), Probes()
        self._given_up: deque[Answer] = deque()
        self._looked, self._metrics = time.monotonic(), UnitMetrics()
        self._object_store = ObjectStore(models)
        self._start(min(n_workers, n_at_once or n_workers))
        self._n_helpers = len(self.helpers.living)

    @property
    def slots(self) -> int:
        """Units worth having in flight at the workers, and that the object store holds."""
        return max(1, min(_AHEAD * len(self.workers.living), self._object_store.n_units))

    @property
    def free_slots(self) -> int:
        """Units without a model worth having in flight at the helpers; 0: there are none."""
        return _AHEAD * self._n_helpers

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Give the unit to the worker (without a model: the helper) with the least in flight."""
        self._waiting.add(Sent(ticket, task, unit, model))
        self._send_waiting()

    def hurry(self) -> None:
        """Nothing else will come for now: who is idle does what waits behind another's unit.

        The other one does it as well, when nobody needs it any more: so a slow node holds up the
        end by the unit it is at, and no other. Units are deterministic, whoever answers first.
        """
        self._send_waiting()
        if self._waiting.last_try is not None:
            return
        waiting = [
            flight
            for flight in self._flying.values()
            if flight.members is self.workers
            and flight.sent.n_copies == 1
            and not flight.sent.has_ended
            and flight.member.queue[0] != flight.sent.ticket
        ]
        idle = [member for member in self.workers.living if not member.queue]
        for member, flight in zip(idle, reversed(waiting), strict=False):
            self._fly(flight.sent, self.workers, member)

    def next(self) -> Answer | None:
        """Wait for any unit; None: a worker has joined meanwhile, so that there are more slots.

        Raises:
            ExecutionError: there is no worker, and none can be started.
        """
        since = time.monotonic()
        while not self._given_up:
            self._send_waiting()
            ready = self._wait()
            self._look_for_the_stuck()
            if not ready:
                if not self.workers.living and time.monotonic() - since > _PATIENCE_SECONDS:
                    raise ExecutionError(NOBODY.format(self.workers.n, _PATIENCE_SECONDS))
                continue
            if ready[0] in self._flying:
                answer = self._land(ready[0])
                if answer is not None:
                    return answer
            elif ready[0] in self._probes.calls:
                dead = self._probes.dead(ready[0])
                if dead is not None:
                    self._lost(*dead)
            elif self.workers.join(ready[0]) or self.helpers.join(ready[0]):
                return None
        return self._given_up.popleft()

    def _wait(self) -> list[Any]:
        """A reference that has ended, or none yet."""
        joining = [*self.workers.calls, *self.helpers.calls]
        under_way = [*self._flying, *joining, *self._probes.calls]
        if not under_way:  # a unit that a worker died of is to come
            time.sleep(_LOOK)
            return []
        return list(ray.wait(under_way, num_returns=1, timeout=_LOOK)[0])

    def close(self) -> None:
        """End the actors and give their resources back."""
        for members in (self.workers, self.helpers):
            members.close()
        self._object_store.clear()
        self._flying, self._waiting, self._probes = {}, Waiting(), Probes()

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
            raise ExecutionError(NOBODY.format(self.workers.n, _PATIENCE_SECONDS))

    def _send_waiting(self) -> None:
        """Send what waits, oldest first, to who has the least to do and room for more.

        What does not fit stays here, not in the queue of a worker that is busy: the next one that
        joins or has room takes it.
        """
        last = self._waiting.last_try
        if last is not None:
            members = self._members(last)
            if self._waiting.may_try(last) and not self._flying and members.living:
                self._fly(last, members, members.least_loaded())
            return
        for sent in self._waiting.take(self._has_room):
            members = self._members(sent)
            self._fly(sent, members, members.least_loaded())

    def _has_room(self, sent: Sent) -> bool:
        return self._waiting.may_try(sent) and self._members(sent).has_room(_AHEAD)

    def _members(self, sent: Sent) -> Members:
        return self.helpers if sent.model is None and self.helpers.living else self.workers

    def _fly(self, sent: Sent, members: Members, member: Member) -> None:
        self._object_store.see(sent.unit)
        checkpoint = [] if sent.model is None else [self._object_store.checkpoint(sent.model)]
        reference = member.actor.run.remote(
            sent.ticket, sent.task, sent.unit, sent.model, checkpoint
        )
        member.give(sent.ticket)
        sent.n_copies += 1
        self._flying[reference] = Flight(sent, members, member)

    def _land(self, reference: Any) -> Answer | None:
        """The answer behind a reference that has ended; None where its worker died instead, or
        where another copy has answered before."""
        flight = self._flying[reference]
        sent, member = flight.sent, flight.member
        try:
            answer = ray.get(reference)
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            self._lost(flight.members, member, why_lost(error))
            return None
        except ray.exceptions.ObjectLostError as error:  # its node died after it had answered
            self._took(reference)
            self._again(sent, message(error))
            return None
        except ray.exceptions.RayError as error:
            answer = Answer(sent.ticket, None, message(error), 0.0)
        self._took(reference)
        if sent.has_ended:
            return None
        sent.has_ended = True
        if not isinstance(answer, Answer):
            raise ExecutionError(f"a worker answered with a {type(answer).__name__}")
        self._metrics.ended(sent.task, answer)
        return answer

    def _took(self, reference: Any) -> None:
        flight = self._flying.pop(reference)
        flight.member.took(flight.sent.ticket)
        flight.sent.n_copies -= 1

    def _lost(self, members: Members, member: Member, why: str, at_once: bool = False) -> None:
        """Give the units of an actor that is no more to others, but for one that is to blame.

        Args:
            at_once: whether the unit that it was at is given up without another try.
        """
        self._waiting.lost()
        log.warning("a worker is lost (%s); another one takes over its units", why[:300])
        mine = [r for r, flight in self._flying.items() if flight.member is member]
        lost = {r: self._flying[r].sent for r in mine if not is_answered(r)}
        members.bury(member)
        self._probes.ask(members)
        for reference in lost:
            self._took(reference)
        # It does them in the order in which they were sent: the first was the one it was at.
        for number, sent in enumerate(lost.values()):
            if number == 0 and at_once and sent.n_copies == 0:
                self._give_up(sent, why)
            elif number == 0:
                self._again(sent, why)
            elif sent.n_copies == 0 and not sent.has_ended:
                self._waiting.add(sent)

    def _again(self, sent: Sent, why: str) -> None:
        """Send a unit that a worker died of once more, but not for ever."""
        if not self._waiting.again(sent):
            self._give_up(sent, f"{sent.n_deaths} workers died of it, the last one: {why}")

    def _give_up(self, sent: Sent, why: str) -> None:
        if not sent.has_ended:
            sent.has_ended = True
            self._given_up.append(Answer(sent.ticket, None, why, 0.0))

    def _look_for_the_stuck(self) -> None:
        if time.monotonic() - self._looked < _LOOK:
            return
        self._looked = time.monotonic()
        for members in (self.workers, self.helpers):
            for member in [m for m in members.living if m.seconds() > self._deadline]:
                if any(is_answered(r) for r, f in self._flying.items() if f.member is member):
                    continue  # it did end: this process was busy meanwhile
                why = f"did not end within {self._deadline:g} s (execution.unit_deadline)"
                self._lost(members, member, why, at_once=True)
