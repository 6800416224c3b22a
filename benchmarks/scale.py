"""What the executor costs, and how far it carries: overhead a unit, memory, two workers, 16 nodes.

python -m benchmarks.scale [--units 1000 5000 20000] [--nodes 16] [--images 24]

Ratios are against a bare loop of Ray actor calls with the same payload, against two bare processes,
and against actors that never wait.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks._timing import Crew, Ratio, as_dict, median_ratio, print_results, write_json
from raybench.cli.cluster import WORKER_ENV, start_ray
from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.executor import Execution, Job, Pool, run_jobs
from raybench.executor.local import LocalPool
from raybench.executor.over_ray import RayPool
from raybench.explain import Lime
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.types import Arrays, Subject, Unit

OVERHEAD, FLAT, MEMORY, WORKERS, FED = 1.5, 1.15, 1.10, 0.9, 0.9
SLEEP = 0.5
"""Seconds of a unit of the simulated nodes."""

_PAYLOAD: Mapping[str, Any] = {"keep": np.ones((32, 40), np.bool_), "image": np.zeros((64, 64))}
_CLASSES = ("COVID-19", "Non-COVID", "Normal")


@dataclass(frozen=True)
class Empty:
    """Jobs of one unit that does nothing, or sleeps, with the payload of a perturbation batch."""

    seconds: float = 0.0

    def plan(self, subject: Any, done: Mapping[str, Arrays], /) -> list[Unit]:
        """One unit."""
        return [] if done else [Unit("u", _PAYLOAD, needs_model=False)]

    def run(self, unit: Unit, classifier: Any, /) -> Arrays:
        """An answer as a batch gives it."""
        time.sleep(self.seconds)
        return {"answers": np.zeros((32, 3), np.float32)}

    def merge(self, subject: Any, done: Mapping[str, Arrays], /) -> float:
        """Something of it."""
        return float(done["u"]["answers"][0, 0])


def _pool(n_workers: int) -> RayPool:
    return RayPool(lambda key: b"", n_workers, 1, 0.0)


def _jobs(n: int, seconds: float = 0.0) -> Iterator[Job]:
    return (Job(number, Empty(seconds), number) for number in range(n))


def _drain(jobs: Iterator[Job], pool: Pool) -> int:
    n = 0
    for outcome in run_jobs(jobs, pool):
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        n += 1
    return n


def ours(pool: RayPool, n: int) -> float:
    """Units a second through the executor."""
    started = time.perf_counter()
    if _drain(_jobs(n), pool) != n:
        raise RuntimeError("units were lost")
    return n / (time.perf_counter() - started)


@ray.remote(num_cpus=1)
class _Bare:
    def run(self, task: Empty, unit: Unit) -> Arrays:
        return task.run(unit, None)


def bare(actors: list[Any], n: int) -> float:
    """Units a second of a loop without an executor: two in flight for each actor, none tracked."""
    task, unit = Empty(), Unit("u", _PAYLOAD, needs_model=False)
    started, flying, sent = time.perf_counter(), {}, 0
    while sent < n or flying:
        while sent < n and len(flying) < 2 * len(actors):
            actor = actors[sent % len(actors)]
            flying[actor.run.remote(task, unit)] = actor
            sent += 1
        reference = ray.wait(list(flying), num_returns=1)[0][0]
        del flying[reference]
        ray.get(reference)
    return n / (time.perf_counter() - started)


def overhead(counts: list[int], rounds: int) -> tuple[dict[str, list[float]], list[Ratio]]:
    """Rates of empty units by number of units, ours and bare in turn."""
    pool, rates = _pool(2), {}
    actors = [_Bare.options(num_cpus=0).remote() for _ in range(2)]
    ours(pool, 200)
    bare(actors, 200)
    for n in counts:
        mine, theirs = [], []
        for number in range(rounds if n < max(counts) else 1):
            takes: list[Callable[[], None]] = [
                lambda n=n, to=mine: to.append(ours(pool, n)),  # type: ignore[misc]
                lambda n=n, to=theirs: to.append(bare(actors, n)),  # type: ignore[misc]
            ]
            for take in takes if number % 2 else takes[::-1]:
                take()
        rates |= {f"raybench, {n:,} units": mine, f"bare loop, {n:,} units": theirs}
    pool.close()
    for actor in actors:
        ray.kill(actor)
    ratios = [
        Ratio(
            f"time a unit by the bare loop's, {n:,} units",
            median_ratio(rates, f"bare loop, {n:,} units", f"raybench, {n:,} units"),
            high=OVERHEAD,
        )
        for n in counts
    ]
    first, last = ratios[0].value, ratios[-1].value
    flat = Ratio(f"overhead at {counts[-1]:,} units by {counts[0]:,}", last / first, high=FLAT)
    return rates, [*ratios, flat]


def memory(few: int, many: int) -> Ratio:
    """Peak memory of the driver after many units by that after few, in this one process."""
    pool, peaks = _pool(2), []
    for n in (few, many):
        ours(pool, n)
        gc.collect()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    pool.close()
    return Ratio(f"driver's peak at {many:,} units by {few:,}", peaks[1] / peaks[0], high=MEMORY)


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
        _drain(iter(self._jobs[:1]), self._pool)

    def __call__(self, start: int, step: int) -> int:
        """Maps made of every `step`th image."""
        return _drain(iter(self._jobs[start::step]), self._pool)


def two_workers(
    name: str, n_images: int, n_samples: int, rounds: int
) -> tuple[dict[str, list[float]], Ratio]:
    """Maps a second of two single-threaded Ray workers and of two bare processes, in turn."""
    data, jobs = _checkpoint(name), _explained(n_images, n_samples)
    crew = Crew(2, Alone, (name, n_images, n_samples), WORKER_ENV)
    pool = RayPool(lambda key: data, 2, 1, 0.0)
    _drain(iter(jobs[:2]), pool)
    rates: dict[str, list[float]] = {"raybench, two workers": [], "two bare processes": []}

    def over_ray() -> None:
        started = time.perf_counter()
        _drain(iter(jobs), pool)
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


def fed(n_nodes: int, units_each: int) -> Ratio:
    """Share of the time that the actors of many simulated nodes work, with units of `SLEEP` s."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"num_cpus": 0})
    try:
        for _ in range(n_nodes):
            cluster.add_node(wait=False, **small)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        pool = _pool(n_nodes)
        _drain(_jobs(2 * n_nodes, 0.01), pool)
        n, started = n_nodes * units_each, time.perf_counter()
        _drain(_jobs(n, SLEEP), pool)
        seconds = time.perf_counter() - started
        n_workers = pool.slots // 2
        pool.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    if n_workers != n_nodes:
        raise RuntimeError(f"{n_workers} of {n_nodes} nodes got an actor")
    return Ratio(f"time at work of {n_nodes} nodes' actors", n * SLEEP / n_nodes / seconds, low=FED)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--units", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=24, help="explained by two workers")
    parser.add_argument("--samples", type=int, default=128, help="of LIME, each image")
    parser.add_argument("--nodes", type=int, default=16, help="simulated; 0: none")
    parser.add_argument("--each", type=int, default=40, help=f"units of {SLEEP} s a node")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if min(args.units) < 1 or sorted(args.units) != args.units:
        parser.error("--units: expected numbers that grow, at least 1")
    os.environ["RAY_ADDRESS"] = "local"
    rates: dict[str, list[float]] = {}
    ratios: list[Ratio] = []
    start_ray(Execution(cpus=4, object_store_mb=256))
    memory_of = partial(memory, args.units[len(args.units) // 2], args.units[-1])
    found, told = overhead(args.units, args.rounds)
    rates |= found
    ratios += [*told, memory_of()]
    if args.images:
        found, ratio = two_workers(args.model, args.images, args.samples, args.rounds)
        rates |= found
        ratios.append(ratio)
    ray.shutdown()
    if args.nodes:
        ratios.append(fed(args.nodes, args.each))
    print_results("Units and maps a second", rates, ratios)
    shown = {"rates": rates, "ratios": [as_dict(r) for r in ratios]}
    write_json(args.json, vars(args), {args.model: shown})


if __name__ == "__main__":
    main()
