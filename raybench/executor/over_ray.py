"""Units over Ray actors that keep the classifier loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
import torch

from raybench.answers import AnswerStore
from raybench.errors import ExecutionError
from raybench.executor.jobs import Answer, Task, message
from raybench.executor.local import Resident, do_unit
from raybench.models.runtime import EAGER, Runtime, check_backend, split_key
from raybench.types import Unit

# Two in flight for each worker: the next unit is there when the last one ends.
_AHEAD = 2

# How long actors may take to start (imports, a new node), and for the first of them at most.
_START_SECONDS = 120.0
_PATIENCE_SECONDS = 600.0


class _Worker:
    """One actor. Plain tasks would load the model again each time (Ray ends GPU workers)."""

    def __init__(self, n_threads: int, runtime: Runtime, device: str, store: str | None) -> None:
        self._store = None if store is None else AnswerStore(store)
        torch.set_num_threads(n_threads)
        self._resident = Resident(runtime, device)

    def pid(self) -> int:
        return os.getpid()

    def run(
        self, ticket: int, task: Task, unit: Unit, model: str | None, checkpoint: list[Any]
    ) -> Answer:
        try:
            classifier = (
                None
                if model is None
                else self._resident.get(model, lambda: bytes(ray.get(checkpoint[0])))
            )
        except Exception as problem:  # a checkpoint that does not load fails its own images only
            return Answer(ticket, None, message(problem), 0.0)
        return do_unit(ticket, task, unit, classifier, self._store)


class RayPool:
    """A fixed set of actors, each with a bounded number of units in flight.

    Beside workers with GPUs there can be helpers: actors of one core that do the units which need
    no model (superpixels), so that a GPU never waits for them.

    A unit whose actor dies is done again by the restarted one (units are deterministic).

    Args:
        models: reads a checkpoint by its key, in this process; it travels by the object store.
        n_workers: actors.
        cpus, gpus: what each holds; `cpus` is also its number of threads.
        runtime: how forward passes are made.
        n_helpers: actors of one core for the units without a model; 0: the workers do them.
        store: folder that all workers see, where answers are kept; None: nothing is.
    """

    def __init__(
        self,
        models: Callable[[str], bytes],
        n_workers: int,
        cpus: int,
        gpus: float,
        runtime: Runtime = EAGER,
        n_helpers: int = 0,
        store: str | None = None,
    ) -> None:
        self._models = models
        self.device = "cuda" if gpus > 0 else "cpu"
        check_backend(runtime.backend, self.device)
        worker = _actor(cpus, gpus)
        self._workers = _alive(
            [worker.remote(cpus, runtime, self.device, store) for _ in range(n_workers)]
        )
        helper = _actor(1, 0.0)
        self._helpers = _alive(
            [helper.remote(1, runtime, "cpu", store) for _ in range(n_helpers)], needed=False
        )
        self._load = [0] * (len(self._workers) + len(self._helpers))
        self._flying: dict[Any, tuple[int, int]] = {}
        self._checkpoints: dict[str, Any] = {}

    @property
    def slots(self) -> int:
        """Units worth having in flight at the workers."""
        return _AHEAD * len(self._workers)

    @property
    def free_slots(self) -> int:
        """Units without a model worth having in flight at the helpers; 0: there are none."""
        return _AHEAD * len(self._helpers)

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Give the unit to the worker (without a model: the helper) with the least in flight."""
        n_workers = len(self._workers)
        helps = model is None and self._helpers
        able = range(n_workers, len(self._load)) if helps else range(n_workers)
        index = min(able, key=self._load.__getitem__)
        reference = (self._workers + self._helpers)[index].run.remote(
            ticket, task, unit, model, [] if model is None else [self._checkpoint(model)]
        )
        self._load[index] += 1
        self._flying[reference] = (ticket, index)

    def _checkpoint(self, model: str) -> Any:
        name, _ = split_key(model)
        if name not in self._checkpoints:
            # One at a time: jobs come a trial after the other, and object stores are small.
            self._checkpoints = {name: ray.put(self._models(name))}
        return self._checkpoints[name]

    def next(self) -> Answer:
        """Wait for any unit.

        Raises:
            ExecutionError: the workers cannot be started at all.
        """
        reference = ray.wait(list(self._flying), num_returns=1)[0][0]
        ticket, index = self._flying.pop(reference)
        self._load[index] -= 1
        try:
            answer = ray.get(reference)
        except ray.exceptions.ActorDiedError as error:
            raise ExecutionError(
                f"a worker could not be started or kept alive: {message(error)}"
            ) from error
        except ray.exceptions.RayError as error:
            return Answer(ticket, None, message(error), 0.0)
        if not isinstance(answer, Answer):
            raise ExecutionError(f"a worker answered with a {type(answer).__name__}")
        return answer

    def close(self) -> None:
        """End the actors and give their resources back."""
        for actor in self._workers + self._helpers:
            ray.kill(actor)
        self._workers, self._helpers, self._flying, self._checkpoints = [], [], {}, {}


def _actor(cpus: int, gpus: float) -> Any:
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=3)(_Worker)


def _alive(workers: list[Any], needed: bool = True) -> list[Any]:
    """The actors that the cluster found room for; others may hold cores that it counts as its own.

    Raises:
        ExecutionError: not one could be started, and `needed`.
    """
    if not workers:
        return []
    calls = {worker.pid.remote(): worker for worker in workers}
    ready, missing = ray.wait(list(calls), num_returns=len(calls), timeout=_START_SECONDS)
    if not ready and needed:
        ready, missing = ray.wait(list(calls), num_returns=1, timeout=_PATIENCE_SECONDS)
    for call in missing:
        ray.kill(calls[call])
    try:
        ray.get(ready)
    except ray.exceptions.RayError as error:
        raise ExecutionError(f"a worker could not be started: {message(error)}") from error
    if not ready and needed:
        raise ExecutionError(
            f"none of {len(workers)} workers could be started within "
            f"{_START_SECONDS + _PATIENCE_SECONDS:.0f} s: the cluster's cores or GPUs are taken; "
            "wait until they are free, or lower execution.cpus_per_worker"
        )
    return [calls[call] for call in calls if call in set(ready)]
