"""What the readers share: index files, patients across splits, and lists kept readable."""

from __future__ import annotations

import csv
import io
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
    try:
        reader = csv.reader(io.StringIO(storage.read(name).decode("utf-8-sig"), newline=""))
        lines = [(reader.line_num, [c.strip() for c in cells]) for cells in reader if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8, found something else") from error
    header = lines[0][1] if lines else []
    missing = [c for c in required if c not in header]
    if missing:
        raise DataError(
            f"{path}: expected the columns {', '.join(required)}, "
            f"missing {', '.join(missing)}; found {', '.join(header) or 'no header line'}"
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


def patients_in_two_splits(pairs: Iterable[tuple[str | None, Split]]) -> set[str]:
    """The patients that stand in more than one split, of pairs of patient and split.

    What comes back stays inside the program: messages name files or lines, and count patients.
    """
    splits: dict[str, set[Split]] = defaultdict(set)
    for patient, split in pairs:
        if patient is not None:
            splits[patient].add(split)
    return {patient for patient, found in splits.items() if len(found) > 1}
