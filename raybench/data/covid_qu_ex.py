"""COVID-QU-Ex as Kaggle serves it (Tahir et al. 2021), and anything laid out like it.

```
<root>/Infection Segmentation Data[/Infection Segmentation Data]/
    {Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks,infection masks}/
<root>/Lung Segmentation Data[/Lung Segmentation Data]/
    {Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks}/
<root>/index.csv        (optional: split,cls,name,patient)
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from raybench.data.images import load_files
from raybench.data.tables import first_lines, is_odd, patients_in_two_splits, read_table
from raybench.errors import DataError
from raybench.settings import Settings
from raybench.storage import Storage
from raybench.types import SPLITS, ChestXray, Split, XrayRecord

KNOWN_CLASSES = ("COVID-19", "Non-COVID", "Normal")
OUTER = {"infection": "Infection Segmentation Data", "lung": "Lung Segmentation Data"}
INDEX = "index.csv"
_INDEX_COLUMNS = ("split", "cls", "name", "patient")
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")

_Patients = Mapping[tuple[str, str, str], str]


class CovidQuEx(Settings):
    """The COVID-QU-Ex reader: its settings are the reader itself (`raybench.types.Dataset`).

    A folder that holds one split only is read too; `raybench.data.scan.check` says what is missing
    for a sweep. An image's mask is None where the class has no such folder of masks in that split.
    Patients are known only where an `index.csv` at the root names them.
    """

    least_classes: ClassVar[int] = 2

    name: Literal["covid_qu_ex"] = Field(description="the data set's kind")
    root: str = Field(
        min_length=1,
        description="folder or fsspec URL that holds 'Infection Segmentation Data'",
    )
    subset: Literal["infection", "lung"] = Field(
        "infection",
        description="infection: the 5,826 images with infection masks; lung: all 33,920, "
        "with lung masks only",
    )
    classes: tuple[str, ...] = Field(
        KNOWN_CLASSES,
        description="classes to read, in the order of the classifier's outputs; two or three of "
        + ", ".join(KNOWN_CLASSES),
    )
    infection_class: str = Field(
        "COVID-19", description="the class whose infection masks explanations are held against"
    )

    @model_validator(mode="after")
    def _known_classes(self) -> Self:
        unknown = [c for c in self.classes if c not in KNOWN_CLASSES]
        if unknown:
            raise ValueError(
                f"classes: expected names among {', '.join(KNOWN_CLASSES)}, "
                f"found {', '.join(map(repr, unknown))}"
            )
        if len(self.classes) < self.least_classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes: expected at least two different classes, found {list(self.classes)}"
            )
        if self.infection_class not in self.classes:
            raise ValueError(
                f"infection_class: expected one of the classes {', '.join(self.classes)}, "
                f"found {self.infection_class!r}"
            )
        return self

    def records(self) -> list[XrayRecord]:
        """All records of the splits that are there, by split, class order, then file name.

        Only folders are listed; no file but the index is opened. `image_id` is
        `<split>/<class>/<file name>`.

        Raises:
            DataError: the root or the layout is not as described above, a class has no image in a
                split that is there, a folder of masks lacks one, or a patient is in two splits.
        """
        storage = Storage(self.root)
        base = self._base(storage)
        splits = [s for s in SPLITS if s in storage.names(base)]
        if not splits:
            found = ", ".join(map(repr, storage.names(base)[:10])) or "nothing"
            raise DataError(
                f"{storage.path(base)}: expected at least one of the folders "
                f"{', '.join(SPLITS)}, found {found}"
            )
        patients = _patients(storage)
        records: list[XrayRecord] = []
        problems: list[str] = []
        for split in splits:
            for cls in self.classes:
                made, wrong = _class_records(storage, base, split, cls, patients)
                records += made
                problems += wrong
        if problems:
            raise DataError(f"{storage.path(base)} is not complete:", first_lines(problems))
        _check_patients(storage, records)
        return records

    def load(self, record: XrayRecord) -> ChestXray:
        """Decode one record: uint8 `[H, W]` and bool masks of the same shape.

        Raises:
            BadImageError: a file does not open, a mask has another size or is not binary.
        """
        return load_files(Storage(self.root), record)

    def _base(self, storage: Storage) -> str:
        outer = OUTER[self.subset]
        for base in (f"{outer}/{outer}", outer):
            if storage.is_dir(base):
                return base
        if not storage.exists():
            raise DataError(
                f"{storage.path()}: expected the data set's root, found nothing: check its root"
            )
        names = storage.names()
        hint = ""
        if set(names) & set(SPLITS):
            hint = f"; set root to the folder above '{outer}', not to the one that holds the splits"
        raise DataError(
            f"{storage.path()}: expected a folder {outer!r} in it (subset: {self.subset}), "
            f"found {', '.join(map(repr, names[:10])) or 'nothing'}{hint}"
        )


def _image_names(storage: Storage, folder: str) -> list[str]:
    return [
        n
        for n in storage.names(folder)
        if n.lower().endswith(_IMAGE_ENDINGS) and not n.startswith(".")
    ]


def _class_records(
    storage: Storage, base: str, split: Split, cls: str, patients: _Patients
) -> tuple[list[XrayRecord], list[str]]:
    """The records of one class in one split, and one line for each thing missing."""
    folder = f"{base}/{split}/{cls}"
    parts = storage.names(folder)
    images = _image_names(storage, f"{folder}/images")
    if not images:
        return [], [f"{split}/{cls}/images: expected images (PNG or JPEG), found none"]
    problems = [
        f"{split}/{cls}/images: expected names without control characters, found {n!r}"
        for n in images
        if is_odd(n)
    ]
    masks: dict[str, bool] = {}
    for kind in ("lung masks", "infection masks"):
        masks[kind] = kind in parts
        if masks[kind]:
            there = set(storage.names(f"{folder}/{kind}"))
            problems += [f"{split}/{cls}/{kind}: no {n!r}" for n in images if n not in there]
    records = [
        XrayRecord(
            image_id=f"{split}/{cls}/{n}",
            split=split,
            label=cls,
            image=f"{folder}/images/{n}",
            lung_mask=f"{folder}/lung masks/{n}" if masks["lung masks"] else None,
            infection_mask=f"{folder}/infection masks/{n}" if masks["infection masks"] else None,
            patient=patients.get((split, cls, n)),
        )
        for n in images
    ]
    return records, problems


def _patients(storage: Storage) -> _Patients:
    """Patients by (split, class, file name); images that the index leaves out have none."""
    if INDEX not in storage.names():
        return {}
    patients: dict[tuple[str, str, str], str] = {}
    conflicts: list[str] = []
    for line, row in read_table(storage, INDEX, _INDEX_COLUMNS):
        if not row["patient"]:
            continue
        key = (row["split"], row["cls"], row["name"])
        if patients.setdefault(key, row["patient"]) != row["patient"]:
            conflicts.append(f"line {line}: {'/'.join(key)}")
    if conflicts:
        raise DataError(
            f"{storage.path(INDEX)}: these lines give an image another patient than a line above:",
            first_lines(conflicts),
        )
    return patients


def _check_patients(storage: Storage, records: list[XrayRecord]) -> None:
    shared = patients_in_two_splits((r.patient, r.split) for r in records)
    if shared:
        files = [r.image_id for r in records if r.patient in shared]
        raise DataError(
            f"{storage.path(INDEX)}: expected each patient in one split, found {len(shared)} in "
            "more than one: move the images of a patient into the same split. The files:",
            first_lines(files),
        )
