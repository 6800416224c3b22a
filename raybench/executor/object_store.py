"""What travels to workers by this node's object store, and how much of it fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import ray

from raybench.models.runtime import split_key
from raybench.types import Unit

_SHARE = 0.3
"""Of the store, that units in flight may fill: what does not fit goes to disk."""


class ObjectStore:
    """The checkpoint that is in use, and how many units there is room for beside it.

    Args:
        models: reads a checkpoint by its key, in this process.
    """

    def __init__(self, models: Callable[[str], bytes]) -> None:
        self._models = models
        self._room, self._largest = _SHARE * store_bytes(), 1
        self._checkpoints: dict[str, Any] = {}

    @property
    def n_units(self) -> int:
        """How many units of the largest seen it holds."""
        return int(self._room // self._largest)

    def see(self, unit: Unit) -> None:
        """Note how large a unit is."""
        self._largest = max(self._largest, n_bytes(unit.payload))

    def checkpoint(self, model: str) -> Any:
        """The reference to a checkpoint, which is put there once.

        One at a time: jobs come a trial after the other, and object stores are small.
        """
        name, _ = split_key(model)
        if name not in self._checkpoints:
            self._checkpoints = {name: ray.put(self._models(name))}
        return self._checkpoints[name]

    def clear(self) -> None:
        """Let go of the checkpoint."""
        self._checkpoints = {}


def store_bytes() -> float:
    """Size of this node's object store, through which payloads travel."""
    mine = ray.get_runtime_context().get_node_id()
    found: list[dict[str, Any]] = ray.nodes()
    return next(
        float(node["Resources"]["object_store_memory"]) for node in found if node["NodeID"] == mine
    )


def n_bytes(value: Any) -> int:
    """Bytes of the arrays in a payload, however deep they lie."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(n_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(n_bytes, value))
    if is_dataclass(value) and not isinstance(value, type):
        return sum(n_bytes(getattr(value, one.name)) for one in fields(value))
    return 0
