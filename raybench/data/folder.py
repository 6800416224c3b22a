"""Any folder of X-rays that a CSV file describes."""

from __future__ import annotations

import posixpath
from collections import Counter
from functools import cached_property
from typing import ClassVar, Literal, Self, cast

from pydantic import AliasChoices, Field, model_validator

from raybench.data.images import load_files
from raybench.data.patients import Shares, deal
from raybench.data.tables import first_lines, is_odd, patients_in_two_splits, read_table
from raybench.errors import DataError, StorageError, UnavailableError
from raybench.settings import Settings
from raybench.storage import Storage
from raybench.types import SPLITS, ChestXray, Split, XrayRecord

_REQUIRED = ("image", "label")
_FILES = ("image", "lung_mask", "infection_mask")

_Row = dict[str, str]
_Problem = tuple[int, str]


class Folder(Settings):
    """A folder and its index: the settings are the reader itself (`raybench.types.Dataset`).

    The index is a CSV file with a header line. Columns `image` and `label` are required; `split`
    (Train, Val or Test) may be left out, and then patients are dealt to splits; `lung_mask`,
    `infection_mask` and `patient` may be left out or empty; others are ignored. Paths are relative
    to the root and stay below it.
    """

    least_classes: ClassVar[int] = 2

    name: Literal["folder"] = Field(description="the data set's kind")
    root: str = Field(min_length=1, description="folder or fsspec URL that holds the images")
    index: str = Field("index.csv", min_length=1, description="the CSV file, below the root")
    class_names: tuple[str, ...] | None = Field(
        None,
        validation_alias=AliasChoices("classes", "class_names"),
        description="(also written `classes`) labels, in the order of the classifier's outputs; "
        "left out: every label of the index, sorted",
    )
    infection_class: str = Field(
        description="the class whose infection masks explanations are held against"
    )

    splits: Shares | None = Field(
        None,
        description="how patients are dealt to splits where the index has no column `split`; null: "
        "15% to Val, 15% to Test, seed 0",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problem = None if self.class_names is None else self._class_problem(self.class_names)
        if problem is not None:
            raise ValueError(problem)
        return self

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the classifier's outputs.

        Raises:
            DataError: they are not given and the index cannot be read.
            StorageError: the index is not there.
        """
        if self.class_names is not None:
            return self.class_names
        return tuple(sorted({row["label"] for _, row in self._rows() if row["label"]}))

    def records(self) -> list[XrayRecord]:
        """All records, by split, class order, then path. `image_id` is the image's path.

        Folders are listed; no image is opened.

        Raises:
            DataError: one that lists every mistake in the index by its line.
        """
        storage = Storage(self.root)
        rows = self._rows()
        problems = [
            *self._row_problems(rows),
            *_file_problems(storage, rows),
            *_duplicates(rows),
            *_patient_problems(rows),
        ]
        lines = [f"line {line}: {text}" for line, text in sorted(problems)]
        of_classes = self._class_problem(self.classes)
        if of_classes is not None:
            lines.insert(0, of_classes)
        if lines:
            raise DataError(
                f"{storage.path(self.index)}: mistakes to put right:", first_lines(lines)
            )
        order = {cls: i for i, cls in enumerate(self.classes)}
        records = [_record(row) for _, row in rows]
        return sorted(records, key=lambda r: (SPLITS.index(r.split), order[r.label], r.image_id))

    def load(self, record: XrayRecord) -> ChestXray:
        """Decode one record: uint8 `[H, W]` and bool masks of the same shape.

        Raises:
            BadImageError: a file does not open, a mask has another size or is not binary.
        """
        return load_files(Storage(self.root), record)

    def _class_problem(self, classes: tuple[str, ...]) -> str | None:
        if len(classes) < self.least_classes or len(set(classes)) < len(classes) or "" in classes:
            return f"classes: expected at least two different labels, found {list(classes)}"
        if self.infection_class not in classes:
            return (
                f"infection_class: expected one of the labels {', '.join(classes)}, "
                f"found {self.infection_class!r}"
            )
        return None

    def _rows(self) -> list[tuple[int, _Row]]:
        storage = Storage(self.root)
        if not storage.exists():
            raise DataError(
                f"{storage.path()}: expected the data set's root, found nothing: check its root"
            )
        if not storage.exists(self.index):
            raise DataError(
                f"{storage.path(self.index)}: expected a CSV file with the columns "
                f"{', '.join(_REQUIRED)}, found none"
            )
        rows = read_table(storage, self.index, _REQUIRED)
        if not rows:
            raise DataError(f"{storage.path(self.index)}: expected a line an image, found none")
        if "split" in rows[0][1] and self.splits is not None:
            raise DataError(
                f"{storage.path(self.index)}: has a column split, and the setting splits says how "
                "to make them: take one of the two away"
            )
        normal = [(line, _normal(row)) for line, row in rows]
        return normal if "split" in rows[0][1] else self._dealt(normal)

    def _dealt(self, rows: list[tuple[int, _Row]]) -> list[tuple[int, _Row]]:
        """The rows with splits made by patient; an image of an unknown patient is dealt alone."""
        # With a mark that no cell of a CSV file begins with: no path passes for a patient.
        patients = [row.get("patient") or f"\0{row['image']}" for _, row in rows]
        splits = deal(patients, [row["label"] for _, row in rows], self.splits or Shares())
        return [
            (line, {**row, "split": split}) for (line, row), split in zip(rows, splits, strict=True)
        ]

    def _row_problems(self, rows: list[tuple[int, _Row]]) -> list[_Problem]:
        problems: list[_Problem] = []
        for line, row in rows:
            if row["split"] not in SPLITS:
                problems.append(
                    (line, f"split: expected {', '.join(SPLITS)}, found {row['split']!r}")
                )
            if not row["label"]:
                problems.append((line, "label: expected a class name, found nothing"))
            elif row["label"] not in self.classes:
                problems.append(
                    (line, f"label: expected {', '.join(self.classes)}, found {row['label']!r}")
                )
            if not row["image"]:
                problems.append((line, "image: expected a path below the root, found nothing"))
            problems += [
                (line, f"{column}: expected a name without control characters, found {path!r}")
                for column in _FILES
                if is_odd(path := row.get(column) or "")
            ]
        return problems


def _normal(row: _Row) -> _Row:
    """The row with its paths spelt one way, so that no file passes for two."""
    paths = {c: posixpath.normpath(row[c]) for c in _FILES if row.get(c)}
    return {**row, **paths}


def _record(row: _Row) -> XrayRecord:
    return XrayRecord(
        image_id=row["image"],
        split=cast(Split, row["split"]),
        label=row["label"],
        image=row["image"],
        lung_mask=row.get("lung_mask") or None,
        infection_mask=row.get("infection_mask") or None,
        patient=row.get("patient") or None,
    )


def _file_problems(storage: Storage, rows: list[tuple[int, _Row]]) -> list[_Problem]:
    """Files that are not there. Folders are listed once each: a bucket answers that quickly."""
    listed: dict[str, set[str]] = {}
    problems: list[_Problem] = []
    for line, row in rows:
        for column in _FILES:
            path = row.get(column)
            if not path or is_odd(path):
                continue
            folder, name = posixpath.split(path)
            try:
                if folder not in listed:
                    storage.path(path)
                    listed[folder] = set(storage.names(folder))
            except UnavailableError:
                raise
            except StorageError as error:
                problems.append((line, f"{column}: {error}"))
                continue
            if name not in listed[folder]:
                problems.append((line, f"{column}: no file {path!r} below the root"))
    return problems


def _duplicates(rows: list[tuple[int, _Row]]) -> list[_Problem]:
    counts = Counter(row["image"] for _, row in rows if row["image"])
    first = {row["image"]: line for line, row in reversed(rows)}
    return [
        (line, f"image: {row['image']!r} stands in line {first[row['image']]} already")
        for line, row in rows
        if counts[row["image"]] > 1 and first[row["image"]] != line
    ]


def _patient_problems(rows: list[tuple[int, _Row]]) -> list[_Problem]:
    pairs = [(row.get("patient") or None, cast(Split, row["split"])) for _, row in rows]
    shared = patients_in_two_splits(pairs)
    return [
        (line, f"patient: that of {row['image']!r} is in more than one split, here {row['split']}")
        for line, row in rows
        if row.get("patient") in shared
    ]
