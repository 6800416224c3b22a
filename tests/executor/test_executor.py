"""The loop and its pools: nothing lost, nothing twice, errors stay where they happen."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raybench.data import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.executor import Execution, Job, make_pool, run_jobs
from raybench.executor.jobs import Answer, Task
from raybench.executor.local import LocalPool
from raybench.executor.room import room_for_helpers
from raybench.explain import GradCam, Lime, RandomSuperpixels, WholeLung
from raybench.explain.faithfulness import Explained, Faithfulness
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.types import Arrays, Subject, Unit, Values


@dataclass(frozen=True)
class Rounds:
    """A task of several rounds; each unit says its name, one of them may fail."""

    n_rounds: int = 2
    n_units: int = 3
    fails: str = ""

    def plan(self, subject: str, done: Mapping[str, Arrays]) -> list[Unit]:
        turn = len(done) // self.n_units
        if turn == self.n_rounds:
            return []
        return [
            Unit(f"{turn}/{i}", {"subject": subject}, needs_model=False, n_forward=1)
            for i in range(self.n_units)
        ]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        if f"{unit.payload['subject']}:{unit.name}" == self.fails:
            raise ValueError("planted")
        return {"said": np.array(f"{unit.payload['subject']}:{unit.name}")}

    def merge(self, subject: str, done: Mapping[str, Arrays]) -> list[str]:
        return sorted(str(a["said"]) for a in done.values())


@dataclass
class Shuffled:
    """A pool that ends its units in any order, and counts them."""

    slots: int = 4
    free_slots: int = 0
    device: str = "cpu"
    seed: int = 0
    most: int = 0
    submitted: list[str] = field(default_factory=list)
    _flying: list[tuple[int, Task, Unit]] = field(default_factory=list)

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        self._flying.append((ticket, task, unit))
        self.submitted.append(f"{unit.payload['subject']}:{unit.name}")
        self.most = max(self.most, len(self._flying))

    def hurry(self) -> None:
        pass

    def next(self) -> Answer:
        random.Random(self.seed + len(self.submitted)).shuffle(self._flying)
        ticket, task, unit = self._flying.pop()
        try:
            return Answer(ticket, task.run(unit, None), None, 0.5, unit.n_forward)
        except ValueError as error:
            return Answer(ticket, None, str(error), 0.5)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_every_unit_runs_once_whatever_order_they_end_in(slots: int, seed: int) -> None:
    pool = Shuffled(slots=slots, seed=seed)
    jobs = (Job(f"s{i}", Rounds(), f"s{i}") for i in range(20))
    outcomes = {o.key: o for o in run_jobs(jobs, pool)}
    assert len(outcomes) == 20
    assert len(pool.submitted) == len(set(pool.submitted)) == 20 * 6
    assert pool.most <= slots
    for key, outcome in outcomes.items():
        assert outcome.error is None
        assert outcome.result == sorted(f"{key}:{t}/{i}" for t in range(2) for i in range(3))
        assert (outcome.n_forward, outcome.seconds) == (6, 3.0)


def test_an_error_is_recorded_for_its_job_alone() -> None:
    pool = Shuffled(slots=2)
    jobs = [Job(f"s{i}", Rounds(fails="s3:0/1"), f"s{i}") for i in range(6)]
    outcomes = {o.key: o for o in run_jobs(jobs, pool)}
    assert outcomes["s3"].error == "planted"
    assert outcomes["s3"].result is None
    assert all(outcomes[f"s{i}"].error is None for i in (0, 1, 2, 4, 5))
    assert not any(name.startswith("s3:1/") for name in pool.submitted)


def test_jobs_are_read_a_few_ahead_only() -> None:
    pool, read = Shuffled(slots=2), []

    def jobs():
        for i in range(100):
            read.append(i)
            yield Job(i, Rounds(), f"s{i}")

    feed = run_jobs(jobs(), pool)
    next(feed)
    assert len(read) < 8


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch.manual_seed(0)
    net = build("test_efficientnet", 3)
    card = Card("test_efficientnet", ("COVID-19", "Non-COVID", "Normal"), (64, 64))
    return save_checkpoint(net, card)


def _subjects(n: int) -> list[Subject]:
    dataset = Phantom(name="phantom", n_train=1, n_val=1, n_test=n, size=128)
    records = [r for r in dataset.records() if r.split == "Test" and r.label == "COVID-19"]
    subjects = []
    for record in records:
        xray = dataset.load(record)
        image = resize_gray(Preprocess().apply(xray), (64, 64))
        subjects.append(Subject(record.image_id, image, xray.lung_mask, (128, 128)))
    return subjects


def _maps(
    execution: Execution, checkpoint: bytes, subjects: list[Subject], store: str | None = None
) -> dict:
    explainers = (
        Lime(n_samples=60, chunk=17),
        Lime(label="adaptive", n_samples=60, chunk=17, adaptive=0.4),
        GradCam(),
        WholeLung(),
        RandomSuperpixels(),
    )
    pool = make_pool(execution, lambda key: checkpoint, store)
    jobs = [
        Job((e.title, s.image_id), e, s, "t0" if e.uses_model else None)
        for s in subjects
        for e in explainers
    ]
    try:
        return {o.key: o for o in run_jobs(jobs, pool)}
    finally:
        pool.close()


def test_in_process_and_ray_give_the_same_maps(ray_cluster: None, checkpoint: bytes) -> None:
    subjects = _subjects(3)
    local = _maps(Execution(mode="local"), checkpoint, subjects)
    spread = _maps(Execution(mode="ray", workers=2), checkpoint, subjects)
    assert local.keys() == spread.keys()
    assert len(local) == 15
    for key, one in local.items():
        assert one.error is None
        assert spread[key].error is None
        np.testing.assert_array_equal(one.result.values, spread[key].result.values)
        assert one.n_forward == spread[key].n_forward == one.result.n_forward


def test_faithfulness_in_process_is_that_over_ray(ray_cluster: None, checkpoint: bytes) -> None:
    task = Faithfulness(steps=5, road_steps=3, chunk=2)
    rng = np.random.default_rng(0)
    asked = [Explained(s, rng.random((32, 32)).astype(np.float32)) for s in _subjects(2)]
    found = []
    for execution in (Execution(mode="local"), Execution(mode="ray", workers=2)):
        pool = make_pool(execution, lambda key: checkpoint, None)
        jobs = [Job(n, task, one, "t0") for n, one in enumerate(asked)]
        try:
            found.append({o.key: o for o in run_jobs(jobs, pool)})
        finally:
            pool.close()
    local, spread = found
    assert len(local) == 2
    for key, one in local.items():
        assert (one.error, spread[key].error) == (None, None)
        assert one.n_forward == spread[key].n_forward == task.n_forward_planned()
        for name in ("deletion", "insertion", "morf", "lerf"):
            there = getattr(spread[key].result, name)
            np.testing.assert_array_equal(getattr(one.result, name), there)


def test_what_workers_asked_nobody_asks_again(
    ray_cluster: None, checkpoint: bytes, tmp_path: Path
) -> None:
    subjects, store = _subjects(2), str(tmp_path / "answers")
    first = _maps(Execution(mode="ray", workers=2), checkpoint, subjects, store)
    again = _maps(Execution(mode="local"), checkpoint, subjects, store)
    for (title, image_id), one in again.items():
        before = first[title, image_id]
        assert one.error is before.error is None
        np.testing.assert_array_equal(one.result.values, before.result.values)
        assert one.result.n_forward == before.result.n_forward
        assert one.n_forward == 0, title
    assert sum(o.n_forward for (title, _), o in first.items() if title == "lime") > 0


def test_a_checkpoint_that_does_not_load_fails_its_own_images_only(checkpoint: bytes) -> None:
    subject = _subjects(1)[0]
    pool = LocalPool(lambda key: checkpoint if key == "good" else b"broken", 1)
    jobs = [Job(key, GradCam(), subject, key) for key in ("bad", "good")]
    outcomes = {o.key: o for o in run_jobs(jobs, pool)}
    assert "ModelError" in str(outcomes["bad"].error)
    assert outcomes["good"].error is None


def test_a_killed_worker_costs_nothing_but_time(ray_cluster: None, checkpoint: bytes) -> None:

    import signal

    import ray

    subjects = _subjects(6)
    pool = make_pool(Execution(mode="ray", workers=2), lambda key: checkpoint)
    explainer = Lime(n_samples=200, chunk=20)
    whole = _maps(Execution(mode="local"), checkpoint, subjects)
    jobs = (Job(s.image_id, explainer, s, "t0") for s in subjects)
    pids = ray.get([w.actor.pid.remote() for w in pool.workers.living])
    outcomes = {}
    for outcome in run_jobs(jobs, pool):
        if not outcomes:
            os.kill(pids[0], signal.SIGKILL)
        outcomes[outcome.key] = outcome
    pool.close()
    assert len(outcomes) == len(subjects) == len({k[1] for k in whole})
    assert all(o.error is None and o.n_forward > 0 for o in outcomes.values())


@dataclass(frozen=True)
class Places:
    """Where its units ran: first without a model, then with one."""

    def plan(self, subject: str, done: Mapping[str, Arrays]) -> list[Unit]:
        if not done:
            return [Unit("free", {}, needs_model=False)]
        return [Unit(f"asked{i}", {}) for i in range(4)] if len(done) == 1 else []

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        assert (classifier is None) == (unit.name == "free")
        return {"pid": np.array(os.getpid())}

    def merge(self, subject: str, done: Mapping[str, Arrays]) -> tuple[int, set[int]]:
        asked = {int(a["pid"]) for name, a in done.items() if name != "free"}
        return int(done["free"]["pid"]), asked


def test_helpers_do_what_needs_no_model_and_workers_the_rest(
    ray_cluster: None, checkpoint: bytes
) -> None:
    """Two cores play a worker with a GPU and its helper."""
    import ray

    from raybench.executor.over_ray import RayPool

    # Workers cannot import a test: its classes travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    pool = RayPool(lambda key: checkpoint, n_workers=1, cpus=1, gpus=0, n_helpers=1)
    worker, helper = (
        ray.get(kind.living[0].actor.pid.remote()) for kind in (pool.workers, pool.helpers)
    )
    assert (pool.slots, pool.free_slots) == (2, 2)
    outcomes = list(run_jobs((Job(i, Places(), "", "t0") for i in range(9)), pool))
    pool.close()
    assert sorted(o.key for o in outcomes) == list(range(9))
    assert {o.error for o in outcomes} == {None}

    for outcome in outcomes:
        assert outcome.result == (helper, {worker})


@dataclass
class Sided(Shuffled):
    """A pool with helpers; counts what is in flight on either side."""

    free_slots: int = 3
    most_free: int = 0

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        super().submit(ticket, task, unit, model)
        free = [u for _, _, u in self._flying if not u.needs_model]
        self.most_free = max(self.most_free, len(free))
        assert len(free) <= self.free_slots
        assert len(self._flying) - len(free) <= self.slots


@dataclass(frozen=True)
class Ahead(Rounds):
    """The first round needs no model, the second does."""

    def plan(self, subject: str, done: Mapping[str, Arrays]) -> list[Unit]:
        return [replace(u, needs_model=bool(done)) for u in super().plan(subject, done)]


@pytest.mark.parametrize("seed", range(5))
def test_helpers_get_young_jobs_ready_while_workers_are_busy(seed: int) -> None:
    pool, read = Sided(slots=2, seed=seed), []

    def jobs():
        for i in range(30):
            read.append(i)
            yield Job(f"s{i}", Ahead(fails="s3:0/1"), f"s{i}")

    feed = run_jobs(jobs(), pool)
    outcomes = [next(feed)]
    assert len(read) <= 2 + 3 + 1
    outcomes += list(feed)
    assert len(outcomes) == 30
    assert [o.key for o in outcomes if o.error] == ["s3"]
    assert (pool.most_free, pool.most) == (3, 5)


def test_helpers_find_room_beside_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 3.5}]
    monkeypatch.setattr("raybench.executor.room.nodes", lambda: there)
    assert room_for_helpers(cpus=1, n_workers=1) == 4
    assert room_for_helpers(cpus=4, n_workers=4) == 3
    assert room_for_helpers(cpus=8, n_workers=3) == 0


def test_a_map_that_is_not_finite_is_an_error_of_its_image(checkpoint: bytes) -> None:
    class Broken(WholeLung):
        def draw(self, subject: Subject) -> Values:
            values = np.zeros(subject.shape, np.float32)
            values[0, :3] = np.nan
            return values

    pool = make_pool(Execution(mode="local"), lambda key: checkpoint)
    (outcome,) = run_jobs([Job("a", Broken(), _subjects(1)[0])], pool)
    assert outcome.result is None
    assert "3 of 16384 values of the map are not finite" in str(outcome.error)
