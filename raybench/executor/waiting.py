"""Units that no worker has yet."""

from __future__ import annotations

import bisect
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

from raybench.executor.members import Sent

TRIES = 3
"""Workers that may die of one unit before it is given up, and the others go on.

The last of them has nothing else under way beside it: where memory is out Ray ends neighbours too,
and a unit must not be given up for what another one took.
"""

_SETTLE = 2.0
"""Seconds after a worker was lost in which no unit is tried that a worker died of: until then it is
known who else has ended, and what they held is free. Else it would be blamed for the others' end.
"""


class Waiting:
    """Units that wait for a worker with room, in the order of their tickets; last tries apart.

    So one that comes back from a worker that died goes ahead of those that were never sent.
    """

    def __init__(self) -> None:
        self._units: list[Sent] = []
        self._last_tries: deque[Sent] = deque()
        self._lost_at = -math.inf

    def add(self, sent: Sent) -> None:
        """Take in a unit."""
        bisect.insort(self._units, sent, key=lambda each: each.ticket)

    def again(self, sent: Sent) -> bool:
        """Take in a unit that one more worker died of; False: it has had its last try."""
        sent.n_deaths += 1
        if sent in self._last_tries:
            return False
        if sent.n_copies == 0 and not sent.has_ended:
            if sent.n_deaths >= TRIES - 1:
                self._last_tries.append(sent)
            else:
                self.add(sent)
        return True

    def lost(self) -> None:
        """Note that a worker was lost now."""
        self._lost_at = time.monotonic()

    def may_try(self, sent: Sent) -> bool:
        """Whether the unit need not wait for what the last loss leaves behind."""
        return sent.n_deaths == 0 or time.monotonic() - self._lost_at >= _SETTLE

    @property
    def last_try(self) -> Sent | None:
        """The unit whose turn it is to have the workers to itself, until it has ended."""
        while self._last_tries and self._last_tries[0].has_ended:
            self._last_tries.popleft()
        return self._last_tries[0] if self._last_tries else None

    def take(self, has_room: Callable[[Sent], bool]) -> Iterator[Sent]:
        """Hand out the units that there is room for; the others stay.

        Args:
            has_room: asked for each when those before it have been sent.
        """
        for sent in list(self._units):
            if has_room(sent):
                self._units.remove(sent)
                yield sent
