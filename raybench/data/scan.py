"""Looking at every image once before anything costly starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raybench.data.shortcuts import statistics_of
from raybench.errors import BadImageError, DataError
from raybench.types import ChestXray, Dataset, Split, XrayRecord

OnBadImage = Literal["stop", "skip"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scan:
    """What looking at every image found.

    Attributes:
        records: those that can be used, in the data set's order.
        bad: one message for each that was skipped.
        with_infection: `image_id`s whose infection mask has at least one pixel.
        digest: 16 hexadecimal digits that stand for all usable images: names, labels, splits,
            pixels and masks. The decoded pixels are what is hashed, so that a file written anew
            without loss, or a data set without files, keeps its digest. Patients do not enter.
        pixels: by `image_id` and split, a digest of the decoded X-ray alone.
        statistics: `shortcuts.statistics_of` the usable images of Train and Val, by `image_id`.
    """

    records: tuple[XrayRecord, ...]
    bad: tuple[str, ...]
    with_infection: frozenset[str]
    digest: str
    pixels: Mapping[tuple[str, Split], bytes]
    statistics: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """What classifiers were trained on, and may not be among another data set's images.

    Attributes:
        pixels: digests as in `Scan.pixels`, and the image's id.
        patients: whose ids mean the same patient there; none where they do not.
    """

    pixels: Mapping[bytes, str]
    patients: frozenset[str] = frozenset()

    @classmethod
    def of(cls, found: Scan, split: Split, with_patients: bool) -> Taken:
        """One split of a data set that was scanned."""
        records = [r for r in found.records if r.split == split]
        patients = {r.patient for r in records if r.patient is not None}
        return cls(
            {found.pixels[r.image_id, split]: r.image_id for r in records},
            frozenset(patients if with_patients else ()),
        )


@dataclass(frozen=True, slots=True)
class _Look:
    problem: str | None = None
    infected: bool = False
    digest: bytes = b""
    pixels: bytes = b""
    statistics: NDArray[np.float32] | None = None


def scan(
    dataset: Dataset,
    splits: Sequence[Split],
    on_bad_image: OnBadImage,
    needs_lung_masks: bool,
    n_threads: int = 8,
    progress: Progress | None = None,
    taken: Taken | None = None,
    lungs_to_come: bool = False,
) -> Scan:
    """Decode every image and mask of some splits, and say what cannot be used.

    Args:
        splits: those to look at.
        on_bad_image: `stop` raises one error that lists all bad items; `skip` leaves them out.
        needs_lung_masks: whether an image without a lung mask, or with an empty one, is bad.
        n_threads: files decoded at the same time, at least 1.
        progress: called in this thread with images done and images in all.
        taken: an image that is among these, or of one of these patients, is bad.
        lungs_to_come: whether missing lung masks (not: empty ones) will be predicted.

    Raises:
        DataError: the layout is wrong, or `stop` and at least one image or mask is bad.
    """
    records = [r for r in dataset.records() if r.split in splits]
    lungs = (needs_lung_masks, needs_lung_masks and not lungs_to_come)
    look = partial(_look, dataset, lungs, taken or Taken({}))
    looks = _look_at_all(look, records, n_threads, progress)
    bad = [look.problem for look in looks if look.problem is not None]
    if bad and on_bad_image == "stop":
        raise DataError(
            f"{len(bad)} of {len(records)} images cannot be used; put them right, or set "
            "on_bad_image: skip to leave them out:",
            bad,
        )
    good = [(r, look) for r, look in zip(records, looks, strict=True) if look.problem is None]
    return Scan(
        records=tuple(r for r, _ in good),
        bad=tuple(bad),
        with_infection=frozenset(r.image_id for r, look in good if look.infected),
        digest=_digest(good),
        pixels={(r.image_id, r.split): look.pixels for r, look in good},
        statistics={r.image_id: k.statistics for r, k in good if k.statistics is not None},
    )


def check(
    records: Sequence[XrayRecord],
    dataset: Dataset,
    splits: Sequence[Split],
    explain_split: Split | None = "Test",
) -> None:
    """Whether the records are enough for a sweep.

    Args:
        records: those that can be used.
        dataset: whose classes are meant.
        splits: those that the sweep needs; each must hold each class.
        explain_split: the one whose explanations are scored. It (and Val, where thresholds are
            chosen) needs an image of the infection class with an infection mask, where it is among
            `splits`. None: nothing is explained, so no infection mask is needed.

    Raises:
        DataError: one that lists everything missing.
    """
    found = {(r.split, r.label) for r in records}
    problems = []
    for split in splits:
        lacking = [cls for cls in dataset.classes if (split, cls) not in found]
        if len(lacking) == len(dataset.classes):
            problems.append(f"{split}: expected images of this split, found no usable one")
        else:
            problems += [f"{split}/{cls}: expected images, found no usable one" for cls in lacking]
    judged = () if explain_split is None else ("Val", explain_split)
    masked = {r.split for r in records if r.label == dataset.infection_class and r.infection_mask}
    for split in splits:
        if split in judged and (split, dataset.infection_class) in found and split not in masked:
            problems.append(
                f"{split}/{dataset.infection_class}: expected infection masks to hold explanations "
                "against, found none"
            )
    if problems:
        raise DataError("the data set lacks what the sweep needs:", problems)


def check_infection(found: Scan, dataset: Dataset, splits: Sequence[Split] = ("Test",)) -> None:
    """Whether each split holds an image of the infection class with infection drawn in its mask.

    Args:
        found: a finished scan of at least these splits.
        dataset: whose infection class is meant.
        splits: those where explanations are scored or thresholds are chosen.

    Raises:
        DataError: in some split, every infection mask of that class is missing or empty.
    """
    drawn = {
        r.split
        for r in found.records
        if r.label == dataset.infection_class and r.image_id in found.with_infection
    }
    lacking = [s for s in splits if s not in drawn]
    if lacking:
        raise DataError(
            "no infection to hold explanations against:",
            [
                f"{split}/{dataset.infection_class}: expected at least one image whose infection "
                "mask has a pixel set, found only missing or empty masks"
                for split in lacking
            ],
        )


def _look_at_all(
    look_at: Callable[[XrayRecord], _Look],
    records: Sequence[XrayRecord],
    n_threads: int,
    progress: Progress | None,
) -> list[_Look]:
    pool = ThreadPoolExecutor(max_workers=max(1, n_threads))
    looks: list[_Look] = []
    try:
        for look in pool.map(look_at, records):
            looks.append(look)
            if progress is not None:
                progress(len(looks), len(records))
    finally:
        # Interrupted, or one failed: what has not begun is not begun any more.
        pool.shutdown(cancel_futures=True)
    return looks


def _look(
    dataset: Dataset, needs_lungs: tuple[bool, bool], taken: Taken, record: XrayRecord
) -> _Look:
    """Look at one image.

    Args:
        needs_lungs: whether an empty lung mask is bad, and whether a missing one is.
    """
    try:
        xray = dataset.load(record)
    except BadImageError as error:
        return _Look(problem=str(error))
    if needs_lungs[1] if xray.lung_mask is None else needs_lungs[0] and not xray.lung_mask.any():
        what = "found none" if xray.lung_mask is None else "found an empty one"
        return _Look(
            problem=f"{record.image_id}: expected a lung mask, {what}; "
            "set preprocess.lung_masking false to go without, or have missing ones predicted "
            "(lungs)"
        )
    if _is_swapped(xray):
        return _Look(
            problem=f"{record.image_id}: expected the infection within the lungs, found the whole "
            "lung mask within a larger infection mask: are the two swapped?"
        )
    infected = xray.infection_mask is not None and bool(xray.infection_mask.any())
    pixels = _pixels_digest(xray.image)
    if pixels in taken.pixels:
        return _Look(
            problem=f"{record.image_id}: pixel for pixel {taken.pixels[pixels]} of the Train split "
            "that classifiers are trained on"
        )
    if record.patient in taken.patients:  # not named: ids of patients appear nowhere
        return _Look(
            problem=f"{record.image_id}: of a patient in the Train split that classifiers are "
            "trained on"
        )
    statistics = None if record.split == "Test" else statistics_of(xray)
    masks = (xray.image, xray.lung_mask, xray.infection_mask)
    return _Look(
        infected=infected,
        digest=_pixels_digest(*masks),
        pixels=pixels,
        statistics=statistics,
    )


def _is_swapped(xray: ChestXray) -> bool:
    """Whether lungs and infection are taken for each other, as far as their areas can tell.

    Radiologists draw a little beyond the lungs here and there; half as much again they do not.
    """
    lungs, infection = xray.lung_mask, xray.infection_mask
    if lungs is None or infection is None or not lungs.any():
        return False
    around = not (lungs & ~infection).any()
    return around and int(infection.sum()) > 1.5 * int(lungs.sum())


def _pixels_digest(*arrays: NDArray[np.generic] | None) -> bytes:
    digest = hashlib.sha256()
    for array in arrays:
        if array is None:
            digest.update(b"none;")
        else:
            digest.update(f"{array.dtype} {array.shape};".encode())
            digest.update(array.tobytes())
    return digest.digest()


def _digest(good: Sequence[tuple[XrayRecord, _Look]]) -> str:
    digest = hashlib.sha256()
    for record, look in good:
        digest.update("\0".join((record.image_id, record.split, record.label, "")).encode())
        digest.update(look.digest)
    return digest.hexdigest()[:16]
