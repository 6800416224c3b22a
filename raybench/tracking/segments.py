"""A log in a bucket: objects cannot be added to, so every line is one, and they are merged.

`events/00000007-1f3a9c02.jsonl`: the number gives the order. A merged object
(`....merged.jsonl`) stands for all that have its number or a lower one; readers pass those over, so
that a kill between writing it and removing them neither loses nor doubles a line.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from raybench.errors import StorageError
from raybench.storage import Storage

_NAME = re.compile(r"^(\d{8})-[0-9a-f]{8}(\.merged)?\.jsonl$")
_ATTEMPTS = 10

MERGE_AT = 64
"""Objects that may lie there before they are merged."""


@dataclass(slots=True)
class Segments:
    """The objects of one log; one process writes, any may read.

    Attributes:
        folder: below the storage's root.
    """

    storage: Storage
    folder: str
    _known: dict[str, bytes] = field(init=False, repr=False, default_factory=dict)
    _next: int | None = field(init=False, repr=False, default=None)

    def append(self, line: str) -> None:
        """Add one line; it is in the bucket when this returns.

        Raises:
            StorageError: it cannot be written.
        """
        if self._next is None:
            self._next = max((_number(name) for name in self._names()), default=-1) + 1
        self._write(line.encode() + b"\n")
        if len(self._known) >= MERGE_AT:
            self.merge()

    def read(self) -> bytes:
        """All lines in the order of writing. Only what is new since the last call is fetched.

        Raises:
            StorageError: an object cannot be read.
        """
        for _ in range(_ATTEMPTS):
            names = self._names()
            try:
                # They never change: one that was read once need not be read again.
                self._known = {n: self._known.get(n) or self._fetch(n) for n in names}
            except FileNotFoundError:
                continue  # another process merged between listing and reading: look again
            return b"".join(self._known[name] for name in names)
        raise StorageError(f"{self.storage.path(self.folder)}: parts vanish while being read")

    def merge(self) -> None:
        """Make one object of all. A kill at any moment neither loses nor doubles a line.

        Raises:
            StorageError: an object cannot be read, written or removed.
        """
        whole = self.read()
        if len(self._known) < 2:
            return
        if self._next is None:
            self._next = max(_number(name) for name in self._known) + 1
        kept = self._write(whole, ".merged")
        for name in self.storage.names(self.folder):
            if name != kept and _NAME.match(name):
                self.storage.remove(f"{self.folder}/{name}")
        self._known = {kept: whole}

    def _write(self, data: bytes, kind: str = "") -> str:
        name = f"{self._next:08d}-{uuid.uuid4().hex[:8]}{kind}.jsonl"
        self.storage.write(f"{self.folder}/{name}", data)
        self._next = (self._next or 0) + 1
        self._known[name] = data
        return name

    def _names(self) -> list[str]:
        """The objects that count, in order."""
        every = [name for name in self.storage.names(self.folder) if _NAME.match(name)]
        merged = [name for name in every if ".merged." in name][-1:]
        return merged + [n for n in every if not merged or _number(n) > _number(merged[0])]

    def _fetch(self, name: str) -> bytes:
        path = f"{self.folder}/{name}"
        try:
            return self.storage.read(path)
        except StorageError as error:
            if not self.storage.exists(path):
                raise FileNotFoundError(path) from error
            raise


def _number(name: str) -> int:
    found = _NAME.match(name)
    assert found is not None
    return int(found[1])
