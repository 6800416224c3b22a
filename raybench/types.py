"""What crosses from one room to another. Plain data, no behaviour beyond looking at itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["Train", "Val", "Test"]
SPLITS: tuple[Split, ...] = ("Train", "Val", "Test")

Gray = NDArray[np.uint8]
"""A grey image, uint8 `[H, W]`, 0 to 255."""

Mask = NDArray[np.bool_]
"""A binary mask, bool `[H, W]`."""

Values = NDArray[np.float32]
"""An attribution map's values, float32 `[H, W]`, signed, not normalised."""

Sign = Literal["both", "for", "against", "absolute"]
"""Which part of a signed attribution map is looked at."""

Arrays = dict[str, NDArray[Any]]
"""What a unit of work returns: named arrays."""


@dataclass(frozen=True, slots=True)
class XrayRecord:
    """Where one X-ray and its masks lie. Paths are relative to the data set's root.

    `patient` stays inside the program: it is checked (nobody in two splits) and never
    written out.
    """

    image_id: str
    split: Split
    label: str
    image: str
    lung_mask: str | None = None
    infection_mask: str | None = None
    patient: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ChestXray:
    """One decoded X-ray: image and masks share one shape, the image's own resolution.

    A mask that the data set does not have is None; one that it has and that is empty is all False.
    """

    record: XrayRecord
    image: Gray
    lung_mask: Mask | None
    infection_mask: Mask | None


class Dataset(Protocol):
    """A family of readers: names first (cheap), pixels when asked."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the classifier's outputs."""

    @property
    def infection_class(self) -> str:
        """The class whose infection masks the explanations are held against."""

    def records(self) -> list[XrayRecord]:
        """All records, sorted by split (Train, Val, Test), class order, then name.

        Raises:
            DataError: the layout is not what it should be.
        """

    def load(self, record: XrayRecord) -> ChestXray:
        """Decode one record.

        Raises:
            BadImageError: a file does not open, a mask has another size or is not binary.
        """


@dataclass(frozen=True, slots=True)
class Subject:
    """One image as an explainer sees it.

    Attributes:
        image_id: the record's.
        image: uint8 `[h, w]` after preprocessing, on the grid where perturbations are made.
        lung_mask: bool `[H, W]` at the ground truth's resolution, or None.
        shape: `(H, W)`, the ground truth's resolution: maps are delivered at it.
        target: index of the class to explain; None for the predicted one.
        neighbours: uint8 `[n, h, w]`, training images laid over this one, for the fill that shows
            them; nearest first.
        prior: float32 `[H, W]`, 0 to 1, the share of Train's infection masks that each pixel lies
            in; None where Train has none, or the explainer does not ask for it (`needs_prior`).
    """

    image_id: str
    image: Gray
    lung_mask: Mask | None
    shape: tuple[int, int]
    target: int | None = None
    neighbours: NDArray[np.uint8] | None = None
    prior: Values | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a unit asks, where the answer is worth keeping: rows `start` to `stop` of a table.

    Attributes:
        key: names all that decides the answer, but for the model and how it is run.
    """

    key: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work, named by what it computes: it can be retried, skipped and counted.

    Attributes:
        name: unique within its job.
        payload: arrays and plain values; small enough to be shipped.
        needs_model: whether it has to run where the classifier is.
        n_forward: forward passes that it costs.
        question: names its answer in the store of answers; None where it is not kept. Every array
            of the answer then is `[stop - start, m]`.
        rows: payload entries that hold a row for each row of the question: a unit whose first rows
            are answered already can be cut to the others. None where it cannot.
    """

    name: str
    payload: Mapping[str, Any]
    needs_model: bool = True
    n_forward: int = 0
    question: Question | None = None
    rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AttributionMap:
    """What an explainer says of one image.

    Attributes:
        values: float32 `[H, W]`, signed, not normalised, at `Subject.shape`.
        target: index of the class that was explained; None where no class enters.
        n_forward: forward passes spent.
        extras: what the family adds (LIME: `superpixels`, `weights`, `uncertainty`, `r2`,
            `n_effective`).
    """

    values: Values
    target: int | None
    n_forward: int
    extras: Mapping[str, Any] = field(default_factory=dict)
