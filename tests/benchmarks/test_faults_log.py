"""What the benchmark of faults reads from its log."""

from __future__ import annotations

import pytest

pytest.importorskip("ray")

from benchmarks.faults import BAD, N_UNITS, Entry, cost


def log(*lines: tuple[str, str, int, float]) -> list[Entry]:
    return [Entry(*line) for line in lines]


def test_a_killed_worker_costs_what_it_had_in_flight() -> None:
    entries = log(
        *[
            (what, f"j0:{i}", 1, i + k)
            for i in range(2)
            for what, k in (("begin", 0), ("end", 0.5))
        ],
        ("begin", "j0:2", 2, 2.0),  # killed at 2.2
        ("begin", "j0:2", 1, 2.4),
        ("end", "j0:2", 1, 2.9),
        ("begin", "j0:3", 3, 5.2),
        ("end", "j0:3", 3, 5.7),
    )
    found = cost("killed", entries, 1, 0, 2.2)
    assert (found.units, found.lost, found.failed, found.twice) == (N_UNITS, 0, 0, 1)
    assert found.again == pytest.approx(0.7)
    assert found.replaced == pytest.approx(3.0)
    assert cost("killed", entries[:-2], 1, 0, 2.2).lost == 1, "it began nowhere"


def test_a_unit_that_can_never_be_done_is_no_loss() -> None:
    name = BAD.split(":")[0]
    entries = log(*[("begin", BAD, pid, 3.0 * pid) for pid in (1, 2, 3)])
    entries += log(*[(w, f"{name}:{i}", 0, 1.0) for i in (0, 2, 3) for w in ("begin", "end")])
    found = cost("always", entries, 1, 1, None)
    assert (found.lost, found.failed, found.twice) == (0, 1, 2)
    assert (found.again, found.replaced) == (None, 3.0)
