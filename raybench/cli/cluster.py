"""Joining a Ray cluster, or starting Ray on this machine."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import ray

from raybench.errors import ExecutionError
from raybench.executor import Execution

log = logging.getLogger(__name__)

# glibc gives large blocks back to the kernel after every layer, and the page faults cost more than
# the arithmetic; these keep the memory. They have to be in a worker's environment from its start.
WORKER_ENV = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}

WAIT_S = 1800.0
POLL_S = 5.0

_asked = False


def start_ray(settings: Execution) -> str:
    """Join the cluster that `RAY_ADDRESS` names or that this machine is a node of; else start Ray.

    Returns:
        One line that says which.

    Raises:
        ExecutionError: `RAY_ADDRESS` names a cluster that cannot be joined, or the GPUs that the
            settings ask for do not come.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # RAY_AUTH_MODE is left alone: Ray starts with token authentication by itself and reads the
    # variable at import, so that setting it here would leave this process and its children apart.
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        log.warning(
            "RAY_AUTH_MODE is %s: Ray asks for no token, so whoever reaches its ports can run code "
            "here as you and read the X-rays; unset it, or set RAY_AUTH_MODE=token",
            os.environ["RAY_AUTH_MODE"],
        )
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": WORKER_ENV},
        "logging_level": logging.ERROR,
        "log_to_driver": False,
    }
    address = os.environ.get("RAY_ADDRESS")
    # "auto" would also find the private Ray of another sweep on this machine; only `ray start`
    # leaves this note behind.
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    if address in (None, "local") and (address == "local" or not note.exists()):
        return _start(settings, common)
    try:
        ray.init(address=address or "auto", **common)
    except (ConnectionError, ray.exceptions.RaySystemError, RuntimeError, ValueError) as error:
        if address is None and isinstance(error, ConnectionError):
            return _start(settings, common)  # the note is of a cluster that is gone
        raise ExecutionError(
            f"the Ray cluster at {address or 'auto'} cannot be joined ({error}); start it, or set "
            "RAY_ADDRESS=local to run on this machine"
        ) from error
    if settings.cluster_gpus is not None:
        _ask_for(settings.cluster_gpus)
    return f"joined a Ray cluster: {_size()}"


def _ask_for(n_gpus: int) -> None:
    """Have the autoscaler start nodes until there are so many GPUs, and wait for them.

    What is asked for stays asked for until `stop_ray`: a node that is lost is replaced, and none is
    given back between two stages.
    """
    global _asked
    from ray.autoscaler.sdk import request_resources

    _asked = True
    request_resources(bundles=[{"GPU": 1}] * n_gpus)
    end = time.monotonic() + WAIT_S
    while (there := ray.cluster_resources().get("GPU", 0)) < n_gpus:
        if time.monotonic() > end:
            stop_ray()
            raise ExecutionError(
                f"execution.cluster_gpus: {n_gpus} asked for, {there:g} came within "
                f"{WAIT_S / 60:g} minutes; `ray status` on the head says why (max_workers, a limit "
                "of the account, no room in the zones); ask for fewer, or mend the cluster's file"
            )
        time.sleep(POLL_S)


def _start(settings: Execution, common: dict[str, Any]) -> str:
    ray.init(
        address="local",
        num_cpus=settings.cpus,
        include_dashboard=False,
        object_store_memory=settings.object_store_mb * 2**20,
        **common,
    )
    return f"Ray started on this machine: {_size()}"


def _size() -> str:
    total = ray.cluster_resources()
    gpus = total.get("GPU", 0)
    return f"{total.get('CPU', 0):g} cores" + (f", {gpus:g} GPUs" if gpus else ", no GPU")


def stop_ray() -> None:
    """Leave the cluster, or stop the Ray that was started here."""
    global _asked
    if _asked:
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[])  # idle nodes may go
        _asked = False
    ray.shutdown()
