"""Who may write to a run folder in a bucket: buckets have no locks that die with their holder.

The holder makes an object that is not there yet, which succeeds for one alone, and changes it every
few seconds. Another one that finds it watches: what does not change for `STALE` seconds was left by
a process that is dead, and is taken over. No clock is compared with that of another machine.

A holder that lives but was cut off (a bucket that refuses, a laptop that slept) does not know
whether it was taken over. So it writes nothing once its last sign of life is older than
`STALE - 2 * BEAT` seconds, until another one goes through and its own name still stands there.
Two who find the same holder dead are told apart as long as no single step of theirs (a look, a
write) takes longer than `BEAT`: buckets have no way to replace what one has just read.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raybench.errors import RunFolderError, StorageError, UnavailableError
from raybench.patience import PATIENCE
from raybench.storage import Storage

log = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two signs of life."""

STALE = 30.0
"""Seconds without one after which a holder counts as dead."""

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now() -> float:
    """Seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)


def is_alive(storage: Storage, name: str, patience: float = 2 * BEAT) -> bool:
    """Whether somebody holds the lease and shows a sign of life within `patience` seconds.

    Raises:
        StorageError: the bucket refuses.
    """
    if not storage.exists(name):
        return False
    first, deadline = storage.read(name), time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(1.0, patience / 10))
        if not storage.exists(name):
            return False
        if storage.read(name) != first:
            return True
    return False


class Lease:
    """The right to write below one root, from construction to `release`.

    Args:
        storage: the run folder.
        name: of the object that stands for it.
        beat, stale: seconds, as `BEAT` and `STALE`.
        patience: seconds since the last sign of life for which `check` tries to leave another one.

    Raises:
        RunFolderError: another sweep, which lives, has it.
        StorageError: the bucket refuses.
    """

    def __init__(
        self,
        storage: Storage,
        name: str,
        beat: float = BEAT,
        stale: float = STALE,
        patience: float = PATIENCE,
    ) -> None:
        self._storage, self._name, self._beat = storage.once(), name, beat
        self._stale, self._patience = stale, patience
        self._sure = max(stale - 2 * beat, stale / 3)
        self._token, self._count = uuid.uuid4().hex, 0
        self._lost = False
        self._error: StorageError | None = None
        self._stop, self._beating = threading.Event(), threading.Lock()
        self._last = _now()
        while not self._create():
            if self._wait_for_the_dead():
                time.sleep(beat)  # whoever else found it dead, or wakes up, has written by then
        self._thread = threading.Thread(target=self._live, name="raybench-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See that nobody took it over while this process was cut off from the bucket.

        Where that cannot be told, it waits for a sign of life to go through.

        Raises:
            RunFolderError: somebody did, or none went through for `patience` seconds.
        """
        while not self._lost and _now() - self._last > self._sure:
            # Once that was too long the thread alone tries: each try may take many seconds.
            if self._error is None or _now() - self._last <= self._patience:
                with suppress(StorageError):
                    self._leave_sign()
            error, passed = self._error, _now() - self._last
            if error is not None and passed > self._patience:
                raise RunFolderError(
                    f"{self._storage.path()}: this sweep could not show for {passed:.0f} s that "
                    f"it is alive ({error}), so another one may have taken the folder over; what "
                    "was finished is kept: see that the bucket can be reached and pass --resume"
                ) from error
            if error is not None:
                time.sleep(self._beat / 5)
        if self._lost:
            raise RunFolderError(
                f"{self._storage.path()}: another sweep took this folder over, as this one had "
                f"not been heard of for {self._stale:.0f} s; what was finished is kept: see that "
                "only one of them runs, and pass --resume"
            )

    def release(self) -> None:
        """Let go of it."""
        self._stop.set()
        self._thread.join(2 * self._beat)
        try:
            if not self._lost and self._found().get("token") == self._token:
                self._storage.remove(self._name)
        except StorageError as error:  # the next one waits until it counts as dead
            log.warning("the lock of this run folder could not be removed: %s", error)

    def _content(self) -> bytes:
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        return json.dumps({"holder": holder, "token": self._token, "beat": self._count}).encode()

    def _create(self) -> bool:
        began = _now()
        if self._storage.create(self._name, self._content()):
            self._last = began
            return True
        # It may be ours, made by a try whose answer was lost, or before others could be seen off.
        return self._found().get("token") == self._token

    def _found(self, tries: int = 3) -> dict[str, Any]:
        """What stands in the object; nothing where there is none, or not one of ours."""
        try:
            found = json.loads(self._storage.read(self._name))
        except UnavailableError:
            raise
        except StorageError:
            if not self._storage.exists(self._name):
                return {}
            if tries <= 1:
                raise
            return self._found(tries - 1)  # somebody made it anew in between
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _wait_for_the_dead(self) -> bool:
        """Watch whoever has it. Returns whether it was taken from a dead one, and is ours."""
        first = self._found()
        holder = first.get("holder", "unknown process")
        log.warning(
            "%s: seeing whether %s, which worked here, is still alive (%.0f s at most)",
            self._storage.path(),
            holder,
            self._stale,
        )
        step, watched, looked = min(1.0, self._stale / 10), 0.0, time.monotonic()
        while watched < self._stale:
            time.sleep(step)
            now = self._found()
            if not now:
                return False  # it let go
            if now != first:
                raise RunFolderError(
                    f"{self._storage.path()}: another sweep is working in this folder "
                    f"({now.get('holder', holder)}); wait until it ends, stop it, or choose "
                    "another output folder"
                )
            # Time in which this process was stopped itself is no watching.
            watched += min(time.monotonic() - looked, 2 * step)
            looked = time.monotonic()
        self._storage.remove(self._name)
        self._last = _now()
        return self._storage.create(self._name, self._content())

    def _leave_sign(self) -> None:
        """One sign of life, where the object is still ours.

        Raises:
            StorageError: it could not be left.
        """
        with self._beating:
            began = _now()
            try:
                if self._found().get("token") != self._token:
                    self._lost = True
                    return
                self._count += 1
                self._storage.write(self._name, self._content())
            except StorageError as error:
                self._error = error
                raise
            self._last, self._error = began, None

    def _live(self) -> None:
        while not (self._stop.wait(self._beat) or self._lost):
            try:
                self._leave_sign()
            except StorageError as error:
                log.info("no sign of life could be left: %s", error)  # the next one may get there


@dataclass(frozen=True, slots=True)
class LeasedStorage(Storage):
    """Files below a root that has a lease: nothing is written or removed by one who lost it.

    A copy that travels to another process is a plain `Storage`.

    Attributes:
        held: the lease, while there is one.
    """

    held: list[Lease] = field(default_factory=list, compare=False, repr=False)

    def _before(self, what: str) -> None:
        if what in {"written", "created", "removed"}:
            for lease in self.held:
                lease.check()

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.root,)
