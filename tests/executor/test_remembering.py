"""A pool that remembers answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from raybench.executor.jobs import Answer
from raybench.executor.remembering import RememberingPool
from raybench.types import Arrays, Question, Unit


class Inner:
    """Answers with the numbers of the rows asked for; keeps what was asked."""

    slots, free_slots, device = 3, 1, "cpu"

    def __init__(self) -> None:
        self.asked: list[Unit] = []
        self.queue: list[tuple[int, Unit]] = []

    def submit(self, ticket: int, task: Any, unit: Unit, model: str | None) -> None:
        self.asked.append(unit)
        self.queue.append((ticket, unit))

    def hurry(self) -> None:
        pass

    def next(self) -> Answer:
        ticket, unit = self.queue.pop(0)
        if unit.name == "fails":
            return Answer(ticket, None, "planted", 0.1)
        rows: Arrays = {"rows": np.asarray(unit.payload["numbers"], float)[:, None]}
        return Answer(ticket, rows, None, 0.1, unit.n_forward)

    def close(self) -> None:
        raise AssertionError("it is not this pool's to close")


def test_a_pool_remembers_by_model_question_and_rows() -> None:
    inner = Inner()
    pool = RememberingPool(inner, max_bytes=8 * 30)

    def ask(
        start: int, stop: int, key: str = "a", model: str | None = "t0", **more: Any
    ) -> tuple[list[float], int]:
        numbers = {"numbers": np.arange(start, stop)}
        unit = Unit("u", numbers, True, stop - start, Question(key, start, stop))
        pool.submit(7, None, Unit(**{f: getattr(unit, f) for f in Unit.__slots__} | more), model)  # type: ignore[arg-type]
        answer = pool.next()
        assert answer.ticket == 7
        return [] if answer.arrays is None else answer.arrays["rows"][
            :, 0
        ].tolist(), answer.n_forward

    assert ask(0, 5) == ([0, 1, 2, 3, 4], 5)
    assert ask(1, 4) == ([1, 2, 3], 0)
    assert ask(3, 8, rows=("numbers",)) == ([3, 4, 5, 6, 7], 3)
    assert inner.asked[-1].question == Question("a", 5, 8)
    assert ask(0, 8) == (list(range(8)), 0)
    assert ask(6, 10) == ([6, 7, 8, 9], 4)  # a unit that cannot be cut is asked whole
    assert ask(0, 5, model="t1")[1] == 5
    assert ask(0, 5, key="b", name="fails") == ([], 0)
    assert ask(0, 5, key="b")[1] == 5
    assert ask(0, 5, question=None)[1] == 5
    assert ask(0, 5, question=None)[1] == 5
    assert ask(0, 20, key="c")[1] == 20  # room for thirty rows: those not asked for longest go
    assert ask(0, 8)[1] == 8
    assert (pool.slots, pool.free_slots, pool.device) == (3, 1, "cpu")
    pool.close()
