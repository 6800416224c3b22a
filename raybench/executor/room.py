"""How many workers the cluster has room for."""

from __future__ import annotations

import ray

from raybench.errors import ExecutionError


def room_for(cpus: int, gpus: float | None) -> tuple[float, int]:
    """GPUs of each worker, and how many workers fit side by side.

    Args:
        cpus: cores of each.
        gpus: GPUs of each; None takes one where the cluster has any.

    Raises:
        ExecutionError: not one fits.
    """
    total = ray.cluster_resources()
    each = (1.0 if total.get("GPU", 0) else 0.0) if gpus is None else gpus
    n_workers = int(total.get("CPU", 0) // cpus)
    if each > 0:
        n_workers = min(n_workers, int(total.get("GPU", 0) / each + 1e-9))
    if n_workers < 1:
        raise ExecutionError(
            f"no room for a worker of {cpus} cores and {each:g} GPUs in a cluster of "
            f"{total.get('CPU', 0):g} cores and {total.get('GPU', 0):g} GPUs; lower "
            "execution.cpus_per_worker or execution.gpus_per_worker"
        )
    return each, n_workers
