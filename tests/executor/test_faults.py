"""What a fault costs: units computed, lost and computed twice, over real Ray actors.

Lost: none. Computed twice: at most what was in flight.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybench.executor import Job, run_jobs
from raybench.executor.jobs import Outcome
from raybench.types import Arrays, Unit

N_JOBS, N_UNITS = 12, 4


@dataclass(frozen=True)
class Counted:
    """Jobs of a few units that note when they begin; one of them may end its worker, or hang."""

    log: str
    seconds: float = 0.02
    kills: str = ""
    times: int = 99
    hangs: str = ""

    def plan(self, subject: str, done: Mapping[str, Arrays]) -> list[Unit]:
        if len(done) == N_UNITS:
            return []
        return [Unit(f"{i}", {"of": subject}, needs_model=False) for i in range(N_UNITS)]

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        name = f"{unit.payload['of']}:{unit.name}"
        with Path(self.log).open("a") as file:
            file.write(f"{name}\n")
        self.note("begin", name)
        begun = Counter(Path(self.log).read_text().split())[name]
        if name == self.kills and begun <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == self.hangs:
            time.sleep(3600)
        time.sleep(self.seconds)
        self.note("end", name)
        return {"said": np.array(name)}

    def note(self, what: str, name: str) -> None:
        """What happened when, and in which process."""
        with Path(f"{self.log}.times").open("a") as file:
            file.write(f"{time.time()} {what} {name} {os.getpid()}\n")

    def merge(self, subject: str, done: Mapping[str, Arrays]) -> list[str]:
        return sorted(str(a["said"]) for a in done.values())


@pytest.fixture
def make(ray_cluster: None) -> Iterator[Callable[..., Any]]:
    """Pools that are closed in the end, however it ends."""
    import ray

    from raybench.executor.over_ray import RayPool

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    made: list[RayPool] = []

    def pool(n_workers: int = 2, **more: Any) -> RayPool:
        made.append(RayPool(lambda key: b"", n_workers, 1, 0.0, **more))
        return made[-1]

    yield pool
    for each in made:
        each.close()


def jobs(task: Counted) -> Iterator[Job]:
    return (Job(f"s{i}", task, f"s{i}") for i in range(N_JOBS))


def whole(outcomes: list[Outcome], failed: tuple[str, ...] = ()) -> None:
    """Every job has one outcome, and what it says is its own."""
    assert sorted(str(o.key) for o in outcomes) == sorted(f"s{i}" for i in range(N_JOBS))
    assert tuple(sorted(str(o.key) for o in outcomes if o.error)) == failed
    for outcome in outcomes:
        if outcome.error is None:
            assert outcome.result == [f"{outcome.key}:{i}" for i in range(N_UNITS)]


def counted(task: Counted) -> Counter[str]:
    return Counter(Path(task.log).read_text().split())


@dataclass(frozen=True)
class Noted:
    """A line of `Counted.note`."""

    time: float
    what: str
    name: str
    pid: int


def noted(task: Counted) -> list[Noted]:
    lines = (line.split() for line in Path(f"{task.log}.times").read_text().splitlines())
    return [Noted(float(t), what, name, int(pid)) for t, what, name, pid in lines]


def seconds_to_recover(task: Counted, fault: float) -> float:
    """From a fault until a worker that was not there before it has done a unit."""
    before = {n.pid for n in noted(task) if n.time <= fault}
    done = [n.time for n in noted(task) if n.what == "end" and n.pid not in before]
    assert done, "no new worker did anything"
    assert min(done) - fault < 120, "on a machine that does much else"
    return min(done) - fault


def seconds_to_take_over(task: Counted, fault: float) -> float:
    """From a fault until another worker has done what one that is gone was at."""
    ends = [n for n in noted(task) if n.what == "end"]
    done = {(n.name, n.pid) for n in ends}
    torn = [n for n in noted(task) if n.what == "begin" and (n.name, n.pid) not in done]
    assert torn, "it was at nothing"
    taken = [min(n.time for n in ends if n.name == t.name) - fault for t in torn]
    assert max(taken) < 120, "on a machine that does much else"
    return max(taken)


@pytest.mark.slow  # each new worker takes seconds
@pytest.mark.parametrize("how", ["process", "actor"])
def test_workers_killed_one_after_the_other(
    make: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    import ray

    pool, task = make(), Counted(str(tmp_path / "log"))
    outcomes: list[Outcome] = []
    for outcome in run_jobs(jobs(task), pool):
        outcomes.append(outcome)
        if len(outcomes) in (1, 5) and pool.workers.living:
            actor = pool.workers.living[0].actor
            if how == "actor":
                ray.kill(actor)
            else:
                os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    whole(outcomes)
    found = counted(task)
    assert len(found) == N_JOBS * N_UNITS, "none is lost"
    assert sum(found.values()) - len(found) <= 2 * 2, "two deaths, two in flight each"
    assert pool.workers.n_died == 2


@pytest.mark.slow
def test_a_unit_that_kills_its_worker_fails_its_own_job_only(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    pool, task = make(), Counted(str(tmp_path / "log"), seconds=0.2, kills="s3:1")
    outcomes = list(run_jobs(jobs(task), pool))
    whole(outcomes, failed=("s3",))
    error = next(o.error for o in outcomes if o.key == "s3")
    assert str(error).startswith("3 workers died of it, the last one: its process ended")
    assert "memory" in str(error), "the kernel's killer leaves no other trace"
    assert counted(task)["s3:1"] == 3
    tries = [n for n in noted(task) if n.name == "s3:1"]
    ended = {(n.name, n.pid): n.time for n in noted(task) if n.what == "end"}
    others = [n for n in noted(task) if n.what == "begin" and n.name != "s3:1"]
    before = [n for n in others if n.time < tries[-1].time]
    assert len(before) >= 3 * N_UNITS
    for n in before:
        assert ended[n.name, n.pid] < tries[-1].time, "its last try it has all workers to itself"


@pytest.mark.slow
def test_a_worker_that_dies_once_of_a_unit_does_not_fail_it(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    pool, task = make(1), Counted(str(tmp_path / "log"), kills="s3:1", times=2)
    whole(list(run_jobs(jobs(task), pool)))
    found = counted(task)
    assert {name: n for name, n in found.items() if n > 1} == {"s3:1": 3}, "the others once"


def test_a_unit_that_hangs_is_given_up_and_its_worker_replaced(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    pool, task = make(deadline=3.0), Counted(str(tmp_path / "log"), hangs="s2:0")
    outcomes = list(run_jobs(jobs(task), pool))
    whole(outcomes, failed=("s2",))
    error = next(o.error for o in outcomes if o.key == "s2")
    assert error == "did not end within 3 s (execution.unit_deadline)"
    assert counted(task)["s2:0"] == 1, "it is not tried for ever"
    assert pool.workers.n_died == 1


def test_a_driver_that_was_busy_takes_nobody_for_hung(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    pool, task = make(deadline=0.5), Counted(str(tmp_path / "log"))
    outcomes = []
    for outcome in run_jobs(jobs(task), pool):
        if not outcomes:
            time.sleep(2.5)  # a bucket that answers late
        outcomes.append(outcome)
    whole(outcomes)
    assert pool.workers.n_died == 0


@pytest.mark.slow
def test_workers_that_find_room_later_join_and_more_than_fit_are_no_error(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    task = Counted(str(tmp_path / "log"))
    pool = make(5, n_at_once=1)
    assert pool.slots <= 2 * 2
    whole(list(run_jobs(jobs(task), pool)))
    assert 1 <= len(pool.workers.living) <= 2, "two cores"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["process", "actor", "hang"])
def test_how_long_it_takes_until_a_new_worker_has_done_a_unit(
    make: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    """The only worker there is, so that nobody else does anything meanwhile."""
    import ray

    pool = make(1, deadline=3.0)
    task = Counted(str(tmp_path / "log"), hangs="s2:0" if how == "hang" else "")
    outcomes, fault = [], 0.0
    for outcome in run_jobs(jobs(task), pool):
        outcomes.append(outcome)
        if len(outcomes) == 1 and how != "hang":
            actor = pool.workers.living[0].actor
            pid = ray.get(actor.pid.remote())
            fault = time.time()
            ray.kill(actor) if how == "actor" else os.kill(pid, signal.SIGKILL)
    whole(outcomes, failed=("s2",) if how == "hang" else ())
    if how == "hang":
        fault = next(n.time for n in noted(task) if n.name == "s2:0")
    found = counted(task)
    assert len(found) >= N_JOBS * N_UNITS - (N_UNITS - 1 if how == "hang" else 0)
    assert sum(found.values()) - len(found) <= 2
    seconds = seconds_to_recover(task, fault)
    print(f"{how}: {seconds:.1f} s until a new worker had done a unit")
    assert seconds > (3.0 if how == "hang" else 0.0)


NODES = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
sys.path[:0] = [{tests!r}]
import test_faults as t
from raybench.executor import run_jobs
from raybench.executor.over_ray import RayPool
ray.cloudpickle.register_pickle_by_value(t)
small = dict(object_store_memory=80 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=small | dict(num_cpus=1))
nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
cluster.wait_for_nodes()
ray.init(address=cluster.address, log_to_driver=False)
pool = RayPool(lambda key: b"", 3, 1, 0.0)
assert len(pool.workers.living) == 3
fault = 0.0
task, outcomes = t.Counted({log!r}, seconds=0.1), []
for outcome in run_jobs(t.jobs(task), pool):
    outcomes.append(outcome)
    if len(outcomes) == 2:  # the raylet is killed, and its node never comes back
        fault = time.time()
        cluster.remove_node(nodes.pop(), allow_graceful=False)
t.whole(outcomes)
found = t.counted(task)
assert len(found) == t.N_JOBS * t.N_UNITS
assert sum(found.values()) - len(found) <= 2, found
assert (pool.workers.n_died, len(pool.workers.living)) == (1, 2)
print(f"node: {{t.seconds_to_take_over(task, fault):.1f}} s until its units were done elsewhere")
pool.close(); ray.shutdown(); cluster.shutdown()
print("all is there")
"""


@pytest.mark.slow
def test_a_node_that_is_gone_for_good(tmp_path: Path) -> None:
    """Three raylets on this machine; one is killed."""
    script = NODES.format(tests=str(Path(__file__).parent), log=str(tmp_path / "log"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    print(*(line for line in run.stdout.splitlines() if line.startswith("node: ")))
    assert "all is there" in run.stdout, run.stderr[-3000:]
