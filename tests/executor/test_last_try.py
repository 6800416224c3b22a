"""Who gets what as workers die or join: last tries are made alone, a new worker is not idle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from raybench.executor import run_jobs
from raybench.types import Arrays, Unit
from tests.executor import test_faults
from tests.executor.test_faults import Counted, counted, jobs, make, noted, whole

__all__ = ["make"]

EATER, NEIGHBOUR, OF_EATER, OF_NEIGHBOUR = "s0:0", "s1:0", "s0", "s1"
PATIENCE = 6.0


@dataclass(frozen=True)
class TakesANeighbourAlong(Counted):
    """One of its units ends its own worker and that of a neighbour that is under way beside it.

    So does a unit that takes all memory: which worker is ended then is not the unit's choice. Each
    of the two waits a while for the other one, so that they meet wherever they can.
    """

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        name = f"{unit.payload['of']}:{unit.name}"
        if name not in (EATER, NEIGHBOUR):
            return super().run(unit, classifier)
        with Path(self.log).open("a") as file:
            file.write(f"{name}\n")
        self.note("begin", name)
        other = self.meet(NEIGHBOUR if name == EATER else EATER)
        if name == EATER:
            if other is not None:
                self.note("ends", NEIGHBOUR)
                os.kill(other, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        if other is not None:
            time.sleep(60)  # it will be ended any moment
        self.note("end", name)
        return {"said": np.array(name)}

    def meet(self, name: str) -> int | None:
        """The process that is at the unit, as soon as one is; None: in vain."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            begun = [n.pid for n in noted(self) if (n.what, n.name) == ("begin", name)]
            ended = [n.pid for n in noted(self) if (n.what, n.name) == ("end", name)]
            if begun and begun[-1] not in ended and is_alive(begun[-1]):
                return begun[-1]
            time.sleep(0.05)
        return None


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


MANY = """
import os, sys
import ray
from tests.executor import test_last_try as t
ray.init(address="local", num_cpus={n}, include_dashboard=False, object_store_memory=80 * 2**20,
         log_to_driver=False, logging_level="ERROR")
t.by_value()
t.{what}({log!r}, {n})
ray.shutdown()
print("all is there")
"""


def by_value() -> None:
    """Workers cannot import a test: its classes travel whole."""
    import ray

    for module in (test_faults, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)


def takes_along(log: str, n: int) -> None:
    """What runs in a Ray of its own, with more workers than the machine has cores."""
    from raybench.executor.over_ray import RayPool

    pool = RayPool(lambda key: b"", n, 1, 0.0)
    task = TakesANeighbourAlong(log, seconds=0.2)
    outcomes = list(run_jobs(jobs(task), pool))
    errors = {o.key: o.error for o in outcomes if o.error}
    times = sum(n.what == "ends" for n in noted(task))
    print(f"the neighbour was ended {times} times; failed: {sorted(errors)}")
    whole(outcomes, failed=(OF_EATER,))
    assert times == 2, "in both first tries (else this shows nothing), not in the last one"
    assert " workers died of it" in str(errors[OF_EATER])
    assert counted(task)[EATER] == 3
    pool.close()


def goes_on_alone(log: str, n: int) -> None:
    """The same, for a unit that ends nobody but its own worker."""
    from raybench.executor.over_ray import RayPool

    pool = RayPool(lambda key: b"", n, 1, 0.0)
    task = Counted(log, seconds=0.4, kills="s3:1")
    whole(list(run_jobs(jobs(task), pool)), failed=("s3",))
    tries = [n for n in noted(task) if n.name == "s3:1"]
    # What a worker answered just before it died can be lost on the way: then that unit is blamed
    # for the death, this one is not, and has a try more.
    assert 3 <= len(tries) <= 4
    ended = {(n.name, n.pid): n.time for n in noted(task) if n.what == "end"}
    begun = [n for n in noted(task) if n.what == "begin" and n.name != "s3:1"]
    during = [
        [b.name for b in begun if b.time < t.time and ended.get((b.name, b.pid), 1e99) > t.time]
        for t in tries
    ]
    print(f"under way beside its tries: {during}")
    assert during[0], "else the test shows nothing"
    assert not during[-1]
    after = [b for b in begun if b.time > tries[-1].time]
    assert after, "else there was nothing left that could have been beside it"
    pool.close()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["takes_along", "goes_on_alone"])
def test_a_last_try_is_made_alone(tmp_path: Path, what: str) -> None:
    """Six workers: enough that some live whenever others are ended."""
    script = MANY.format(what=what, n=6, log=str(tmp_path / "log"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(run.stdout)
    assert "all is there" in run.stdout, run.stderr[-3000:]


@dataclass(frozen=True)
class LongFirst(Counted):
    """Its first unit takes as long as nothing else here does."""

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        if f"{unit.payload['of']}:{unit.name}" == "s0:0":
            time.sleep(15.0)
        return super().run(unit, classifier)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["joins", "takes a place"])
def test_a_worker_that_comes_while_the_others_are_busy_has_something_to_do(
    make: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    by_value()
    log = str(tmp_path / "log")
    if how == "joins":
        pool, task = make(2, n_at_once=1), LongFirst(log)
    else:
        pool, task = make(2), LongFirst(log, kills="s0:1", times=1)
    whole(list(run_jobs(jobs(task), pool)))
    assert pool.workers.n_died == (how != "joins")
    ends = [n for n in noted(task) if n.what == "end"]
    long = next(n for n in ends if n.name == "s0:0")
    meanwhile = {n.name for n in ends if n.pid != long.pid and n.time < long.time}
    assert len(meanwhile) == len(ends) - 1, "all but the long one itself"
