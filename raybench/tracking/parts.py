"""Tables that grow: append-only Parquet parts, one atomic file for each append.

`parts/<table>/00000007-1f3a9c02.parquet`: the number gives the order, the random end keeps two
writers from overwriting each other. A merged part (`....merged.parquet`) lists in its metadata the
parts that it stands for; readers ignore those, so that a kill between writing it and deleting them
neither loses nor doubles a row.
"""

from __future__ import annotations

import io
import json
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.errors import StorageError
from raybench.storage import Storage

_PART = re.compile(r"^(\d{8})-[0-9a-f]{8}(\.merged)?\.parquet$")
_TABLE = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")
_REPLACES = b"raybench.replaces"
_READ_ATTEMPTS = 10
_ROWS_AT_ONCE = 32


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

    def append(self, frame: pd.DataFrame) -> None:
        """Write the rows as one part: all of them or none. A frame without rows writes nothing.

        Raises:
            StorageError: the part cannot be written.
        """
        if len(frame):
            with self._lock:
                where = self._storage.path(self._folder)
                self._storage.write(self._new_name(), parquet_bytes(frame, where))

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
        replaced: set[str] = set()
        names = self._part_names()
        for name in names:
            if ".merged." in name:
                replaced |= self._replaced_by(self._decode(name, []))
        for name in names:
            if name in replaced:
                continue
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
        """Merge all parts into one. A kill at any moment neither loses nor doubles a row.

        Raises:
            StorageError: a part cannot be read or written.
        """
        with self._lock:
            tables = self._tables()
            # What an interrupted merge left has to go before the part that lists it does.
            for name in self._storage.names(self._folder):
                if name not in tables:
                    self._storage.remove(f"{self._folder}/{name}")
            if len(tables) < 2:
                return
            merged = self._joined(list(tables.values())).replace_schema_metadata(
                {_REPLACES: json.dumps(sorted(tables)).encode()}
            )
            self._storage.write(self._new_name(".merged"), _encode(merged))
            for name in tables:
                self._storage.remove(f"{self._folder}/{name}")

    def _new_name(self, kind: str = "") -> str:
        if self._next is None:
            numbers = [int(_PART.match(name)[1]) for name in self._part_names()]  # type: ignore[index]
            self._next = max(numbers, default=-1) + 1
        name = f"{self._folder}/{self._next:08d}-{uuid.uuid4().hex[:8]}{kind}.parquet"
        self._next += 1
        return name

    def _part_names(self) -> list[str]:
        return [name for name in self._storage.names(self._folder) if _PART.match(name)]

    def _tables(self) -> dict[str, Any]:
        """The parts that count, by file name, in order."""
        for attempt in range(_READ_ATTEMPTS):
            try:
                tables = {name: self._decode(name) for name in self._part_names()}
                break
            except FileNotFoundError as error:
                # Another process merged between listing and reading: look again.
                if attempt == _READ_ATTEMPTS - 1:
                    where = self._storage.path(self._folder)
                    raise StorageError(f"{where}: parts vanish while being read") from error
        replaced: set[str] = set()
        for table in tables.values():
            replaced |= self._replaced_by(table)
        return {name: table for name, table in tables.items() if name not in replaced}

    @staticmethod
    def _replaced_by(table: Any) -> set[str]:
        return set(json.loads((table.schema.metadata or {}).get(_REPLACES, b"[]")))

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
