"""CheXlocalize (Saporta et al. 2022): CheXpert's Val and Test with radiologists' segmentations.

```
<root>/CheXpert/{val,test}/patient64541/study1/view1_frontal.jpg
<root>[/CheXlocalize]/gt_segmentations_{val,test}.json
```

A JSON file holds, by image and finding, `{"size": [h, w], "counts": "..."}` (see `rle`); the key
of the image above is `patient64541_study1_view1_frontal`.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from raybench.data.images import read_gray, read_mask
from raybench.data.rle import decode, runs_of
from raybench.data.tables import first_lines, patients_in_two_splits
from raybench.errors import BadImageError, DataError
from raybench.settings import Settings
from raybench.storage import Storage
from raybench.types import ChestXray, Split, XrayRecord

FINDINGS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Airspace Opacity", "Edema"),
    *("Consolidation", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Support Devices"),
)
"""What CheXlocalize's radiologists drew."""

_SPLITS: tuple[tuple[Split, str], ...] = (("Val", "val"), ("Test", "test"))
_KEY = re.compile(r"(patient[0-9]+)_(study[0-9]+)_(view[0-9]+_[a-z]+)")

_Table = dict[str, dict[str, Any]]


class CheXlocalize(Settings):
    """The CheXlocalize reader: its settings are the reader itself (`raybench.types.Dataset`).

    The images are those of the segmentation files. One where at least one of `findings` is drawn
    is of the class `infection_class`, and their union is its infection mask; every other one is of
    `absent_class`. There is no Train split and there are no lung masks.

    CheXpert's paths hold patient numbers, so `image_id` is `<split>/<12 hexadecimal digits>` (of
    the SHA-256 of the image's key), and no message holds a path or a key; `key_of` leads back.
    """

    name: Literal["chexlocalize"] = Field(description="the data set's kind")
    root: str = Field(min_length=1, description="folder or fsspec URL that holds 'CheXpert'")
    findings: tuple[str, ...] = Field(
        ("Airspace Opacity", "Consolidation"),
        description="what counts as infection, drawn alone or together; some of "
        + ", ".join(FINDINGS),
    )
    infection_class: str = Field(
        "Finding", min_length=1, description="name of the class where one of findings is drawn"
    )
    absent_class: str = Field(
        "No Finding", min_length=1, description="name of the class where none of them is drawn"
    )
    lung_masks: str | None = Field(
        None,
        description="folder of lung masks, PNG, by the images' paths below the root; null: none",
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = [f for f in self.findings if f not in FINDINGS]
        if unknown or not self.findings or len(set(self.findings)) < len(self.findings):
            found = ", ".join(map(repr, unknown)) or str(list(self.findings))
            raise ValueError(
                f"findings: expected different names among {', '.join(FINDINGS)}, found {found}"
            )
        if self.absent_class == self.infection_class:
            raise ValueError(
                f"absent_class: expected another name than infection_class, "
                f"found {self.absent_class!r} for both"
            )
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """The class with a finding, then the one without."""
        return (self.infection_class, self.absent_class)

    def records(self) -> list[XrayRecord]:
        """All records by split, class, then `image_id`; no image is opened.

        Raises:
            DataError: there is no segmentation file, one is not as described above, or a patient
                is in both splits.
        """
        records: list[XrayRecord] = []
        for split, lower in _SPLITS:
            file = self._file(lower)
            if file is not None:
                table = _table(self.root, file)
                records += [self._record(split, lower, key, table[key]) for key in table]
        if not records:
            raise DataError(
                f"{Storage(self.root).path()}: expected gt_segmentations_val.json or "
                "gt_segmentations_test.json in it or in its folder CheXlocalize, with images in "
                "them, found none: check its root"
            )
        shared = patients_in_two_splits((r.patient, r.split) for r in records)
        if shared:
            raise DataError(
                f"{Storage(self.root).path()}: expected each patient in one split, found "
                f"{len(shared)} in both val and test; their images:",
                first_lines([r.image_id for r in records if r.patient in shared]),
            )
        order = [split for split, _ in _SPLITS]
        rank = self.classes.index
        return sorted(records, key=lambda r: (order.index(r.split), rank(r.label), r.image_id))

    def load(self, record: XrayRecord) -> ChestXray:
        """Decode one record: uint8 `[H, W]` and bool masks of the same shape.

        Raises:
            BadImageError: a file does not open, or a mask cannot be decoded or has another size.
        """
        image = self._opened(Storage(self.root), record, None)
        shape = (image.shape[0], image.shape[1])
        lungs = None
        if self.lung_masks is not None:
            lungs = self._opened(Storage(self.lung_masks), record, shape)
        lower = record.split.lower()
        file = self._file(lower)
        found = {} if file is None else _table(self.root, file).get(_key(record.image), {})
        infection = np.zeros(shape, np.bool_)
        for finding in self.findings:
            if finding not in found:
                continue
            drawn = found[finding]
            try:
                if not isinstance(drawn, dict):
                    raise BadImageError("expected size and counts, found something else")
                infection |= decode(drawn.get("size"), drawn.get("counts"), shape)
            except BadImageError as error:
                where = f"{Storage(self.root).path(str(file))}: {record.image_id}, {finding}"
                raise BadImageError(f"{where}: {error}") from None
        return ChestXray(record, image, lungs, infection)

    def key_of(self, image_id: str) -> str:
        """The key in the segmentation file, which holds a patient number, of an `image_id`.

        Raises:
            DataError: there is no such image.
        """
        for record in self.records():
            if record.image_id == image_id:
                return _key(record.image)
        raise DataError(f"{image_id}: no image of this data set")

    def _opened(self, storage: Storage, record: XrayRecord, shape: tuple[int, int] | None) -> Any:
        """An image, or a lung mask where a shape is given; errors name it by its `image_id`."""
        name = record.image if shape is None else str(record.lung_mask)
        try:
            return read_gray(storage, name) if shape is None else read_mask(storage, name, shape)
        except BadImageError as error:
            what = "image" if shape is None else "lung mask"
            text = str(error).replace(storage.path(name), what).replace(name, what)
            text = re.sub(r"patient\d+\S*", what, text)
        # Outside the handler: the error that names the patient is not even chained.
        raise BadImageError(f"{record.image_id}: {text}")

    def _file(self, lower: str) -> str | None:
        storage, name = Storage(self.root), f"gt_segmentations_{lower}.json"
        places = (name, f"CheXlocalize/{name}")
        return next((place for place in places if storage.exists(place)), None)

    def _record(self, split: Split, lower: str, key: str, drawn: dict[str, Any]) -> XrayRecord:
        infected = any(_is_drawn(drawn[f]) for f in self.findings if f in drawn)
        patient, study, view = key.split("_", 2)
        path = f"CheXpert/{lower}/{patient}/{study}/{view}"
        return XrayRecord(
            image_id=f"{split}/{hashlib.sha256(key.encode()).hexdigest()[:12]}",
            split=split,
            label=self.infection_class if infected else self.absent_class,
            image=f"{path}.jpg",
            lung_mask=None if self.lung_masks is None else f"{path}.png",
            infection_mask=f"{path}.jpg",  # stands in the segmentation file, by this image's key
            patient=patient,
        )


def _key(path: str) -> str:
    return "_".join(path.removesuffix(".jpg").split("/")[2:])


def _is_drawn(entry: Any) -> bool:
    """Whether a mask holds a pixel. A broken one counts: opening it says what is wrong."""
    try:
        height, width = entry["size"]
        return any(runs_of(entry["counts"], int(height) * int(width))[1::2])
    except (BadImageError, KeyError, OverflowError, TypeError, ValueError):
        return True


@lru_cache(maxsize=4)
def _table(root: str, file: str) -> _Table:
    """A segmentation file, read once a process."""
    storage = Storage(root)
    try:
        table = json.loads(storage.read(file))
    except (ValueError, RecursionError):
        raise DataError(
            f"{storage.path(file)}: expected a JSON file, found something else"
        ) from None
    if not isinstance(table, dict) or not all(isinstance(v, dict) for v in table.values()):
        raise DataError(f"{storage.path(file)}: expected findings by image, found something else")
    wrong = [n for n, key in enumerate(table, 1) if not _KEY.fullmatch(key)]
    if wrong:  # not shown: a key may name a patient
        raise DataError(
            f"{storage.path(file)}: expected keys like patient1_study1_view1_frontal, found "
            f"{len(wrong)} others, the first is number {wrong[0]} of {len(table)}"
        )
    return table
