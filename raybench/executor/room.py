"""How many workers the cluster has room for."""

from __future__ import annotations

from typing import Any

import ray

from raybench.errors import ExecutionError


def nodes() -> list[dict[str, float]]:
    """The resources of each node that is up."""
    found: list[dict[str, Any]] = ray.nodes()
    return [node["Resources"] for node in found if node.get("Alive", node.get("alive"))]


def fits(node: dict[str, float], cpus: int, gpus: float) -> int:
    """How many workers of so many cores and GPUs one node holds; a GPU is not shared by halves.

    A worker of a fraction lies on one GPU: 0.6 fits once on each.
    """
    n_workers = int(node.get("CPU", 0) // cpus)
    if gpus <= 0:
        return n_workers
    whole = int(node.get("GPU", 0))
    on_gpus = whole * int(1 / gpus + 1e-9) if gpus <= 1 else int(whole // gpus)
    return min(n_workers, on_gpus)


def room_for_helpers(cpus: int, n_workers: int) -> int:
    """How many actors of one core find room beside the workers; at most four a worker."""
    total = sum(int(node.get("CPU", 0)) for node in nodes())
    return max(0, min(4 * n_workers, total - cpus * n_workers))


def room_for(cpus: int, gpus: float | None) -> tuple[float, int]:
    """GPUs of each worker, and how many workers fit side by side.

    Args:
        cpus: cores of each.
        gpus: GPUs of each; None takes one where the cluster has any.

    Raises:
        ExecutionError: not one fits.
    """
    there = nodes()
    has_gpu = any(node.get("GPU", 0) for node in there)
    each = (1.0 if has_gpu else 0.0) if gpus is None else gpus
    n_workers = sum(fits(node, cpus, each) for node in there)
    if n_workers < 1:
        sizes = ", ".join(f"{n.get('CPU', 0):g} cores and {n.get('GPU', 0):g} GPUs" for n in there)
        raise ExecutionError(
            f"no node has room for {cpus} cores and {each:g} GPUs (there are: {sizes}); lower the "
            "cores or GPUs of each worker (execution) or of each trial (training)"
        )
    return each, n_workers
