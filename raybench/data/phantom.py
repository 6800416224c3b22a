"""A data set of chest X-rays that are drawn from a seed: no download, and the truth is exact.

Every phantom is made in memory when it is asked for. Anatomy, exposure and noise come from a stream
keyed by (seed, split, number) and lesions from another one, so the phantoms of one number, one a
class, are the same body: nothing but the lesions tells the classes apart (Normal is the COVID-19
phantom before it fell ill). A `marker` adds a shortcut of known place.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

import cv2
import numpy as np
from pydantic import Field, model_validator

from raybench.data.phantom_canvas import Plane
from raybench.data.phantom_draw import Scene, draw_scene
from raybench.data.phantom_lesions import consolidation, draw_marker, ground_glass
from raybench.errors import BadImageError
from raybench.settings import Settings
from raybench.storage import Storage
from raybench.types import SPLITS, ChestXray, Gray, Mask, Split, XrayRecord

PhantomClass = Literal["COVID-19", "Non-COVID", "Normal"]

_BASE = "Infection Segmentation Data/Infection Segmentation Data"
_FILES: dict[str, str] = {
    "COVID-19": "covid_{}.png",
    "Non-COVID": "non_COVID ({}).png",
    "Normal": "Normal ({}).png",
}
_CLASSES: tuple[PhantomClass, ...] = ("COVID-19", "Non-COVID", "Normal")
_ANATOMY, _LESIONS = 0, 1


class Phantom(Settings):
    """Phantom chest X-rays: the settings are the reader itself (`raybench.types.Dataset`).

    COVID-19 has several ground-glass patches at the edge of both lungs, and its infection mask is
    exactly the pixels that they changed; Non-COVID has one dense consolidation in a zone of one
    lung, Normal nothing, and their infection masks are empty, as in COVID-QU-Ex. A phantom depends
    on `seed`, split, class and number alone, not on how many there are nor on the order of loading;
    at another `size` it is another picture of a similar body. Each phantom counts as a patient.
    """

    least_classes: ClassVar[int] = 2

    name: Literal["phantom"] = Field(description="the data set's kind")
    n_train: int = Field(80, ge=1, description="images of each class in Train")
    n_val: int = Field(20, ge=1, description="images of each class in Val")
    n_test: int = Field(16, ge=1, description="images of each class in Test")
    size: int = Field(256, ge=64, le=1024, description="width and height in pixels")
    seed: int = Field(0, ge=0, description="what all phantoms are drawn from")
    classes: tuple[PhantomClass, ...] = Field(
        _CLASSES,
        description="classes to draw, in the order of the classifier's outputs; COVID-19 and at "
        "least one of Non-COVID, Normal",
    )
    lesions: bool = Field(True, description="draw lesions; without them the classes are the same")
    marker: bool = Field(
        False, description="draw a glyph in a corner that tells the class: a shortcut to be found"
    )
    contrast: float = Field(
        1.0, ge=0.2, le=1.5, description="opacity of the lesions: lower is harder to learn"
    )

    @model_validator(mode="after")
    def _usable_classes(self) -> Self:
        if len(self.classes) < self.least_classes or len(set(self.classes)) < len(self.classes):
            raise ValueError(
                f"classes: expected at least two different classes, found {list(self.classes)}"
            )
        if self.infection_class not in self.classes:
            raise ValueError(
                f"classes: expected {self.infection_class} among them (its infection masks are "
                f"what explanations are held against), found {list(self.classes)}"
            )
        return self

    @property
    def infection_class(self) -> str:
        """COVID-19: the only class with infection masks."""
        return "COVID-19"

    def records(self) -> list[XrayRecord]:
        """All records by split, class order, then file name; nothing is drawn for it."""
        counts = dict(zip(SPLITS, (self.n_train, self.n_val, self.n_test), strict=True))
        made = [
            self._record(split, cls, number)
            for split in SPLITS
            for cls in self.classes
            for number in range(1, counts[split] + 1)
        ]
        order = {cls: place for place, cls in enumerate(self.classes)}
        return sorted(made, key=lambda r: (SPLITS.index(r.split), order[_cls(r)], r.image_id))

    def load(self, record: XrayRecord) -> ChestXray:
        """Draw one record: uint8 `[size, size]` and bool masks of the same shape.

        Raises:
            BadImageError: the record is not of this data set.
        """
        cls, number = self._known(record)
        scene = draw_scene(self.size, self._stream(record.split, number, _ANATOMY))
        change = self._change(scene, record.split, cls, number)
        image = np.round(scene.noisy + change).astype(np.uint8)
        if self.marker:
            image[draw_marker(self.size, _CLASSES.index(cls))] = 255
        return ChestXray(
            record=record,
            image=image,
            lung_mask=scene.lung_mask,
            infection_mask=(change > 0) & (cls == self.infection_class),
        )

    def _change(self, scene: Scene, split: Split, cls: PhantomClass, number: int) -> Plane:
        """What the lesions add to the scene in grey levels, float32 `[size, size]`."""
        if not self.lesions or cls == "Normal":
            return np.zeros_like(scene.noisy)
        draw = ground_glass if cls == "COVID-19" else consolidation
        return draw(scene, self._stream(split, number, _LESIONS), self.contrast)

    def _stream(self, split: Split, number: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(split), number, purpose])

    def _record(self, split: Split, cls: PhantomClass, number: int) -> XrayRecord:
        file = _FILES[cls].format(number)
        folder = f"{_BASE}/{split}/{cls}"
        return XrayRecord(
            image_id=f"{split}/{cls}/{file}",
            split=split,
            label=cls,
            image=f"{folder}/images/{file}",
            lung_mask=f"{folder}/lung masks/{file}",
            infection_mask=f"{folder}/infection masks/{file}",
            patient=f"phantom-{self.seed}-{split}-{cls}-{number}",
        )

    def _known(self, record: XrayRecord) -> tuple[PhantomClass, int]:
        """The record's class and number, once it is sure that this data set made it."""
        counts = {"Train": self.n_train, "Val": self.n_val, "Test": self.n_test}
        digits = re.findall(r"\d+", record.image_id.rpartition("/")[2])
        number = int(digits[0]) if len(digits) == 1 else 0
        if record.label in self.classes and 1 <= number <= counts.get(record.split, 0):
            cls = _cls(record)
            if record == self._record(record.split, cls, number):
                return cls, number
        raise BadImageError(
            f"{record.image_id}: expected a record of this phantom data set (classes "
            f"{', '.join(self.classes)}; {self.n_train} Train, {self.n_val} Val and {self.n_test} "
            f"Test images a class; seed {self.seed}), found another; take it from records()"
        )


def _cls(record: XrayRecord) -> PhantomClass:
    return _CLASSES[_CLASSES.index(record.label)]


def marker_mask(dataset: Phantom, record: XrayRecord) -> Mask:
    """The pixels of the record's marker, bool `[size, size]`; all False without `marker`.

    They are 255 in the image, where nothing else is above 253, and never in a lung mask.

    Raises:
        BadImageError: the record is not of this data set.
    """
    cls, _ = dataset._known(record)
    if not dataset.marker:
        return np.zeros((dataset.size, dataset.size), np.bool_)
    return draw_marker(dataset.size, _CLASSES.index(cls))


def write_phantoms(dataset: Phantom, storage: Storage) -> None:
    """Write all phantoms as PNG in COVID-QU-Ex's layout: read back, they are the same arrays.

    Masks are 0 and 255, 8 bits. Files that are there already are replaced; others stay.

    Raises:
        StorageError: a file cannot be written.
    """
    for record in dataset.records():
        xray = dataset.load(record)
        storage.write(record.image, _png(xray.image))
        for path, mask in (
            (record.lung_mask, xray.lung_mask),
            (record.infection_mask, xray.infection_mask),
        ):
            if path is not None and mask is not None:
                storage.write(path, _png(mask.astype(np.uint8) * np.uint8(255)))


def _png(image: Gray) -> bytes:
    done, data = cv2.imencode(".png", image)
    if not done:
        raise BadImageError(f"a phantom of shape {image.shape} could not be encoded as PNG")
    return bytes(data.tobytes())
