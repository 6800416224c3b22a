"""The actors of a pool over Ray: what runs on a worker's node."""

from __future__ import annotations

import os
from typing import Any

import ray
import torch

from raybench.answers import AnswerStore
from raybench.executor.jobs import Answer, Task, failed
from raybench.executor.local import Resident, do_unit
from raybench.models.runtime import Runtime
from raybench.types import Unit


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
            return failed(ticket, problem)
        return do_unit(ticket, task, unit, classifier, self._store)


def actor_class(cpus: int, gpus: float) -> Any:
    """The remote class of workers that hold so many cores and GPUs."""
    # Not restarted by Ray: it would wait for its node, which may be gone for good.
    return ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker)


def is_answered(reference: Any) -> bool:
    """Whether an answer is there that did not go down with its worker."""
    if not ray.wait([reference], timeout=0)[0]:
        return False
    try:
        ray.get(reference)
    except ray.exceptions.RayError:
        return False
    return True
