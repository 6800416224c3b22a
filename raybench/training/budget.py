"""How much of a search's time is spent, whatever interrupts it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

_BETWEEN_WRITES = 1.0
"""Seconds; what a kill can make forgotten."""


class Budget:
    """Hours by the clock and hours of GPUs, counted over all runs of one search.

    Args:
        hours, gpu_hours: what there is; None: no limit.
        gpus: GPUs that each trial holds.
        path: small file that holds what is spent.
    """

    def __init__(
        self, hours: float | None, gpu_hours: float | None, gpus: float, path: Path
    ) -> None:
        self._limits = {"hours": hours, "gpu_hours": gpu_hours}
        self._gpus, self._path = gpus, path
        self._running: set[str] = set()
        self.spent = {"hours": 0.0, "gpu_hours": 0.0}
        if path.exists():
            self.spent |= json.loads(path.read_text())
        self._last = self._written = time.monotonic()

    def started(self, trial_id: str) -> None:
        """A trial holds its GPUs from now on."""
        self.tick()
        self._running.add(trial_id)

    def ended(self, trial_id: str) -> None:
        """A trial holds none any more."""
        self.tick()
        self._running.discard(trial_id)

    def tick(self) -> None:
        """Count the time since the last call; by the monotonic clock, which no one sets."""
        now = time.monotonic()
        passed, self._last = (now - self._last) / 3600, now
        self.spent["hours"] += passed
        self.spent["gpu_hours"] += passed * self._gpus * len(self._running)
        if now - self._written >= _BETWEEN_WRITES:
            self._write()
            self._written = now

    def exhausted(self) -> str | None:
        """What is used up, in words; None where nothing is."""
        self.tick()
        for name, limit in self._limits.items():
            if limit is not None and self.spent[name] >= limit:
                return f"the budget of {limit:g} {name.replace('_', ' ')} is used up"
        return None

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.spent))
        os.replace(partial, self._path)
