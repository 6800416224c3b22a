"""How much of a search's time is spent, whatever interrupts it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from raybench.storage import Storage
from raybench.wording import counted

_BETWEEN_WRITES = 1.0
"""Seconds; what a kill can make forgotten."""

_OVER = "over"


class Budget:
    """Hours by the clock and hours of GPUs, counted over all runs of one search.

    It is over only once some trial has an epoch on disk: before that there is nothing to choose
    from, and ending there would throw away what was spent.

    Args:
        hours, gpu_hours: what there is; None: no limit.
        gpus: GPUs that each trial holds.
        files, name: small file that holds what is spent, and whether that is all; trials read it
            too.
        clock: seconds that only grow; nobody sets the default one.
        begun: whether some trial has an epoch on disk already.
    """

    def __init__(
        self,
        hours: float | None,
        gpu_hours: float | None,
        gpus: float,
        files: Storage,
        name: str,
        clock: Callable[[], float] = time.monotonic,
        begun: bool = False,
    ) -> None:
        self._limits = {"hours": hours, "gpu_hours": gpu_hours}
        self._gpus, self._files, self._name, self._clock = gpus, files, name, clock
        self.spent = {"hours": 0.0, "gpu_hours": 0.0}
        if files.exists(name):
            known = json.loads(files.read(name))
            self.spent |= {name: float(known[name]) for name in self.spent}
        self._last = self._written = clock()
        self._begun = begun
        self._told = self.is_over
        self.write()

    @property
    def is_over(self) -> bool:
        """Whether one of the limits is reached, and some trial has an epoch."""
        return self.used_up is not None

    @property
    def used_up(self) -> str | None:
        """What is used up, in words; None where nothing is, or no trial has an epoch yet."""
        if not self._begun:
            return None
        for name, limit in self._limits.items():
            if limit is not None and self.spent[name] >= limit:
                said = counted(limit, "GPU hour" if name == "gpu_hours" else "hour")
                return f"the budget of {said} (search.{name}) is used up"
        return None

    def begin(self) -> None:
        """Note that a trial has an epoch on disk."""
        self._begun = True
        if self.is_over and not self._told:
            self.write()  # trials that are not begun yet ask the file

    def tick(self, n_running: int) -> str | None:
        """Count the time since the last call.

        Args:
            n_running: trials that held their GPUs meanwhile.

        Returns:
            What is used up, once: where it was not over when the search began, or at the last call.
        """
        now = self._clock()
        passed, self._last = (now - self._last) / 3600, now
        self.spent["hours"] += passed
        self.spent["gpu_hours"] += passed * self._gpus * n_running
        news = self.used_up if not self._told else None
        self._told = self.is_over
        if now - self._written >= _BETWEEN_WRITES or news is not None:
            self.write()
        return news

    def write(self) -> None:
        """Note what is spent, atomically."""
        self._written = self._last
        said = json.dumps(self.spent | {_OVER: self.is_over})
        self._files.write(self._name, said.encode())


def was_over(files: Storage, name: str) -> bool:
    """Whether the budget whose file this is had nothing left when it was last written."""
    return files.exists(name) and bool(json.loads(files.read(name))[_OVER])
