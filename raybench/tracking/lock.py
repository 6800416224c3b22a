"""Advisory locks (flock): held by an open descriptor, so a process that dies lets go of them."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raybench.errors import RunFolderError, TrackingError

_GLANCE = 0.05
"""Seconds to wait for one who only looks, as `is_held` does."""


def take(path: Path) -> int:
    """Lock the file `path`, made where it is missing, and write into it who holds it.

    Returns:
        The descriptor that holds the lock; `release` lets go of it.

    Raises:
        RunFolderError: another sweep holds it, or the folder cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunFolderError(
            f"{path.parent}: cannot be written ({error.strerror}); choose another output folder"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_GLANCE)  # somebody may only have looked who holds it
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace") or "unknown process"
        os.close(descriptor)
        raise RunFolderError(
            f"{path.parent}: another sweep is working in this folder ({holder}); wait until it "
            f"ends, stop it, or choose another output folder"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise RunFolderError(
            f"{path}: cannot be locked ({error.strerror}); choose an output folder on a file "
            f"system that has locks"
        ) from error
    return descriptor


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of `path`; looking takes microseconds.

    Raises:
        RunFolderError: the file is there and cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be locked ({error.strerror})") from error
    finally:
        os.close(descriptor)
    return False


def release(descriptor: int) -> None:
    """Let go of a lock."""
    os.close(descriptor)


@contextmanager
def one_at_a_time(folder: Path, patience: float = 30.0) -> Iterator[None]:
    """Hold the folder itself, so that two projections do not both make the same MLflow runs.

    The folder needs to be readable only. `.lock` is another matter: the sweep holds it all along.

    Raises:
        TrackingError: another projection held it for `patience` seconds.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TrackingError(
                        f"{folder}: another projection to MLflow has been at work for "
                        f"{patience:.0f} s; run this again when it is done"
                    ) from error
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)
