"""Tables that grow: append-only Parquet parts, one atomic file for each append.

`parts/<table>/00000007-1f3a9c02.parquet`: the number gives the order, the random end keeps two
writers from overwriting each other. Small parts are merged as they become many: a merged part
(`00000070-1f3a9c02.00000007.merged.parquet`) stands for all from its second number to its first,
and readers pass those over, so that a kill between writing it and deleting them neither loses nor
doubles a row.
"""

from __future__ import annotations

import io
import re
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.errors import StorageError
from raybench.storage import Storage

_PART = re.compile(r"^(\d{8})-[0-9a-f]{8}(?:\.(\d{8})\.merged)?\.parquet$")
_TABLE = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")
_READ_ATTEMPTS = 10
_ROWS_AT_ONCE = 32

MERGE_AT = 64
"""Parts of one append that may lie there before they are merged."""

FULL = 8 * 2**20
"""Bytes of a part that is merged no more: what a merge holds in memory does not grow."""


def parquet_bytes(frame: pd.DataFrame, where: str) -> bytes:
    """A frame as one Parquet file (zstd), without its index.

    Raises:
        StorageError: a column cannot be written; `where` names the file in the message.
    """
    try:
        return _encode(pa.Table.from_pandas(frame, preserve_index=False))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise StorageError(f"{where}: not a table that Parquet can hold ({error})") from error


def _encode(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


class Parts:
    """The parts of one table. Threads may share one; one process writes, any may read.

    Raises:
        StorageError: `table` is not a plain name.
    """

    def __init__(self, storage: Storage, table: str) -> None:
        if not _TABLE.match(table):
            raise StorageError(f"{table!r}: a table's name is letters, digits and underscores")
        self._storage = storage
        self._folder = f"parts/{table}"
        self._lock = threading.RLock()
        self._next: int | None = None
        self._n_loose = 0

    def append(self, frame: pd.DataFrame) -> None:
        """Write the rows as one part: all of them or none. A frame without rows writes nothing.

        Raises:
            StorageError: the part cannot be written.
        """
        if len(frame):
            with self._lock:
                where = self._storage.path(self._folder)
                self._storage.write(self._new_name(), parquet_bytes(frame, where))
                self._n_loose += 1
                if self._n_loose >= MERGE_AT:
                    self._merge(self._tail())

    def read(self) -> pd.DataFrame:
        """All rows in the order of writing; an empty frame without columns where there are none.

        Columns that some parts lack are filled with nulls.

        Raises:
            StorageError: a part is damaged, or a column changes its type from part to part.
        """
        tables = list(self._tables().values())
        if not tables:
            return pd.DataFrame()
        frame: pd.DataFrame = self._joined(tables).to_pandas()
        return frame

    def iterate(self, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """A few rows at a time, in the order of writing, so that a large table is never held whole.

        For the process that writes the table, or when none does: a part that another process
        merges away in the meantime is missed.

        Args:
            columns: those to read; None reads all.

        Raises:
            StorageError: a part is damaged.
        """
        for name in self._part_names():
            for start in range(0, (table := self._present(name, columns)).num_rows, _ROWS_AT_ONCE):
                frame: pd.DataFrame = table.slice(start, _ROWS_AT_ONCE).to_pandas()
                yield frame

    def _present(self, name: str, columns: Sequence[str] | None) -> Any:
        try:
            return self._decode(name, columns)
        except FileNotFoundError as error:
            where = self._storage.path(self._folder)
            raise StorageError(f"{where}: {name} vanished while being read") from error

    def compact(self) -> None:
        """Merge all parts into one, or as many as `FULL` asks for. A kill at any moment neither
        loses nor doubles a row.

        Raises:
            StorageError: a part cannot be read or written.
        """
        with self._lock:
            self._merge(self._part_names())

    def _merge(self, names: Sequence[str]) -> None:
        """Merge parts that lie next to each other, group by group; leave what is full as it is."""
        sizes = self._storage.sizes(self._folder)
        for group in _groups(names, sizes):
            tables = [self._present(name, None) for name in group]
            first, last = _span(group[0])[0], _span(group[-1])[1]
            kept = f"{last:08d}-{uuid.uuid4().hex[:8]}.{first:08d}.merged.parquet"
            merged = _encode(self._joined(tables))
            self._storage.write(f"{self._folder}/{kept}", merged)
        # What it stands for, and what an interrupted merge left.
        for name in set(filter(_PART.match, sizes)) - set(self._part_names()):
            self._storage.remove(f"{self._folder}/{name}")
        self._n_loose = 0

    def _tail(self) -> list[str]:
        """The parts of one append, and merged ones before them that are no bigger than all after.

        So each row is written anew a few times only, however many there are.
        """
        names, sizes = self._part_names(), self._storage.sizes(self._folder)
        start, total = len(names), 0
        while start and (".merged." not in names[start - 1] or sizes[names[start - 1]] <= total):
            start -= 1
            total += sizes[names[start]]
        return names[start:]

    def _new_name(self) -> str:
        if self._next is None:
            names = self._part_names()
            self._next = max((_span(name)[1] for name in names), default=-1) + 1
            self._n_loose = sum(".merged." not in name for name in names)
        name = f"{self._folder}/{self._next:08d}-{uuid.uuid4().hex[:8]}.parquet"
        self._next += 1
        return name

    def _part_names(self) -> list[str]:
        """The parts that count, in order."""
        return _that_count(
            [name for name in self._storage.names(self._folder) if _PART.match(name)]
        )

    def _tables(self) -> dict[str, Any]:
        """The parts that count, by file name, in order."""
        for attempt in range(_READ_ATTEMPTS):
            try:
                return {name: self._decode(name) for name in self._part_names()}
            except FileNotFoundError as error:
                # Another process merged between listing and reading: look again.
                if attempt == _READ_ATTEMPTS - 1:
                    where = self._storage.path(self._folder)
                    raise StorageError(f"{where}: parts vanish while being read") from error
        raise AssertionError("not reached")

    def _decode(self, name: str, columns: Sequence[str] | None = None) -> Any:
        path = f"{self._folder}/{name}"
        try:
            wanted = None if columns is None else list(columns)
            return pq.read_table(io.BytesIO(self._storage.read(path)), columns=wanted)
        except pa.ArrowException as error:
            raise StorageError(
                f"{self._storage.path(path)}: not a whole Parquet file ({error}); it was damaged "
                f"from outside: remove it and pass --resume to compute its rows again"
            ) from error
        except StorageError as error:
            if not self._storage.exists(path):
                raise FileNotFoundError(path) from error
            raise

    def _joined(self, tables: list[Any]) -> Any:
        # pandas' own notes describe the types of one part only and would mislead about the others.
        bare = [table.replace_schema_metadata(None) for table in tables]
        try:
            return pa.concat_tables(bare, promote_options="permissive")
        except pa.ArrowException as error:
            raise StorageError(
                f"{self._storage.path(self._folder)}: a column changes its type from part to part "
                f"({error})"
            ) from error


def _span(name: str) -> tuple[int, int]:
    """The first and last number of the appends that a part stands for."""
    found = _PART.match(name)
    assert found is not None
    last = int(found[1])
    return (last if found[2] is None else int(found[2])), last


def _that_count(names: Sequence[str]) -> list[str]:
    """Without those that a merged part stands for, in the order of writing."""
    found, covered = [], -1
    for name in sorted(names, key=lambda n: (_span(n)[0], -_span(n)[1], n)):
        last = _span(name)[1]
        if last <= covered:
            continue
        found.append(name)
        if ".merged." in name:
            covered = last
    return found


def _groups(names: Sequence[str], sizes: Mapping[str, int]) -> list[list[str]]:
    """Neighbours to be merged: at least two, of `FULL` bytes together at most."""
    groups: list[list[str]] = [[]]
    total = 0
    for name in names:
        if groups[-1] and total + sizes[name] > FULL:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += sizes[name]
    return [group for group in groups if len(group) > 1]
