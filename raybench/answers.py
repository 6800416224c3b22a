"""The store of answers: what a model said to a question is kept, and never asked again.

A question is named by a digest of all that decides its answer, and its answer is a table: one row
for each perturbed image, in the order in which the question puts them. So a part of it, rows
`start` to `stop`, can be asked and kept by itself, and a longer question begins with a shorter one.
Each part is one Parquet file, written once, whole or not at all, by whoever made it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.errors import StorageError
from raybench.storage import Storage
from raybench.types import Arrays, Unit

_PART = re.compile(r"(\d+)-(\d+)\.parquet")
_IN_MEMORY = 64 * 2**20


def digest(*parts: bytes | str | np.ndarray) -> str:
    """32 hexadecimal digits that name the parts, their order, types and shapes included."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            head, body = f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part).tobytes()
        else:
            body = part if isinstance(part, bytes) else part.encode()
            head = type(part).__name__
        found.update(f"{head}:{len(body)}:".encode())
        found.update(body)
    return found.hexdigest()[:32]


@dataclass(slots=True)
class AnswerStore:
    """Answers below one folder, a local path or a bucket.

    Attributes:
        root: the folder; made when the first answer is kept.
    """

    root: str
    _files: Storage = field(init=False, repr=False)
    _recent: OrderedDict[str, Arrays] = field(init=False, repr=False, default_factory=OrderedDict)
    _size: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        self._files = Storage(self.root)

    def answer(
        self, unit: Unit, identity: str | None, run: Callable[[], Arrays]
    ) -> tuple[Arrays, int]:
        """The answer to a unit: from the store, or by running it and keeping what it says.

        Args:
            identity: names the model, its precision and its backend; of a model that has no name
                nothing is kept.
            run: does the unit.

        Returns:
            The arrays, and how many forward passes were made for them.

        Raises:
            StorageError: a file of the store cannot be read or written.
        """
        question = unit.question
        if question is None or (unit.needs_model and identity is None):
            return run(), unit.n_forward
        name = digest(question.key, identity or "") if unit.needs_model else question.key
        found = self.find(name, question.start, question.stop)
        if found is not None:
            return found, 0
        arrays = run()
        self.keep(name, question.start, question.stop, arrays)
        return arrays, unit.n_forward

    def find(self, name: str, start: int, stop: int) -> Arrays | None:
        """Rows `start` to `stop` of an answer, or None where not all of them are kept."""
        exact = self._read(_file(name, start, stop))
        if exact is not None:
            return exact
        parts: list[Arrays] = []
        at = start
        for first, last in self._parts(name):
            if first <= at < last:
                part = self._read(_file(name, first, last))
                assert part is not None
                parts.append({k: v[at - first : stop - first] for k, v in part.items()})
                at = min(last, stop)
            if at == stop:
                return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return None

    def keep(self, name: str, start: int, stop: int, arrays: Arrays) -> None:
        """Write rows `start` to `stop` of an answer.

        Raises:
            StorageError: an array has another number of rows, or the file cannot be written.
        """
        wrong = {k: v.shape for k, v in arrays.items() if v.ndim != 2 or len(v) != stop - start}
        if wrong:
            raise StorageError(f"expected arrays [{stop - start}, m] to keep, found {wrong}")
        columns = {
            key: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1])
            for key, v in arrays.items()
        }
        rows = pa.array(np.arange(start, stop, dtype=np.int32))
        out = io.BytesIO()
        pq.write_table(pa.table({"row": rows, **columns}), out, compression="zstd")
        self._files.write(_file(name, start, stop), out.getvalue())
        self._remember(_file(name, start, stop), arrays)

    def _parts(self, name: str) -> list[tuple[int, int]]:
        """First and last row of each part kept; of parts that begin alike, the longest first."""
        matches = (_PART.fullmatch(n) for n in self._files.names(_folder(name)))
        parts = ((int(m[1]), int(m[2])) for m in matches if m)
        return sorted(parts, key=lambda part: (part[0], -part[1]))

    def _read(self, file: str) -> Arrays | None:
        if file in self._recent:
            self._recent.move_to_end(file)
            return self._recent[file]
        if not self._files.exists(file):
            return None
        table = _parse(self._files.read(file), self._files.path(file))
        arrays = {}
        for key in table.column_names:
            if key != "row":
                values = table[key].combine_chunks()
                arrays[key] = values.flatten().to_numpy().reshape(len(values), -1)
        self._remember(file, arrays)
        return arrays

    def _remember(self, file: str, arrays: Arrays) -> None:
        """Keep what was read last: many settings are fitted to the same answers in a row."""
        self._recent[file] = arrays
        self._size += _bytes(arrays.values())
        while self._size > _IN_MEMORY and len(self._recent) > 1:
            _, dropped = self._recent.popitem(last=False)
            self._size -= _bytes(dropped.values())


def _parse(data: bytes, path: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{path}: expected a Parquet file of answers, it cannot be read ({error}); remove it "
            "and its rows are asked again"
        ) from error


def _bytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


def _folder(name: str) -> str:
    return f"{name[:2]}/{name}"


def _file(name: str, start: int, stop: int) -> str:
    return f"{_folder(name)}/{start:08d}-{stop:08d}.parquet"
