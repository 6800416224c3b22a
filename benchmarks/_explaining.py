"""What explaining costs beside forward passes: two workers, one image, the driver's own share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from benchmarks._timing import Crew, Ratio, median_ratio
from raybench.cli.cluster import WORKER_ENV
from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.executor import Execution, Job, Pool, run_jobs
from raybench.executor.jobs import Answer, Task
from raybench.executor.local import LocalPool
from raybench.executor.over_ray import RayPool
from raybench.explain import Lime
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.storage import Storage
from raybench.studies.practice import practice_xray
from raybench.studies.spread import Spread
from raybench.tracking.maps import to_row
from raybench.tracking.parts import Parts
from raybench.types import Arrays, Subject, Unit

WORKERS, WAITING = 0.9, 1.6
_CLASSES = ("COVID-19", "Non-COVID", "Normal")


def drain(jobs: Iterator[Job], pool: Pool) -> int:
    """Do all jobs and count them; an error ends it."""
    n = 0
    for outcome in run_jobs(jobs, pool):
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        n += 1
    return n


def _checkpoint(name: str) -> bytes:
    torch.manual_seed(0)
    return save_checkpoint(build(name, 3), Card(name, _CLASSES, (224, 224)))


def _explained(n_images: int, n_samples: int) -> list[Job]:
    each = -(-n_images // 3)
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=each, size=256)
    records = [r for r in data.records() if r.split == "Test"][:n_images]
    task, found = Lime(n_samples=n_samples), []
    for record in records:
        xray = data.load(record)
        image = resize_gray(Preprocess().apply(xray), (224, 224))
        subject = Subject(record.image_id, image, xray.lung_mask, (256, 256))
        found.append(Job(record.image_id, task, subject, "net"))
    return found


class Alone:
    """Explains its share of the images in a process of its own, without Ray."""

    def __init__(self, name: str, n_images: int, n_samples: int) -> None:
        data = _checkpoint(name)
        self._jobs, self._pool = _explained(n_images, n_samples), LocalPool(lambda key: data, 1)
        drain(iter(self._jobs[:1]), self._pool)

    def __call__(self, start: int, step: int) -> int:
        """Maps made of every `step`th image."""
        return drain(iter(self._jobs[start::step]), self._pool)


def two_workers(
    name: str, n_images: int, n_samples: int, rounds: int
) -> tuple[dict[str, list[float]], Ratio]:
    """Maps a second of two single-threaded Ray workers and of two bare processes, in turn."""
    data, jobs = _checkpoint(name), _explained(n_images, n_samples)
    crew = Crew(2, Alone, (name, n_images, n_samples), WORKER_ENV)
    pool = RayPool(lambda key: data, 2, 1, 0.0)
    drain(iter(jobs[:2]), pool)
    rates: dict[str, list[float]] = {"raybench, two workers": [], "two bare processes": []}

    def over_ray() -> None:
        started = time.perf_counter()
        drain(iter(jobs), pool)
        rates["raybench, two workers"].append(n_images / (time.perf_counter() - started))

    def apart() -> None:
        seconds, made = crew.ask([(0, 2), (1, 2)])
        if sum(made) != n_images:
            raise RuntimeError(f"{sum(made)} maps, expected {n_images}")
        rates["two bare processes"].append(n_images / seconds)

    for number in range(rounds):
        for take in (over_ray, apart) if number % 2 else (apart, over_ray):
            take()
    pool.close()
    crew.close()
    value = median_ratio(rates, "raybench, two workers", "two bare processes")
    return rates, Ratio("two workers by two bare processes", value, low=WORKERS)


def waiting(name: str, n_samples: int, rounds: int) -> tuple[dict[str, list[float]], Ratio]:
    """Images a second that one person gets, one after the other, from one worker and from two."""
    rates: dict[str, list[float]] = {"one image, one worker": [], "one image, two workers": []}
    xray, task = practice_xray(1), Lime(n_samples=n_samples)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        path.write_bytes(_checkpoint(name))
        crews = [Spread(str(path), Execution(workers=n)) for n in (1, 2)]
    for number in range(rounds + 1):
        for crew, of in list(zip(crews, rates.values(), strict=True))[:: (-1) ** number]:
            # Another seed each time: nobody has asked this before.
            each = task.model_copy(update={"seed": number})
            found = crew.attribute(each, xray.image, 0, xray.lung_mask)
            if number:  # in the first one workers load the classifier
                of.append(1 / float(found.extras["seconds"]))
    for crew in crews:
        crew.close()
    value = median_ratio(rates, "one image, two workers", "one image, one worker")
    return rates, Ratio("waiting for one image: one worker by two", value, low=WAITING)


@dataclass
class _Instant:
    """A pool that answers at once: what is left is the driver's own work."""

    slots: int = 64
    free_slots: int = 0
    device: str = "cpu"
    _queue: deque[tuple[int, Task, Unit]] = field(default_factory=deque)
    _superpixels: dict[bytes, Arrays] = field(default_factory=dict)

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Put it in the queue."""
        self._queue.append((ticket, task, unit))

    def hurry(self) -> None:
        """Nobody waits."""

    def next(self) -> Answer:
        """Superpixels as they were found before, and answers by chance."""
        ticket, task, unit = self._queue.popleft()
        if not unit.needs_model:
            image = unit.payload["image"].tobytes()
            if image not in self._superpixels:
                self._superpixels[image] = task.run(unit, None)
            return Answer(ticket, self._superpixels[image], None, 0.0)
        rng = np.random.default_rng(ticket)
        answers = rng.random((unit.n_forward, 3), np.float32)
        return Answer(ticket, {"answers": answers}, None, 0.0, unit.n_forward)

    def close(self) -> None:
        """Nothing is held."""


def driver(n_images: int, n_samples: int, rounds: int) -> dict[str, list[float]]:
    """Maps a second that the driver could plan, merge and write.

    Everything but reading the X-ray and shipping units: those are of the disk and of Ray.
    """
    jobs, pool, rate = _explained(n_images, n_samples), _Instant(), []
    drain(iter(jobs), pool)
    with TemporaryDirectory() as folder:
        for number in range(rounds):
            table = Parts(Storage(folder), f"maps{number}")
            started = time.perf_counter()
            rows = [
                to_row(str(o.key), "Test", o.result, o.error, 0.0) for o in run_jobs(jobs, pool)
            ]
            for start in range(0, len(rows), 8):
                table.append(pd.DataFrame(rows[start : start + 8]))
            rate.append(n_images / (time.perf_counter() - started))
    return {"the driver alone": rate}
