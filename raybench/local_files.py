"""Writing files of this machine: whole or not at all, and seen onto the disk."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from pathlib import Path

from raybench.errors import StorageError, UnavailableError


def write_local(path: Path, data: bytes) -> None:
    """Write a whole file, atomically; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def append_local(path: Path, data: bytes) -> None:
    """Add to a file and see it onto the disk; nothing is added where not all of it can be."""
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            # A full disk takes the first bytes and says so by a short count, not by an error.
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)  # half a line would spoil the next one too
            raise


_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: Exception, path: str | Path, what: str) -> StorageError:
    """An error as ours; of a full disk, which whoever writes next will meet too, of its own kind.

    Args:
        what: participle of what cannot be done (`written`).
    """
    is_full = isinstance(error, OSError) and error.errno in _FULL
    kind = UnavailableError if is_full else StorageError
    return kind(f"{path}: cannot be {what} ({_why(error, path)})")


def _why(error: Exception, path: str | Path) -> str:
    """The reason; of a full disk also how much is free, and what to do."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return str(error)
    there = next(p for p in Path(path).parents if p.exists())
    free = shutil.disk_usage(there).free / 2**20
    return (
        f"{error.strerror}: {free:.1f} MiB are free in {there}; what was finished is kept: make "
        "space there and pass --resume"
    )
