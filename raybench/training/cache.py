"""Decoded images on disk: made once, mapped into memory by every trial that trains on them.

A cache is a folder of entries; an entry is a folder named by a digest of all that decides its
pixels, with `pixels.npy`, `targets.npy` and `header.json`. Trials on one machine share the pages.
Whoever wants the room may remove the folder at any time: it is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from raybench.training.balance import Weighable
from raybench.training.batches import Empty, Images, load_images
from raybench.training.recipe import Recipe
from raybench.training.task import Task
from raybench.types import Dataset, XrayRecord

log = logging.getLogger(__name__)

_FORMAT = 1
_HEADER = "header.json"
_ARRAYS = ("pixels", "targets")
_STALE_SECONDS = 24 * 3600.0
_PART = ".part"


def entry_key(*parts: Any) -> str:
    """32 hexadecimal digits for what decides an entry's content: plain values, in any nesting.

    The version of OpenCV, which resizes, and of the format enter.
    """
    told = json.dumps([_FORMAT, cv2.__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ImageCache:
    """Entries below a folder on a local disk.

    Args:
        folder: made where it is missing.
        limit: bytes of all entries together; what was used longest ago is removed beyond it. An
            entry that is larger alone is not kept at all.
    """

    folder: Path
    limit: int

    def get(self, key: str, n_bytes: int, make: Callable[[Empty], Images]) -> Images:
        """An entry, made where it is missing or damaged.

        Two that want the same at once: one makes it and the other waits. A killed writer leaves a
        `.part` folder that nobody reads and that is removed after a day.

        Args:
            key: see `entry_key`.
            n_bytes: about how large it will be.
            make: makes the images in arrays from what it is given (see `load_images`).

        Returns:
            Tensors over the mapped files; where the disk cannot be written, or the entry is above
            the limit, in memory as `make` makes them (the log says so).
        """
        if n_bytes > self.limit:
            log.warning(
                "decoded images of %.2f GB are not kept: training.cache_gb is %.2f",
                n_bytes / 1e9,
                self.limit / 1e9,
            )
            return make(np.empty)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f"{key}.lock"):
                found = self._read(key)
                if found is None:
                    self._make_room(key, n_bytes)
                    self._write(key, make)
                    found = self._read(key)
        except OSError as error:
            log.warning("%s: decoded images cannot be kept there: %s", self.folder, error)
            found = None
        return make(np.empty) if found is None else found

    def _read(self, key: str) -> Images | None:
        """The entry; None where there is none, or a damaged one, which is removed."""
        entry = self.folder / key
        if not entry.exists():
            return None
        try:
            header = json.loads((entry / _HEADER).read_text())
            # Copy on write: torch asks for memory that may be written, and nobody does.
            arrays = [np.load(entry / f"{name}.npy", mmap_mode="c") for name in _ARRAYS]
            if header["crc32"] != [_checksum(array) for array in arrays]:
                raise ValueError("its pixels are not those that were written")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            log.warning("%s: decoded images are damaged and made anew: %s", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry)  # its last use
        return Images(*(torch.from_numpy(array) for array in arrays))

    def _write(self, key: str, make: Callable[[Empty], Images]) -> None:
        part = self.folder / f"{key}.{os.getpid()}{_PART}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            names = iter(_ARRAYS)
            made = make(partial(_mapped, part, names))
            arrays = [made.pixels.numpy(), made.targets.numpy()]
            log.info(
                "decoded images take %.2f GB in %s",
                sum(array.nbytes for array in arrays) / 1e9,
                self.folder,
            )
            header = {"crc32": [_checksum(array) for array in arrays], "n_images": len(made)}
            (part / _HEADER).write_text(json.dumps(header))
            _flush(part)
            os.rename(part, self.folder / key)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _make_room(self, key: str, n_bytes: int) -> None:
        """Remove entries, those used longest ago first, until so many bytes more are allowed."""
        entries = []
        for path in self.folder.iterdir():
            try:
                age, size = path.stat().st_mtime, _size(path)
            except OSError:
                continue  # another trial has just removed it
            if path.name.endswith(_PART):
                if time.time() - age > _STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            elif path.is_dir() and (path / _HEADER).exists() and path.name != key:
                entries.append((age, size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total + n_bytes <= self.limit:
                break
            # Whoever has it mapped keeps its pages.
            shutil.rmtree(path, ignore_errors=True)
            total -= size


def cached_images(
    cache: ImageCache | None,
    data_digest: str,
    dataset: Dataset,
    records: Sequence[XrayRecord],
    recipe: Recipe,
    task: Task,
) -> Images:
    """The records as a resolved recipe's images, from the cache where there is one.

    Args:
        data_digest: stands for pixels and masks of the data set (`Scan.digest`).
    """
    preprocess, size = recipe.preprocessing, recipe.size
    load = partial(load_images, dataset, records, preprocess, size, task.target)
    if cache is None:
        return load()
    named = [(r.split, r.image_id, r.label) for r in records]
    key = entry_key(data_digest, named, preprocess.model_dump(), size, repr(task))
    return cache.get(key, bytes_of(len(records), size, task), lambda empty: load(empty=empty))


def bytes_of(n: int, size: tuple[int, int], task: Task) -> int:
    """What so many images take, with their masks where the task has no classes."""
    return n * size[0] * size[1] * (1 if isinstance(task, Weighable) else 2)


def _mapped(part: Path, names: Iterator[str], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    path = part / f"{next(names)}.npy"
    made: np.ndarray = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.dtype(dtype), shape=shape
    )
    # A full disk is told here, as an error; later it would end the process.
    with path.open("rb+") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return made


def _checksum(array: np.ndarray) -> int:
    told = f"{array.dtype} {array.shape}".encode()
    return zlib.crc32(array.data, zlib.crc32(told))


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else 0


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock, waited for; a process that dies lets go of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
