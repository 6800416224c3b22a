"""The storage seam: every file goes through it, a local path or a bucket alike (fsspec).

Writing is atomic: a reader sees the whole file or none of it. Locally that is a temporary file,
flushed to the disk and renamed; object stores show an object only once it is complete.
"""

from __future__ import annotations

import glob
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from pyarrow.fs import FSSpecHandler, PyFileSystem

from raybench.errors import RaybenchError, StorageError
from raybench.local_files import append_local, refusal, write_local
from raybench.masking import masked
from raybench.patience import client_options, once, patiently, quieten, within

_Found = TypeVar("_Found")

EXTRAS = ("s3", "gs")
"""Schemes whose reader is installed with an extra of the same name."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Files below one root, which is a local path or any URL that fsspec knows (`s3://...`)."""

    root: str

    def __post_init__(self) -> None:
        """Raises:
        StorageError: the address holds keys, which would be written wherever it is.
        """
        if masked(self.root) != self.root:
            raise StorageError(
                f"{self.root}: expected an address without keys or passwords; give them to the "
                "client instead (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, a role)"
            )

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine."""
        return "://" not in self.root or self.root.startswith("file://")

    def path(self, name: str = "") -> str:
        """The full path or URL of `name`; the local ones are absolute.

        Raises:
            StorageError: `name` leaves the root.
        """
        if name.startswith(("/", "\\")) or ".." in Path(name).parts:
            raise StorageError(f"{name!r} leads out of {self.root}: use a path below it")
        if self.is_local:
            base = _expanded(self.root.removeprefix("file://"))
            return str(base / name) if name else str(base)
        return f"{self.root.rstrip('/')}/{name}" if name else self.root.rstrip("/")

    def _fs(self, patient: bool = True) -> Any:
        # Others write to a bucket too: a listing that was kept would be an old one.
        options: dict[str, Any] = {} if self.is_local else {"use_listings_cache": False}
        if patient:
            options |= client_options(self.root)
        try:
            found = fsspec.core.url_to_fs(self.path(), **options)[0]
        except ImportError as error:
            scheme = self.root.split("://", 1)[0]
            wanted = f"pip install 'raybench[{scheme}]'" if scheme in EXTRAS else str(error)
            raise StorageError(f"{self.root}: no reader for this address ({wanted})") from error
        except ValueError as error:
            raise StorageError(f"{self.root}: no reader for this address ({error})") from error
        if patient and "config_kwargs" in options:
            found.retries = 1  # s3fs's own, beside botocore's
            quieten()
        return found

    def once(self) -> Storage:
        """The same files; a bucket that refuses is not waited for."""
        return _Once(self.root)

    def _before(self, what: str) -> None:
        """Called before a bucket is asked for something; a holder of a lease looks whether it has
        it still."""

    def _do(self, name: str, what: str, call: Callable[[Any], _Found]) -> _Found:
        """`call` with the file system; its errors as ours, and a bucket that refuses waited for.

        What is not there stays a `FileNotFoundError`.
        """
        path = self.path(name)
        if not self.is_local:
            return self._ask(path, what, lambda: call(self._fs()))
        try:
            return call(self._fs())
        except (FileNotFoundError, NotADirectoryError):
            raise
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(f"{path}: cannot be {what} ({reason})") from error

    def _ask(self, path: str, what: str, call: Callable[[], _Found]) -> _Found:
        return patiently(path, what, call, lambda: self._before(what))

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there.

        Raises:
            StorageError: a bucket refuses or does not answer; so do all others below.
        """
        return bool(self._do(name, "looked up", lambda fs: fs.exists(self.path(name))))

    def is_dir(self, name: str = "") -> bool:
        """Whether `name` is a folder."""
        return bool(self._do(name, "looked up", lambda fs: fs.isdir(self.path(name))))

    def names(self, folder: str = "") -> list[str]:
        """The names right below `folder`, sorted; empty where there is no such folder."""
        try:
            found = self._do(folder, "listed", lambda fs: fs.ls(self.path(folder), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in found)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of each file right below `folder`; empty where there is no such folder."""
        try:
            found = self._do(folder, "listed", lambda fs: fs.ls(self.path(folder), detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        files = [one for one in found if one["type"] == "file"]
        return {str(f["name"]).rsplit("/", 1)[-1]: int(f["size"] or 0) for f in files}

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            StorageError: it is not there or cannot be read.
        """
        try:
            return bytes(self._do(name, "read", lambda fs: self._content(fs, name)))
        except OSError as error:
            reason = type(error).__name__ if not str(error) else str(error)
            raise StorageError(f"{self.path(name)}: cannot be read ({reason})") from error

    def _content(self, fs: Any, name: str) -> Any:
        if self.is_local and not stat.S_ISREG(Path(self.path(name)).stat().st_mode):
            raise ValueError("no regular file")  # a pipe or a device may never end
        return fs.cat_file(self.path(name))

    def check_inside(self, name: str) -> None:
        """Whether a local `name` lies below the root once symbolic links are followed.

        The root itself may be a link. Buckets have none.

        Raises:
            StorageError: it does not.
        """
        if not self.is_local:
            return
        try:
            inside = Path(self.path(name)).resolve().is_relative_to(Path(self.path()).resolve())
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a zero byte
            raise StorageError(f"{self.path(name)}: cannot be looked up ({error})") from error
        if not inside:
            raise StorageError(
                f"{self.path(name)}: a symbolic link leads out of {self.root}: put the file there "
                "itself, or set root to a folder that holds both"
            )

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, atomically; folders on the way are made.

        Raises:
            StorageError: it cannot be written.
        """
        path = self.path(name)
        try:
            if not self.is_local:
                self._do(name, "written", lambda fs: fs.pipe_file(path, data, **within(fs, data)))
                return
            write_local(Path(path), data)
        except OSError as error:
            raise refusal(error, path, "written") from error

    def create(self, name: str, data: bytes) -> bool:
        """Write a whole file where there is none; of several who try, one succeeds.

        Returns:
            Whether it was this call. In a bucket False may also mean that it was, and its answer
            was lost.

        Raises:
            StorageError: it cannot be written, or the file system knows no such promise.
        """
        path = self.path(name)
        try:
            if not self.is_local:
                more = {"mode": "create"}
                self._do(
                    name, "created", lambda fs: fs.pipe_file(path, data, **more, **within(fs, data))
                )
                return True
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with Path(path).open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        except RaybenchError:
            raise
        except Exception as error:
            raise refusal(error, path, "created") from error
        return True

    def arrow(self, name: str = "") -> tuple[Any, str]:
        """`name` as libraries on Arrow want it: file system (None: local) and path on it."""
        path = self.path(name)
        if self.is_local:
            return None, path
        # Those libraries are not patient: their client tries again by itself.
        return PyFileSystem(FSSpecHandler(self._fs(patient=False))), path.split("://", 1)[1]

    def append_line(self, name: str, line: str) -> None:
        """Add one line to a local file and see it onto the disk.

        Raises:
            StorageError: the root is not local, or the file cannot be written.
        """
        if not self.is_local:
            raise StorageError(f"{self.path(name)}: only a local file can be appended to")
        path = Path(self.path(name))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_local(path, line.encode() + b"\n")
        except OSError as error:
            raise refusal(error, path, "written") from error

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; nothing happens where there is none."""
        if self.exists(name):
            path = self.path(name)
            with suppress(FileNotFoundError):  # it is gone: another's doing, or the answer was lost
                if self.is_local:
                    self._fs().rm(path, recursive=True)
                    return
                # fsspec reads brackets in an object's name as a pattern.
                self._do(name, "removed", lambda fs: fs.rm(glob.escape(path), recursive=True))

    def walk(self, folder: str = "") -> Iterator[str]:
        """The names of all files below `folder`, relative to the root, sorted."""
        base = self.path()
        prefix = len(base.split("://")[-1].rstrip("/")) + 1
        try:
            every = sorted(self._do(folder, "listed", lambda fs: fs.find(self.path(folder))))
        except FileNotFoundError:
            return
        for found in every:
            yield str(found).split("://")[-1][prefix:].lstrip("/")


class _Once(Storage):
    __slots__ = ()

    def _ask(self, path: str, what: str, call: Callable[[], _Found]) -> _Found:
        return once(path, what, call)


def _expanded(root: str) -> Path:
    try:
        return Path(root).expanduser().absolute()
    except RuntimeError as error:  # `~name` of nobody on this machine
        raise StorageError(f"{root}: no such home folder; write the path out") from error
