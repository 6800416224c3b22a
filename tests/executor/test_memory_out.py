"""Memory that is out in a unit, on a worker's node, or on its GPU: what it costs, counted.

Lost: the unit's own job, and that only where it never fits. Computed twice: what was in flight.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from raybench.data import Phantom
from raybench.executor import Job, run_jobs
from raybench.executor.jobs import LESS_MEMORY, Outcome
from raybench.executor.local import LocalPool
from raybench.explain import Lime
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.types import Arrays, Subject, Unit
from tests.executor import test_faults
from tests.executor.test_faults import (
    N_JOBS,
    N_UNITS,
    Counted,
    counted,
    jobs,
    noted,
    whole,
)

MB = 2**20


def eat_beyond_a_limit() -> None:
    """Take memory until this process may have no more, as under `ulimit -v`."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 300 * MB, -1))
    try:
        held = [np.ones(50 * MB, np.uint8) for _ in range(20)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    raise AssertionError(f"{len(held)} blocks fitted")


EATS: dict[str, tuple[Callable[[], object], str]] = {
    "s1:1": (lambda: bytearray(2**62), "MemoryError (memory is out: "),
    "s3:1": (lambda: np.empty(2**50), "MemoryError: Unable to allocate"),
    "s5:0": (lambda: torch.empty(2**50), "RuntimeError: "),
    "s7:2": (eat_beyond_a_limit, "MemoryError: Unable to allocate"),
}
"""Real allocations that do not fit, and how the error of each begins."""


@dataclass(frozen=True)
class Hungry(Counted):
    """Some of its units take more memory than there is."""

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        done = super().run(unit, classifier)
        name = str(done["said"])
        if name in EATS:
            EATS[name][0]()
        return done


@dataclass(frozen=True)
class Eater(Counted):
    """One of its units takes all memory that it gets, the first `times` times."""

    eats: str = ""

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        name = f"{unit.payload['of']}:{unit.name}"
        if name == self.eats and counted(self)[name] < self.times:
            with Path(self.log).open("a") as file:
                file.write(f"{name}\n")
            held = []
            while psutil.virtual_memory().available > 2**30:
                self.note("eat", name)
                held.append(np.ones(200 * MB, np.uint8))
                time.sleep(0.1)
            raise AssertionError("nobody ended it")
        return super().run(unit, classifier)


@pytest.fixture
def make(ray_cluster: None) -> Iterator[Callable[..., Any]]:
    """Pools that are closed in the end, however it ends."""

    from raybench.executor.over_ray import RayPool

    by_value()
    made: list[RayPool] = []

    def pool(checkpoint: bytes = b"") -> RayPool:
        made.append(RayPool(lambda key: checkpoint, 2, 1, 0.0))
        return made[-1]

    yield pool
    for each in made:
        each.close()


def by_value() -> None:
    """Workers cannot import a test: its classes travel whole."""
    import ray

    for module in (test_faults, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)


@pytest.mark.parametrize("where", ["local", "ray"])
def test_a_unit_whose_memory_is_out_fails_its_own_job_and_says_what_to_do(
    where: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    local = where == "local"
    pool = LocalPool(lambda key: b"", 1) if local else request.getfixturevalue("make")()
    task = Hungry(str(tmp_path / "log"), seconds=0.0)
    outcomes = list(run_jobs(jobs(task), pool))
    whole(outcomes, failed=tuple(sorted(name.split(":")[0] for name in EATS)))
    errors = {o.key: str(o.error) for o in outcomes if o.error}
    for name, (_, begins) in EATS.items():
        error = errors[name.split(":")[0]]
        assert error.startswith(begins), error
        assert error.endswith(f"(memory is out: {LESS_MEMORY})"), error
        assert "execution.batch_size" in error
        assert "\n" not in error
    found = counted(task)
    # At the very end an idle worker does what waits behind another's unit too.
    assert sum(found.values()) - len(found) <= (0 if local else 2), "nothing is tried again"
    assert all(found[name] == 1 for name in EATS)
    assert local or pool.workers.n_died == 0


@dataclass(frozen=True)
class OnSmallGpu:
    """An explainer on a device that holds `most` images a pass; `first` passes fail in any case.

    Each pass is noted: of which run of a unit, of how many images in all, and its size, with a
    minus where it failed.
    """

    inner: Any
    log: str
    most: int = 99
    first: int = 0

    def plan(self, subject: Any, done: Mapping[str, Arrays]) -> list[Unit]:
        return self.inner.plan(subject, done)

    def merge(self, subject: Any, done: Mapping[str, Arrays]) -> Any:
        return self.inner.merge(subject, done)

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        if classifier is None:
            return self.inner.run(unit, classifier)
        forward, this = classifier._forward, uuid.uuid4().hex

        def tight(batch: torch.Tensor) -> torch.Tensor:
            n_failed = sum(n < 0 for n in self.passes())
            out = len(batch) > self.most or n_failed < self.first
            with Path(self.log).open("a") as file:
                file.write(f"{this} {unit.n_forward} {-len(batch) if out else len(batch)}\n")
            if out:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(batch)

        classifier._forward = tight
        try:
            return self.inner.run(unit, classifier)
        finally:
            classifier._forward = forward

    def passes(self) -> list[int]:
        return [size for _, _, size in self.noted()]

    def noted(self) -> list[tuple[str, int, int]]:
        path = Path(self.log)
        rows = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(this, int(asked), int(size)) for this, asked, size in rows]


def test_a_gpu_whose_memory_is_out_gets_smaller_batches_and_gives_the_same(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    card = Card("test_resnet", ("a", "b", "c"), (64, 64))
    pool = make(save_checkpoint(build("test_resnet", 3), card))
    lime = Lime(n_samples=60, chunk=20)
    # Each kind has a model of its own: the batch size that fitted stays with its classifier.
    kinds = {
        "calm": OnSmallGpu(lime, str(tmp_path / "calm")),
        "five": OnSmallGpu(lime, str(tmp_path / "five"), most=5),
        "first": OnSmallGpu(lime, str(tmp_path / "first"), first=2),
        "none": OnSmallGpu(lime, str(tmp_path / "none"), most=0),
    }
    outcomes: dict[Any, Outcome] = {}
    units: Counter[str] = Counter()
    for kind, task in kinds.items():
        work = (Job((kind, s.image_id), task, s, kind) for s in subjects(2))
        done = run_jobs(work, pool, lambda unit, n, kind=kind: units.update({kind: 1}))
        outcomes |= {o.key: o for o in done}
    assert pool.workers.n_died == 0
    for (kind, image), outcome in outcomes.items():
        if kind == "none":
            assert "ModelError: memory is out with a single image a pass" in str(outcome.error)
            assert "execution.gpus_per_worker" in str(outcome.error)
            continue
        calm = outcomes["calm", image]
        assert outcome.error is None
        assert outcome.n_forward == calm.n_forward > 20
        np.testing.assert_allclose(outcome.result.values, calm.result.values, atol=1e-5)
    assert units["five"] == units["first"] == units["calm"] > 2 * 3, "no unit is lost"
    passes = {kind: task.passes() for kind, task in kinds.items()}
    for kind in ("calm", "five", "first"):
        runs: dict[tuple[str, int], int] = {}
        for this, asked, size in kinds[kind].noted():
            runs[this, asked] = runs.get((this, asked), 0) + max(size, 0)
        # By run: at the very end an idle worker does what waits behind another's unit too.
        assert runs
        assert all(n == asked for (_, asked), n in runs.items()), "no image of a halved batch twice"
    assert min(passes["calm"]) > 0
    assert max(passes["five"]) == 4
    assert 2 <= sum(n < 0 for n in passes["five"]) <= 2 * 2, "halved twice by either worker"
    assert 2 <= sum(n < 0 for n in passes["first"]) <= 3, "two workers may fail at once"
    assert max(passes["none"]) < 0


def subjects(n: int) -> list[Subject]:
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=n, size=128)
    records = [r for r in data.records() if r.split == "Test"][:n]
    loaded = ((r, data.load(r)) for r in records)
    return [Subject(r.image_id, xray.image, xray.lung_mask, (128, 128)) for r, xray in loaded]


MONITORED = """
import logging, os, sys
import psutil
memory = psutil.virtual_memory()
share = (memory.total - memory.available + 4 * 2**30) / memory.total
os.environ["RAY_memory_usage_threshold"] = f"{{share:.4f}}"
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
import ray
from tests.executor import test_memory_out as t
logging.basicConfig(stream=sys.stdout, format="told: %(message)s")
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20,
         log_to_driver=False, logging_level="ERROR")
t.by_value()
t.monitored({log!r})
"""


def monitored(log: str) -> None:
    """What runs in a Ray of its own: memory taken once, then by one unit again and again."""
    import ray

    from raybench.executor.over_ray import RayPool

    pool = RayPool(lambda key: b"", 2, 1, 0.0)
    once = Eater(f"{log}.once", eats="s3:1", times=1)
    whole(list(run_jobs(jobs(once), pool)))
    died = pool.workers.n_died
    tell("taken once", once, died)
    fault = [n.time for n in noted(once) if n.what == "eat"][-1]
    seconds = next(n.time for n in noted(once) if (n.what, n.name) == ("end", "s3:1")) - fault
    print(f"{seconds:.1f} s until the unit was done by another worker")
    assert 0 < seconds < 120
    always = Eater(f"{log}.always", eats="s3:1", seconds=0.1)
    outcomes = list(run_jobs(jobs(always), pool))
    whole(outcomes, failed=("s3",))
    tell("taken always", always, pool.workers.n_died - died)
    error = next(str(o.error) for o in outcomes if o.key == "s3")
    assert " workers died of it, the last one: memory of its node was out (" in error, error
    assert error.endswith(f"so Ray ended it; {LESS_MEMORY}"), error
    last = [n for n in noted(always) if n.what == "eat"][-1]
    alone(always, last.pid)
    pool.close()
    ray.shutdown()


def tell(what: str, task: Counted, died: int) -> None:
    found = counted(task)
    assert len(found) >= N_JOBS * N_UNITS - (N_UNITS - 1 if what == "taken always" else 0)
    twice = sum(found.values()) - len(found)
    assert 1 <= died <= 2 * 3, "Ray ends one worker or all, three times at most"
    assert twice <= 2 * died + 2, found
    assert found["s3:1"] <= 3 + 1
    assert what != "taken always" or found["s3:1"] >= 3, "it was blamed for what others took"
    print(f"{what}: {died} workers ended, {len(found)} units computed, {twice} more than once")


def alone(task: Counted, pid: int) -> None:
    """The last try of the unit that takes the memory had the workers to itself."""
    eaten = [n.time for n in noted(task) if n.what == "eat" and n.pid == pid]
    assert not [n for n in noted(task) if n.pid != pid and eaten[0] <= n.time <= eaten[-1]]


@pytest.mark.slow
def test_a_worker_that_rays_memory_monitor_ends(tmp_path: Path) -> None:
    """Ray really ends it: the limit lies 4 GB above what is in use before it starts."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    run = subprocess.run(
        [sys.executable, "-c", MONITORED.format(log=str(tmp_path / "log"))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    print(run.stdout)
    assert run.returncode == 0, run.stderr[-3000:]
    told = [line for line in run.stdout.splitlines() if line.startswith("told: a worker is lost")]
    assert told
    assert told[0].startswith("told: a worker is lost (memory of its node was out (")
    assert LESS_MEMORY in told[0]
    assert told[0].endswith("; another one takes over its units")
