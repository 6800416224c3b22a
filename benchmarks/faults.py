"""What a fault costs: units lost, units done twice, seconds until all is as before.

python -m benchmarks.faults [--jobs 60] [--only NAME ...] [--json FILE]

Each fault strikes two workers (three nodes where a node is lost) in the middle of jobs of four
units of a tenth of a second each. Every unit notes in a file when it begins and ends, and in which
process, so nothing that the executor says of itself is believed. A driver that is struck is that of
a small phantom sweep, whose units are epochs and maps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from benchmarks._driver_faults import DRIVER, resumed
from raybench.executor import Job, run_jobs
from raybench.executor.over_ray import RayPool
from raybench.types import Arrays, Unit

N_UNITS, SECONDS, DEADLINE = 4, 0.1, 3.0
BAD = "j5:1"
"""The unit that is at fault, where one is."""


@dataclass(frozen=True)
class Noted:
    """A job of a few units that note when they begin and end; one of them may do harm.

    Attributes:
        harm: `kills` its worker each time, `kills once`, `hangs`, or is `too large`; empty: none.
    """

    log: str
    harm: str = ""

    def plan(self, subject: str, done: Mapping[str, Arrays], /) -> list[Unit]:
        """All units at once."""
        if done:
            return []
        return [Unit(str(i), {"of": subject}, needs_model=False) for i in range(N_UNITS)]

    def run(self, unit: Unit, classifier: Any, /) -> Arrays:
        """A little sleep, noted."""
        name = f"{unit.payload['of']}:{unit.name}"
        begun = sum(e.what == "begin" and e.name == name for e in read(Path(self.log)))
        self._note("begin", name)
        if name == BAD and self.harm:
            self._do_harm(begun)
        time.sleep(SECONDS)
        self._note("end", name)
        return {}

    def merge(self, subject: str, done: Mapping[str, Arrays], /) -> int:
        """How many units were done."""
        return len(done)

    def _note(self, what: str, name: str) -> None:
        with Path(self.log).open("a") as file:
            file.write(f"{what} {name} {os.getpid()} {time.monotonic()}\n")

    def _do_harm(self, begun: int) -> None:
        if self.harm == "kills" or (self.harm == "kills once" and begun == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.harm == "hangs":
            time.sleep(3600)
        if self.harm == "too large":
            raise MemoryError("Unable to allocate 9.00 TiB")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log; `when` is of the machine's monotonic clock, one for all processes."""

    what: str
    name: str
    pid: int
    when: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a fault cost.

    Attributes:
        units: asked for.
        lost: units that never ended, but for those of the job that can never be done.
        failed: jobs that ended with an error.
        twice: times that a unit was begun beyond the first.
        again: seconds from the fault until all that it struck was done; None: it struck nothing,
            or nothing that can be done.
            Of a driver: until it was gone.
        replaced: seconds from the fault until a new worker began its first unit; None: none came.
            Of a driver: from the start of `--resume` until the first new epoch or map.
    """

    fault: str
    units: int
    lost: int
    failed: int
    twice: int
    again: float | None
    replaced: float | None


def read(log: Path) -> list[Entry]:
    """What was noted so far."""
    if not log.exists():
        return []
    rows = (line.split() for line in log.read_text().splitlines())
    return [Entry(what, name, int(pid), float(when)) for what, name, pid, when in rows]


def _jobs(task: Noted, n: int) -> Iterator[Job]:
    return (Job(f"j{i}", task, f"j{i}") for i in range(n))


def strike(
    fault: str, pool: RayPool, task: Noted, n_jobs: int, hurt: Callable[[], None] | None
) -> Cost:
    """Do the jobs; after a quarter of them, or by the bad unit, the fault strikes."""
    when, failed = None, 0
    for number, outcome in enumerate(run_jobs(_jobs(task, n_jobs), pool)):
        failed += outcome.error is not None
        if number == n_jobs // 4 and hurt is not None:
            when = time.monotonic()
            hurt()
    return cost(fault, read(Path(task.log)), n_jobs, failed, when)


def cost(fault: str, entries: list[Entry], n_jobs: int, failed: int, when: float | None) -> Cost:
    """From the log alone; without a time the fault is where the bad unit first began."""
    begins = [e for e in entries if e.what == "begin"]
    ends = {e.name: e.when for e in entries if e.what == "end"}
    if when is None:
        when = min(e.when for e in begins if e.name == BAD)
    last = {e.name: e.when for e in begins}
    counts = Counter(e.name for e in begins)
    struck = {n for n, k in counts.items() if k > 1 and last[n] > when and n in ends}
    old = {e.pid for e in entries if e.when <= when}
    new = [e.when for e in begins if e.pid not in old]
    n_units = n_jobs * N_UNITS
    of_failed = {BAD} if failed else set()
    return Cost(
        fault,
        n_units,
        n_units - len(ends.keys() | of_failed),
        failed,
        sum(counts.values()) - len(counts),
        round(max(ends[name] for name in struck) - when, 1) if struck else None,
        round(min(new) - when, 1) if new else None,
    )


def _of_workers(fault: str, harm: str, kill: str, n_jobs: int, log: str) -> Cost:
    ray.init(address="local", num_cpus=2, object_store_memory=80 * 2**20, log_to_driver=False)
    pool = RayPool(lambda key: b"", 2, 1, 0.0, deadline=DEADLINE if harm == "hangs" else 900.0)

    def hurt() -> None:
        if kill == "actor":
            ray.kill(pool.workers.living[0].actor)
        else:
            # In the middle of its unit: asked for its process, an actor answers between two.
            os.kill(read(Path(log))[-1].pid, signal.SIGKILL)

    try:
        return strike(fault, pool, Noted(log, harm), n_jobs, hurt if kill else None)
    finally:
        pool.close()
        ray.shutdown()


def _of_nodes(fault: str, n_jobs: int, log: str) -> Cost:
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "num_cpus": 1}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    nodes = [cluster.add_node(**small) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    pool = RayPool(lambda key: b"", 3, 1, 0.0)
    try:
        return strike(
            fault,
            pool,
            Noted(log),
            n_jobs,
            lambda: cluster.remove_node(nodes.pop(), allow_graceful=False),
        )
    finally:
        pool.close()
        ray.shutdown()
        cluster.shutdown()


FAULTS: dict[str, tuple[str, str]] = {
    "worker process killed": ("", "process"),
    "actor killed": ("", "actor"),
    "unit kills its worker, once": ("kills once", ""),
    "unit kills its worker, always": ("kills", ""),
    f"unit hangs (deadline {DEADLINE:g} s)": ("hangs", ""),
    "memory out in a unit": ("too large", ""),
}
NODE = "raylet killed, node gone"


def measure(fault: str, n_jobs: int) -> Cost:
    """One fault, in a process of its own: Ray is started for it."""
    if fault in DRIVER:
        found = resumed(fault)
        return Cost(fault, again=found.pop("ends"), **found)
    with TemporaryDirectory() as folder:
        log = str(Path(folder) / "log")
        if fault == NODE:
            return _of_nodes(fault, n_jobs, log)
        return _of_workers(fault, *FAULTS[fault], n_jobs, log)


def main() -> int:
    """Measure, print, and say whether anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    names = [*FAULTS, NODE, *DRIVER]
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    # By its name: what a spawned process takes for its main module no worker could import.
    from benchmarks.faults import measure as ask

    with mp.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        costs = [processes.apply(ask, (fault, options.jobs)) for fault in options.only]
    table = Table(
        "fault", "units", "lost", "jobs failed", "done twice", "in flight done", "replaced"
    )
    for c in costs:
        seconds = ("" if s is None else f"{s:.1f} s" for s in (c.again, c.replaced))
        counts = map(str, (c.units, c.lost, c.failed, c.twice))
        table.add_row(c.fault, *counts, *seconds)
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(c) for c in costs], indent=2) + "\n")
    return 1 if any(c.lost for c in costs) else 0


if __name__ == "__main__":
    sys.exit(main())
