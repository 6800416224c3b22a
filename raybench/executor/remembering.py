"""A pool that remembers answers in this process: what it knows is answered with nothing shipped."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace

import numpy as np

from raybench.executor.jobs import Answer, Pool, Task
from raybench.types import Arrays, Question, Unit

_Key = tuple[str | None, str]


@dataclass(slots=True)
class _Known:
    """Parts of one question's answer by their first row."""

    parts: dict[int, Arrays] = field(default_factory=dict)
    n_bytes: int = 0


class RememberingPool:
    """Stands before another pool, which stays open when this one is closed.

    Units with a question are answered from memory where their rows are known; where only the first
    of them are, and the unit can be cut, the others alone are asked for. Units without one pass.

    Args:
        inner: does what is not known.
        max_bytes: of answers kept; the questions not asked for longest go first.
    """

    def __init__(self, inner: Pool, max_bytes: int = 512 * 2**20) -> None:
        self._inner, self._max_bytes, self._n_bytes = inner, max_bytes, 0
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._ready: deque[Answer] = deque()
        self._asked: dict[int, tuple[_Key, Question, list[Arrays]]] = {}

    @property
    def slots(self) -> int:
        """As many as the other pool has."""
        return self._inner.slots

    @property
    def free_slots(self) -> int:
        """As many as the other pool has."""
        return self._inner.free_slots

    @property
    def device(self) -> str:
        """Where the models run."""
        return self._inner.device

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Answer a unit at once, or start what of it is not known."""
        question = unit.question
        if question is None:
            self._inner.submit(ticket, task, unit, model)
            return
        key = (model, question.key)
        head, at = self._head(key, question)
        if at == question.stop:
            self._ready.append(Answer(ticket, _joined(head), None, 0.0))
            return
        if at > question.start and unit.rows:
            unit = _cut(unit, question, at)
        else:
            head, at = [], question.start
        self._asked[ticket] = (key, replace(question, start=at), head)
        self._inner.submit(ticket, task, unit, model)

    def hurry(self) -> None:
        """Said to the other pool."""
        self._inner.hurry()

    def next(self) -> Answer | None:
        """What is known already comes first."""
        if self._ready:
            return self._ready.popleft()
        answer = self._inner.next()
        if answer is None or answer.ticket not in self._asked:
            return answer
        key, question, head = self._asked.pop(answer.ticket)
        if answer.arrays is None:
            return answer
        self._remember(key, question.start, answer.arrays)
        return replace(answer, arrays=_joined([*head, answer.arrays]))

    def close(self) -> None:
        """Forget everything."""
        self._known.clear()
        self._n_bytes = 0

    def _head(self, key: _Key, question: Question) -> tuple[list[Arrays], int]:
        """The known rows from `start` on without a gap, and the first row that is not."""
        found: list[Arrays] = []
        known, at = self._known.get(key), question.start
        if known is None:
            return found, at
        self._known.move_to_end(key)
        for first, part in sorted(known.parts.items()):
            last = first + _n_rows(part)
            if first <= at < min(last, question.stop):
                found.append({k: v[at - first : question.stop - first] for k, v in part.items()})
                at = min(last, question.stop)
        return found, at

    def _remember(self, key: _Key, start: int, arrays: Arrays) -> None:
        known = self._known.setdefault(key, _Known())
        self._known.move_to_end(key)
        before = known.parts.get(start)
        if before is not None and _n_rows(before) >= _n_rows(arrays):
            return
        grown = _n_bytes(arrays) - (0 if before is None else _n_bytes(before))
        known.parts[start] = arrays
        known.n_bytes += grown
        self._n_bytes += grown
        while self._n_bytes > self._max_bytes and len(self._known) > 1:
            self._n_bytes -= self._known.popitem(last=False)[1].n_bytes


def _cut(unit: Unit, question: Question, at: int) -> Unit:
    """The unit without its rows before `at`."""
    n_known = at - question.start
    payload = dict(unit.payload) | {name: unit.payload[name][n_known:] for name in unit.rows}
    n_forward = unit.n_forward * (question.stop - at) // (question.stop - question.start)
    return replace(unit, payload=payload, n_forward=n_forward, question=replace(question, start=at))


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _n_rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _n_bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
