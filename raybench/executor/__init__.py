"""Where units of work run: in this process, or over Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from raybench.executor.jobs import Job, Outcome, Pool, message, run_jobs
from raybench.executor.local import LocalPool
from raybench.executor.room import room_for, room_for_helpers
from raybench.models.runtime import Runtime
from raybench.settings import Settings

__all__ = ["Execution", "Job", "Outcome", "Pool", "make_pool", "message", "room_for", "run_jobs"]


class Execution(Settings):
    """Where explaining runs. (Training always runs as Ray Tune trials.)"""

    mode: Literal["ray", "local"] = Field(
        "ray", description="ray: actors over the cluster; local: in the driver's process"
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="actors; null: as many as the cluster has room for. More than that join when "
        "there is room, and make a cluster grow that can",
    )
    cpus_per_worker: int = Field(1, ge=1, description="cores, and threads, of each actor")
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs of each actor, fractions too; null: one where there is one"
    )
    backend: Literal["auto", "torch", "folded", "compile", "openvino"] = Field(
        "auto",
        description="what runs forward passes; auto: on a CPU torch with normalisations folded "
        "into convolutions where the network allows it, else torch as it is; openvino: on CPUs, an "
        "extra to install",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of forward passes; auto: bfloat16 on a GPU where the salient masks of three "
        "Val images stay the same, else float32",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="images a forward pass; null: what is fastest on a GPU, 16 or 32 on a CPU",
    )
    cpus: int | None = Field(
        None, ge=1, description="cores of a Ray that is started here; null: all of the machine"
    )
    unit_deadline: float = Field(
        900.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds that a unit of work may take on a worker before it is given up, and "
        "its image recorded as failed",
    )
    cluster_gpus: int | None = Field(
        None,
        ge=1,
        description="GPUs to ask a cluster's autoscaler for, and to wait for, before anything "
        "starts; null: take the nodes that are up",
    )
    store: str | None = Field(
        None,
        min_length=1,
        description="folder of the models' answers, which sweeps can share so that none is asked "
        "twice; null: `answers` in the output folder",
    )
    object_store_mb: int = Field(
        512, ge=80, description="memory of the object store of a Ray that is started here, MiB"
    )

    @property
    def runtime(self) -> Runtime:
        """How workers make forward passes, where a model's key names no precision of its own."""
        return Runtime(
            backend=self.backend,
            precision="float32" if self.precision == "auto" else self.precision,
            batch_size=self.batch_size,
            n_threads=self.cpus_per_worker,
        )


def make_pool(
    settings: Execution, models: Callable[[str], bytes], store: str | None = None
) -> Pool:
    """The pool that the settings ask for.

    Args:
        models: reads a checkpoint by its key.
        store: folder where answers are kept; None: nothing is.

    Raises:
        ExecutionError: the cluster has no room for a single worker.
        ModelError: the backend cannot run here.
    """
    if settings.mode == "local":
        return LocalPool(models, settings.cpus_per_worker, settings.runtime, store)
    from raybench.executor.over_ray import RayPool

    cpus = settings.cpus_per_worker
    gpus, n_workers = room_for(cpus, settings.gpus_per_worker)
    workers = settings.workers or n_workers
    at_once = min(workers, n_workers)
    helpers = room_for_helpers(cpus, at_once) if gpus else 0
    deadline = settings.unit_deadline
    return RayPool(models, workers, cpus, gpus, settings.runtime, helpers, store, deadline, at_once)
