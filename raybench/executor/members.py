"""The actors of a pool: who lives, what each has to do, and who takes the place of the dead."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import ray

from raybench.errors import ExecutionError
from raybench.executor.jobs import Task
from raybench.executor.lost import why_lost
from raybench.types import Unit

_BAD_STARTS = 3
"""Actors in a row that end before they answer once: then none ever will."""


@dataclass(slots=True, eq=False)
class Member:
    """One actor.

    Attributes:
        queue: what it was given and has not answered, oldest first; it does them in that order.
        since: when it began with the oldest, seconds of `time.monotonic`.
    """

    actor: Any
    queue: deque[Hashable] = field(default_factory=deque)
    since: float = 0.0

    def give(self, ticket: Hashable) -> None:
        """Note a unit that was sent to it."""
        if not self.queue:
            self.since = time.monotonic()
        self.queue.append(ticket)

    def took(self, ticket: Hashable) -> None:
        """Note a unit that it answered; the next one begins now."""
        if ticket in self.queue:
            self.queue.remove(ticket)
        self.since = time.monotonic()

    def seconds(self) -> float:
        """How long it has been at its oldest unit; 0 without one."""
        return time.monotonic() - self.since if self.queue else 0.0


class Members:
    """Actors of one kind. They join when they answer for the first time, which may take a new node.

    An actor that dies is not restarted where it was, since its node may be gone for good: another
    one is asked for, and joins where and when there is room.

    Args:
        make: starts an actor.
        n: how many there are to be.
    """

    def __init__(self, make: Callable[[], Any], n: int) -> None:
        self._make, self.n = make, n
        self.living: list[Member] = []
        self.n_died = 0
        self._joining: dict[Any, Any] = {}
        self._bad_starts = 0
        for _ in range(n):
            self._ask()

    @property
    def calls(self) -> list[Any]:
        """References that end as an actor joins."""
        return list(self._joining)

    def join(self, call: Any) -> bool:
        """Take in the actor whose reference has ended; whether the reference was one of these.

        Raises:
            ExecutionError: one after the other ends before it answers, and none lives.
        """
        actor = self._joining.pop(call, None)
        if actor is None:
            return False
        try:
            ray.get(call)
        except ray.exceptions.RayError as error:
            self._bad_starts += 1
            if self._bad_starts >= _BAD_STARTS and not self.living:
                raise ExecutionError(f"a worker could not be started: {why_lost(error)}") from error
            if self._bad_starts < _BAD_STARTS:
                self._ask()
            return True
        self._bad_starts = 0
        self.living.append(Member(actor))
        return True

    def bury(self, member: Member) -> None:
        """Take out an actor that is dead, or as good as that, and ask for another one."""
        if member in self.living:
            self.living.remove(member)
            self.n_died += 1
            ray.kill(member.actor)
            self._ask()

    def least_loaded(self) -> Member:
        """Who has the least to do; only called where somebody lives."""
        return min(self.living, key=lambda member: len(member.queue))

    def has_room(self, most: int) -> bool:
        """Whether somebody has less than `most` to do."""
        return any(len(member.queue) < most for member in self.living)

    def give_up_joining(self) -> None:
        """Do without those that have not joined."""
        for actor in self._joining.values():
            ray.kill(actor)
        self._joining.clear()

    def close(self) -> None:
        """End them all."""
        self.give_up_joining()
        for member in self.living:
            ray.kill(member.actor)
        self.living.clear()

    def _ask(self) -> None:
        actor = self._make()
        self._joining[actor.pid.remote()] = actor


@dataclass(slots=True, eq=False)
class Sent:
    """A unit in flight or waiting for somebody to send it to; `n_deaths` workers died of it.

    At the end of the work it can be with two workers (`n_copies`); the first answer counts.
    """

    ticket: int
    task: Task
    unit: Unit
    model: str | None
    n_deaths: int = 0
    n_copies: int = 0
    has_ended: bool = False


class Probes:
    """Questions to idle workers whether they live, asked when another one was lost.

    Where memory is out or a node goes several end at once, and one that had nothing to do is only
    found dead by the next unit that it is sent, which would be blamed for it.
    """

    def __init__(self) -> None:
        self._asked: dict[Any, tuple[Members, Member]] = {}

    @property
    def calls(self) -> list[Any]:
        """References that end as they answer, or cannot."""
        return list(self._asked)

    def ask(self, members: Members) -> None:
        """Ask those that have nothing to do."""
        for member in members.living:
            if not member.queue:
                self._asked[member.actor.pid.remote()] = (members, member)

    def dead(self, call: Any) -> tuple[Members, Member, str] | None:
        """Who was found dead by a question that has ended, and why; None: nobody."""
        members, member = self._asked.pop(call)
        try:
            ray.get(call)
        except ray.exceptions.RayError as error:
            return (members, member, why_lost(error)) if member in members.living else None
        return None


@dataclass(slots=True, frozen=True)
class Flight:
    """One copy of a unit at one worker."""

    sent: Sent
    members: Members
    member: Member
