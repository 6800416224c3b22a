"""Who may write to a run folder in a bucket: buckets have no locks that die with their holder.

The holder makes an object that is not there yet, which succeeds for one alone, and changes it every
few seconds. Another one that finds it watches: what does not change for `STALE` seconds was left by
a process that is dead, and is taken over. No clock is compared with that of another machine.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

from raybench.errors import RunFolderError, StorageError
from raybench.storage import Storage

log = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two signs of life."""

STALE = 30.0
"""Seconds without one after which a holder counts as dead."""


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

    Raises:
        RunFolderError: another sweep, which lives, has it.
        StorageError: the bucket refuses.
    """

    def __init__(
        self, storage: Storage, name: str, beat: float = BEAT, stale: float = STALE
    ) -> None:
        self._storage, self._name, self._beat = storage, name, beat
        self._token, self._count = uuid.uuid4().hex, 0
        self._lost = False
        self._stop = threading.Event()
        while not storage.create(name, self._content()):
            self._wait_for_the_dead(stale)
        self._thread = threading.Thread(target=self._live, name="raybench-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See that nobody took it over while this process was cut off from the bucket.

        Raises:
            RunFolderError: somebody did.
        """
        if self._lost:
            raise RunFolderError(
                f"{self._storage.path()}: another sweep took this folder over, as this one had "
                f"not been heard of for {STALE:.0f} s; what was finished is kept: see that only "
                "one of them runs, and pass --resume"
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

    def _found(self) -> dict[str, Any]:
        """What stands in the object; nothing where there is none, or not one of ours."""
        try:
            found = json.loads(self._storage.read(self._name))
        except StorageError:
            if self._storage.exists(self._name):
                raise
            return {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _wait_for_the_dead(self, stale: float) -> None:
        first = self._found()
        holder = first.get("holder", "unknown process")
        log.warning(
            "%s: seeing whether %s, which worked here, is still alive (%.0f s at most)",
            self._storage.path(),
            holder,
            stale,
        )
        deadline = time.monotonic() + stale
        while time.monotonic() < deadline:
            time.sleep(min(1.0, stale / 10))
            now = self._found()
            if not now:
                return  # it let go
            if now != first:
                raise RunFolderError(
                    f"{self._storage.path()}: another sweep is working in this folder "
                    f"({now.get('holder', holder)}); wait until it ends, stop it, or choose "
                    "another output folder"
                )
        self._storage.remove(self._name)

    def _live(self) -> None:
        while not self._stop.wait(self._beat):
            try:
                if self._found().get("token") != self._token:
                    self._lost = True
                    return
                self._count += 1
                self._storage.write(self._name, self._content())
            except StorageError as error:
                log.info("no sign of life could be left: %s", error)  # the next one may get there
