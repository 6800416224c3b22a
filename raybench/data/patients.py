"""Which images belong together, and how they are dealt to splits.

What is made here of patients' ids is numbers and splits, in memory alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from raybench.settings import Settings
from raybench.types import Split, XrayRecord

_DEALT: tuple[Split, ...] = ("Val", "Test", "Train")


class Shares(Settings):
    """How much of the images goes into which split; Train gets the rest."""

    val: float = Field(0.15, gt=0, lt=1, description="share of each class's images in Val")
    test: float = Field(0.15, gt=0, lt=1, description="share of each class's images in Test")
    seed: int = Field(0, ge=0, description="which patients; the same seed deals alike")

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val ({self.val}) and test ({self.test}) must leave a share for Train: expected "
                "less than 1 together"
            )
        return self


def patient_groups(records: Sequence[XrayRecord]) -> NDArray[np.int64]:
    """A number for each record, int64 `[n]`: equal for images of one patient.

    An image whose patient is not known is a group of its own. Numbers follow the order of the
    records, so that they say nothing of a patient's id.
    """
    numbers: dict[Hashable, int] = {}
    keys = ((r.image_id,) if r.patient is None else r.patient for r in records)
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def deal(patients: Sequence[str], labels: Sequence[str], shares: Shares) -> list[Split]:
    """A split for each image: all images of a patient in one, classes in each as in the whole.

    First each class, the rarest first, gets a patient in Val, in Test and in Train, as far as it
    has patients. Then patients are dealt, those with most images first, each to the split where
    the squared distances between images dealt and images due, over images due and summed over
    classes, grow least. Of equal patients the seed decides. So a class of at least three patients,
    each with images of that class alone, is in every split; shares are met as nearly as whole
    patients allow, but they are not searched for the best of all deals.

    Args:
        patients: of each image; a name of its own where the patient is not known.
        labels: of each image.
        shares: what each split is due.

    Returns:
        Of each image. It does not depend on the order of the images.
    """
    names = sorted(set(patients), key=lambda name: _lot(shares.seed, name))
    classes = sorted(set(labels))
    place = {name: i for i, name in enumerate(names)}
    column = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, ([place[p] for p in patients], [column[x] for x in labels]), 1)
    parts = np.array([shares.val, shares.test, 1 - shares.val - shares.test])
    found = _deal(counts, parts[:, None] * counts.sum(axis=0))
    return [_DEALT[found[place[name]]] for name in patients]


def _deal(counts: NDArray[np.float64], due: NDArray[np.float64]) -> NDArray[np.int64]:
    """The split of each patient, int64 `[n]`; `counts` are `[n, C]`, `due` is `[3, C]`."""
    found = np.full(len(counts), -1)
    dealt = np.zeros_like(due)

    def growth(patients: NDArray[np.int64]) -> NDArray[np.float64]:
        more = counts[patients][:, None]
        return np.asarray((more * (more + 2 * (dealt - due)) / due).sum(axis=2), np.float64)

    def give(patient: int, split: int) -> None:
        found[patient] = split
        dealt[split] += counts[patient]

    for cls in np.argsort((counts > 0).sum(axis=0), kind="stable"):
        for split in range(len(due)):
            free = np.flatnonzero((found < 0) & (counts[:, cls] > 0))
            if len(free) and not dealt[split, cls]:
                give(free[growth(free)[:, split].argmin()], split)
    for patient in np.argsort(-counts.sum(axis=1), kind="stable"):
        if found[patient] < 0:
            give(patient, int(growth(np.array([patient]))[0].argmin()))
    return found.astype(np.int64)


def _lot(seed: int, name: str) -> bytes:
    """What orders patients: other patients, and more of them, leave the order of two as it is."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
