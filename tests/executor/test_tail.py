"""The end of the work, and how much of it is in flight at once, over real Ray actors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybench.executor import Job, run_jobs
from raybench.types import Arrays, Unit


@dataclass(frozen=True)
class Slow:
    """One unit a job; one of the workers takes long over each."""

    slow_pid: int
    log: str
    seconds: float = 2.0
    n_bytes: int = 0

    def plan(self, subject: str, done: Mapping[str, Arrays]) -> list[Unit]:
        payload = {"of": subject, "nested": {"much": np.zeros(self.n_bytes, np.uint8)}}
        return [] if done else [Unit("u", payload, needs_model=False)]

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        with Path(self.log).open("a") as file:
            file.write(f"{os.getpid()}:{unit.payload['of']}\n")
        time.sleep(self.seconds if os.getpid() == self.slow_pid else 0.01)
        return {"said": np.array(unit.payload["of"])}

    def merge(self, subject: str, done: Mapping[str, Arrays]) -> str:
        return str(done["u"]["said"])


def test_the_end_waits_for_one_unit_of_a_slow_worker_and_not_for_its_queue(
    ray_cluster: None, tmp_path: Path
) -> None:
    import ray

    from raybench.executor.over_ray import RayPool

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool = RayPool(lambda key: b"", 2, 1, 0.0)
    slow = ray.get(pool.workers.living[0].actor.pid.remote())
    task = Slow(slow, str(tmp_path / "log"))
    try:
        started = time.monotonic()
        outcomes = list(run_jobs((Job(i, task, f"s{i}") for i in range(12)), pool))
        seconds = time.monotonic() - started
        assert {o.key: (o.result, o.error) for o in outcomes} == {
            i: (f"s{i}", None) for i in range(12)
        }
        assert len(outcomes) == 12
        assert seconds < 1.8 * task.seconds  # two units in its queue: without help, twice that
        # The slow one still does what nobody needs any more; the pool goes on, and answers once.
        again = list(run_jobs((Job(i, task, f"t{i}") for i in range(12)), pool))
        assert sorted(o.result for o in again) == sorted(f"t{i}" for i in range(12))
        done = Path(task.log).read_text().split()
        names = [line.split(":")[1] for line in done]
        assert len(set(names)) == 24
        assert len(names) <= 24 + 2  # computed twice: what waited at the end, once each time
    finally:
        pool.close()


def test_what_is_in_flight_fits_the_object_store(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    from raybench.executor.object_store import store_bytes
    from raybench.executor.over_ray import RayPool

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool = RayPool(lambda key: b"", 2, 1, 0.0)
    try:
        for share, slots in ((0.0, 4), (0.01, 4), (0.12, 2), (0.5, 1)):
            task = Slow(0, str(tmp_path / "log"), n_bytes=int(share * store_bytes()))
            outcomes = list(run_jobs((Job(i, task, f"s{i}") for i in range(6)), pool))
            assert [o.error for o in outcomes] == [None] * 6
            assert pool.slots == slots
    finally:
        pool.close()
