"""The run folder: the one true record of a sweep, and who may write into it.

Workers return results; the driver alone writes here, atomically. MLflow, the report and the status
command are projections of it that can be made again at any time.

It may be in a bucket. What cannot lie there (MLflow's sqlite file) is in a working folder of this
machine then, beside copies of tables, figures and the log that projections are made from.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from raybench.errors import RunFolderError, StorageError
from raybench.storage import Storage
from raybench.tracking import lock
from raybench.tracking.events import EventLog
from raybench.tracking.lease import Lease, LeasedStorage, is_alive
from raybench.tracking.run_tables import CLAIMED, LOCK, OWN_NAMES, RunTables
from raybench.tracking.stored_config import CONFIG_NAME, StoredConfig

State = Literal["new", "resumed", "finished"]

_BEING_REMOVED = "being-removed"
_SHOWN = (".csv", ".parquet", ".yaml", ".html")
_LEFTOVER = re.compile(r"^\..*\.part$")


def working_folder(url: str) -> Path:
    """The folder of this machine for a run that lies in a bucket (below `XDG_CACHE_HOME`)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = url.rstrip("/").rsplit("/", 1)[-1]
    return cache / "raybench" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"


class RunFolder(RunTables):
    """The folder of one sweep. Making the object touches nothing; `open` takes it for a sweep.

    Reading (the report, the projection to MLflow) needs no `open` and no lock.

    Args:
        root: a local path, or a URL that fsspec can write to (`s3://bucket/runs/cxr`).

    Attributes:
        storage: the files below it.
        where: `root` for messages: an absolute path, or the URL.
        path: a folder of this machine: the run folder itself, or the working folder of one in a
            bucket.
        events: its event log, `events.jsonl`.
    """

    def __init__(self, root: str) -> None:
        # Absolute from here on: the process may change its working directory.
        storage = LeasedStorage(Storage(root).path())
        self.where, self._held = storage.root, storage.held
        self.path = Path(self.where) if storage.is_local else working_folder(self.where)
        copy = None if storage.is_local else Storage(str(self.path))
        super().__init__(storage, copy)
        self.events = EventLog(self.storage, copy=copy)
        self._config = StoredConfig(self.storage)
        self._lock: int | Lease | None = None
        self._pending: tuple[Mapping[str, Any], str] | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(
        self,
        config: Mapping[str, Any],
        digest: str,
        resume: bool = False,
        overwrite: bool = False,
        defer: bool = False,
    ) -> State:
        """Take the folder for a sweep; it stays locked until `close` or the process's end.

        Args:
            config: the resolved configuration, in plain types (`model_dump(mode="json")`).
            digest: names the configuration; two sweeps with one digest compute the same.
            resume: go on with an unfinished sweep of the same digest.
            overwrite: remove what raybench wrote and start again.
            defer: write and remove nothing yet, until `begin` (every check has passed) or
                `abandon`.

        Returns:
            "new", "resumed", or "finished" where there is nothing left to do.

        Raises:
            RunFolderError: the folder holds something else, is in use or cannot be written.
        """
        if resume and overwrite:
            raise RunFolderError(f"{self.where}: pass --resume or --overwrite, not both")
        if self._lock is not None:
            raise RunFolderError(f"{self.where}: this run folder is open already; close it first")
        self._make()
        local = self.storage.is_local
        self._lock = lock.take(self.path / LOCK) if local else self._lease()
        try:
            state = self._decide(config, digest, resume, overwrite)
            self._pending = (config, digest) if state == "new" else None
            if not defer:
                self.begin()
        except BaseException:
            self.close()
            raise
        return state

    def begin(self) -> None:
        """Start what `open` decided: for a new sweep, remove the old one and store the settings."""
        if self._pending is not None:
            if self._config.digest() is not None:
                self._clear()
            self._config.write(*self._pending)
            self._pending = None
        self._sweep_up()
        self.bring()

    def abandon(self) -> None:
        """Leave a folder opened with `defer` as it was found."""
        if self.storage.is_local and self._config.digest() is None:
            self.storage.remove(LOCK)  # before it is let go, or another sweep could lose its own
        self.close()
        if self.storage.is_local and not self.storage.names():
            self.path.rmdir()

    def close(self) -> None:
        """Let go of the folder. Closing twice does nothing."""
        if isinstance(self._lock, Lease):
            self._held.clear()
            self._lock.release()
        elif self._lock is not None:
            lock.release(self._lock)
        self._lock = None

    def bring(self) -> None:
        """Make the working folder of a run in a bucket what the bucket says.

        Raises:
            StorageError: a file cannot be read or written.
        """
        copy = self._copy
        if copy is None:
            return
        for stale in ("figures", *(n for n in copy.names() if n.endswith(_SHOWN))):
            copy.remove(stale)
        names = [name for name in self.storage.names() if name.endswith(_SHOWN)]
        for name in (*names, *(f"figures/{name}" for name in self.storage.names("figures"))):
            copy.write(name, self.storage.read(name))
        copy.write(self.events.name, self.events.text())

    def mark_finished(self) -> None:
        """Write `sweep_finished`: everything that the sweep asked for is there."""
        self.events.append("sweep_finished")

    @property
    def is_at_work(self) -> bool:
        """Whether a living process has the folder open; in a bucket, that takes up to 10 s.

        Raises:
            RunFolderError, StorageError: that cannot be told.
        """
        if self.storage.is_local:
            return lock.is_held(self.path / LOCK)
        return is_alive(self.storage, LOCK)

    @property
    def is_finished(self) -> bool:
        """Whether the sweep came to its end."""
        return any(event["kind"] == "sweep_finished" for event in self.events.read())

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as it was stored.

        Raises:
            RunFolderError: this is not a run folder.
        """
        return self._config.load()

    @property
    def digest(self) -> str:
        """The digest of the configuration.

        Raises:
            RunFolderError: this is not a run folder.
        """
        return self._config.need_digest()

    def _lease(self) -> Lease:
        """From here on nothing is written where another sweep took the folder over."""
        lease = Lease(Storage(self.where), LOCK)
        self._held.append(lease)
        return lease

    def _make(self) -> None:
        """Make the folder, and refuse one that holds something that raybench did not write."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = self.storage.names()
        except StorageError as error:
            raise RunFolderError(f"{error}; choose an output folder that can be read") from error
        except OSError as error:
            raise RunFolderError(
                f"{self.path}: cannot be a run folder ({error.strerror}); choose another"
            ) from error
        foreign = [name for name in names if name != LOCK and not _LEFTOVER.match(name)]
        if foreign and self._config.digest() is None:
            raise RunFolderError(
                f"{self.where}: expected no files, or a run folder with {CONFIG_NAME}, found "
                f"{', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''}; choose another "
                f"output folder (--overwrite does not touch what raybench did not write)"
            )

    def _decide(
        self, config: Mapping[str, Any], digest: str, resume: bool, overwrite: bool
    ) -> State:
        stored = self._config.digest()
        if stored is None or overwrite:
            return "new"
        if stored == _BEING_REMOVED:
            raise RunFolderError(
                f"{self.where}: an earlier --overwrite was interrupted; pass --overwrite again"
            )
        if stored != digest:
            raise RunFolderError(self._config.differences(config))
        if self.is_finished:
            return "finished"
        if not resume:
            raise RunFolderError(
                f"{self.where}: holds an unfinished sweep of this configuration; pass --resume to "
                f"go on or --overwrite to start again"
            )
        return "resumed"

    def _sweep_up(self) -> None:
        """Remove the halves of files that a killed process was writing."""
        if not self.storage.is_local:
            return  # a bucket shows whole objects only
        for name in self.storage.walk():
            if _LEFTOVER.match(name.rpartition("/")[2]):
                self.storage.remove(name)

    def _clear(self) -> None:
        """Remove what raybench wrote. Killed on the way, the folder says so when opened again."""
        self._config.write({}, _BEING_REMOVED)
        leftovers = [name for name in self.storage.names() if _LEFTOVER.match(name)]
        if self._copy is not None:
            shutil.rmtree(self.path, ignore_errors=True)
        try:
            for name in (*OWN_NAMES, *self._claimed(), *leftovers, CLAIMED):
                self.storage.remove(name)
        except (OSError, StorageError) as error:
            raise RunFolderError(
                f"{self.where}: {name} cannot be removed ({error}); remove it by hand"
            ) from error
        self._parts.clear()
        self.events = EventLog(self.storage, copy=self._copy)
