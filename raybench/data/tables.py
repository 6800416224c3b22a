"""What the readers share: index files, patients across splits, and lists kept readable."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from raybench.errors import DataError
from raybench.storage import Storage
from raybench.types import Split

LINES_SHOWN = 50
"""So many bad items are listed one by one in an error; the rest is counted."""


def first_lines(lines: Sequence[str]) -> list[str]:
    """The first `LINES_SHOWN` lines, and one that counts the others."""
    hidden = len(lines) - LINES_SHOWN
    if hidden <= 0:
        return list(lines)
    return [*lines[:LINES_SHOWN], f"... and {hidden} more ({len(lines)} in all)"]


def is_odd(name: str) -> bool:
    """Whether a name holds what would break lines or cannot be written: control characters,
    line separators, bytes that are no UTF-8."""
    return any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in name)


def read_table(
    storage: Storage, name: str, required: Sequence[str]
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header line, each with its line number (the header's is 1).

    Cells and column names are stripped of blanks; empty lines are left out. UTF-8, with or without
    a byte order mark.

    Raises:
        DataError: it is no such file, a required column is missing or stands there twice, or a
            row has more or fewer cells than the header.
        StorageError: the file cannot be read.
    """
    path = storage.path(name)
    storage.check_inside(name)
    text = _text(storage.read(name), path)
    try:
        reader = csv.reader(io.StringIO(text, newline=""))
        lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{path}: expected a CSV file, but {error}") from None
    header = lines[0][1] if lines else []
    missing = [c for c in required if c not in header]
    if missing:
        raise DataError(
            f"{path}: expected the columns {', '.join(required)}, "
            f"missing {', '.join(missing)}; {_found(header, required)}"
        )
    twice = sorted({c for c in header if header.count(c) > 1})
    if twice:
        raise DataError(f"{path}: these columns stand there more than once: {', '.join(twice)}")
    ragged = [
        f"line {n}: {len(cells)} cells" for n, cells in lines[1:] if len(cells) != len(header)
    ]
    if ragged:
        raise DataError(
            f"{path}: expected {len(header)} cells a line, as in its header:", first_lines(ragged)
        )
    return [(n, dict(zip(header, cells, strict=True))) for n, cells in lines[1:]]


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        found = "UTF-16" if utf_16 else f"something else (byte {error.start + 1})"
        raise DataError(
            f"{path}: expected a CSV file in UTF-8, found {found}: save it as UTF-8"
        ) from None


def _found(header: Sequence[str], required: Sequence[str]) -> str:
    """What stands where a header should; not the cells themselves, unless it is a header.

    A file without one begins with an image's line, which may name a patient.
    """
    if not header:
        return "found no header line"
    if any(c in header for c in required):
        return f"found {', '.join(header)}"
    for mark, said in ((";", "semicolons"), ("\t", "tabs")):
        if any(mark in c for c in header):
            return f"the first line has {said}: separate the cells by commas"
    return f"found a first line of {len(header)} cells with none of these names"


def patients_in_two_splits(pairs: Iterable[tuple[str | None, Split]]) -> set[str]:
    """The patients that stand in more than one split, of pairs of patient and split.

    What comes back stays inside the program: messages name files or lines, and count patients.
    """
    splits: dict[str, set[Split]] = defaultdict(set)
    for patient, split in pairs:
        if patient is not None:
            splits[patient].add(split)
    return {patient for patient, found in splits.items() if len(found) > 1}
