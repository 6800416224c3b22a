"""Why a worker is no more, in one line that says what to do."""

from __future__ import annotations

import re

import ray

from raybench.executor.jobs import LESS_MEMORY, message

_USED = re.compile(r"([\d.]+ ?[KMGT]?B) used / ([\d.]+ ?[KMGT]?B) limit")

_ENDED = (
    "its process ended unexpectedly: it crashed, or was killed, by the kernel where memory was out "
    f"(its log, `dmesg`, says so); then {LESS_MEMORY}"
)

NOBODY = (
    "none of {} workers could be started within {:.0f} s: the cluster's cores or GPUs are taken, "
    "or its nodes are gone; wait until they are free, or lower execution.cpus_per_worker"
)


def why_lost(error: BaseException) -> str:
    """One line about what Ray said of an actor that is gone.

    Ray's own text of memory that is out is a page: of it the memory used is kept.
    """
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        used = _USED.search(text)
        how_much = f" ({used[1]} of {used[2]} used)" if used else ""
        return f"memory of its node was out{how_much}, so Ray ended it; {LESS_MEMORY}"
    if isinstance(error, ray.exceptions.ActorDiedError) and "SYSTEM_ERROR" in text:
        return _ENDED
    return message(error)
