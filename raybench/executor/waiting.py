"""Units that no worker has yet."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator

from raybench.executor.members import Sent


class Waiting:
    """Units that wait for a worker with room, in the order of their tickets; last tries apart.

    So one that comes back from a worker that died goes ahead of those that were never sent.
    """

    def __init__(self) -> None:
        self._units: list[Sent] = []
        self._last_tries: deque[Sent] = deque()

    def add(self, sent: Sent) -> None:
        """Take in a unit."""
        bisect.insort(self._units, sent, key=lambda each: each.ticket)

    def add_last_try(self, sent: Sent) -> None:
        """Take in a unit that is to be tried once more, with nothing else under way."""
        self._last_tries.append(sent)

    def is_last_try(self, sent: Sent) -> bool:
        """Whether no other try follows."""
        return sent in self._last_tries

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
