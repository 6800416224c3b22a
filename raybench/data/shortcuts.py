"""Whether statistics of the images, and not what is in the lungs, tell the class.

A classifier takes the easiest way. Where the size of an image, its brightness, what stands at its
border, the kind of its file or the outline of its lungs go with the class, it may learn that, and
its accuracy says nothing of disease (DeGrave, Janizek and Lee, Nature Machine Intelligence 3,
2021). So a logistic regression is given such statistics and nothing else, fitted on Train and
judged on Val. Test is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import random_table
from sklearn.linear_model import LogisticRegression

from raybench.data.patients import patient_groups
from raybench.types import ChestXray, XrayRecord

EVERYTHING = "all together"

LEVEL = 0.05
"""How often data without any shortcut may give a warning, all families together."""

MIN_SKILL = 0.1
"""Of the way from chance to certainty, the part below which nothing is said: with thousands of
images in Val the faintest difference is significant."""

MAX_TRAIN = 5000
"""Images of Train that the regression is fitted on, taken evenly, so that it takes seconds."""

_GRID = 16
_N_PERMUTATIONS = 10_000
_FAMILIES = {
    "size": slice(0, 2),
    "grey levels": slice(2, 4),
    "border and corners": slice(4, 20),
    "lung masks": slice(20, 20 + _GRID * _GRID),
}
# Both ends of a scale may go with one class, so the squares of a few figures are given as well.
_SQUARED = ("size", "grey levels", "border and corners")

Features = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """How well one family of statistics tells the class on Val.

    Attributes:
        family: `size`, `grey levels`, `border and corners`, `lung masks`, `file type`, or
            `EVERYTHING`.
        score: balanced accuracy on Val, the mean over classes of the share that is told rightly.
        chance: what guessing reaches, one over the number of classes.
        p: share of permutations of Val's labels that score as high; at least 1 / 10,001.
        is_shortcut: whether chance is ruled out, and the score is far enough from it to matter.
    """

    family: str
    score: float
    chance: float
    p: float
    is_shortcut: bool = False

    @property
    def skill(self) -> float:
        """How much of the way from chance (0) to certainty (1) the score has come."""
        return (self.score - self.chance) / (1 - self.chance)


def statistics_of(xray: ChestXray) -> NDArray[np.float32]:
    """What is noted of an image as it is decoded, before any preprocessing, float32 `[276]`.

    Logarithms of height and width; mean and deviation of the grey levels outside the lungs (inside,
    disease itself changes them), of the whole image where there is no lung mask; mean and deviation
    of strips along the four sides (a 16th of the shorter side wide) and of the four corners (an
    eighth); the lung mask averaged to 16 x 16, all 0 where there is none.
    """
    height, width = xray.image.shape
    strip, corner = (max(1, round(min(height, width) / parts)) for parts in (16, 8))
    regions = [np.s_[:strip, :], np.s_[-strip:, :], np.s_[:, :strip], np.s_[:, -strip:]]
    sides = (slice(None, corner), slice(-corner, None))
    regions += [(rows, columns) for rows in sides for columns in sides]
    outside = None
    if xray.lung_mask is not None and not xray.lung_mask.all():
        outside = (~xray.lung_mask).astype(np.uint8)
    found = [cv2.meanStdDev(xray.image, mask=outside)]
    found += [cv2.meanStdDev(np.ascontiguousarray(xray.image[region])) for region in regions]
    values = [np.log(height), np.log(width)]
    values += [float(part.item()) for pair in found for part in pair]
    lungs = np.zeros((_GRID, _GRID), np.float32)
    if xray.lung_mask is not None:
        scaled = xray.lung_mask.astype(np.uint8) * np.uint8(255)
        lungs = cv2.resize(scaled, (_GRID, _GRID), interpolation=cv2.INTER_AREA) / np.float32(255)
    return np.concatenate([np.array(values, np.float32), lungs.ravel()])


def look_for_shortcuts(
    records: Sequence[XrayRecord], statistics: Mapping[str, NDArray[np.float32]]
) -> list[Evidence]:
    """Judge each family of statistics, and all together; those that never differ are left out.

    Features are standardised by Train, and cut at 5 deviations. The regression is multinomial, with
    balanced classes and a ridge penalty of the number of features: the prior under which the
    logits' variance is one, however many features there are. Images of one patient are alike, so
    their log probabilities are averaged, and the patient is judged. Scores are held against 10,000
    permutations of Val's labels; Holm's method keeps the rate of false alarms of all families
    together at `LEVEL`.

    Args:
        records: of Train and Val; those of Test are ignored.
        statistics: of `statistics_of`, by image id.

    Returns:
        A row a family in a fixed order, `EVERYTHING` last where there is more than one.
    """
    train, val = _evenly([r for r in records if r.split == "Train"]), _Judged.of(records)
    labels = np.array([r.label for r in train], object)
    if min(len(set(labels)), len(set(val.labels))) < 2:
        return []
    found = [
        _judge(family, fitted, judged, labels, val)
        for family, (fitted, judged) in _families(train, val.records, statistics).items()
    ]
    return _by_holm(found)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Val's images, and what is judged of them: patients, of each class that they have images of.

    Attributes:
        records: the images.
        units: which patient and class each is of, 0 to m - 1.
        labels: the classes of these, `[m]`.
    """

    records: list[XrayRecord]
    units: NDArray[np.int64]
    labels: NDArray[Any]

    @classmethod
    def of(cls, records: Sequence[XrayRecord]) -> _Judged:
        val = [r for r in records if r.split == "Val"]
        numbers: dict[tuple[int, str], int] = {}
        pairs = zip(patient_groups(val).tolist(), (r.label for r in val), strict=True)
        units = np.array([numbers.setdefault(pair, len(numbers)) for pair in pairs], np.int64)
        return cls(val, units, np.array([label for _, label in numbers], object))


def _evenly(records: list[XrayRecord]) -> list[XrayRecord]:
    n = min(MAX_TRAIN, len(records))
    return [records[i * len(records) // n] for i in range(n)]


def _families(
    train: Sequence[XrayRecord],
    val: Sequence[XrayRecord],
    statistics: Mapping[str, NDArray[np.float32]],
) -> dict[str, tuple[Features, Features]]:
    """Scaled features of Train and Val by family, float64 `[n, p]`, without what never differs."""
    families: dict[str, tuple[Features, Features]] = {}
    for family, (fitted, judged) in _raw(train, val, statistics).items():
        spread = fitted.std(axis=0)
        varies = spread > 1e-6
        if varies.any():
            centre = fitted[:, varies].mean(axis=0)
            scaled = [
                np.clip((part[:, varies] - centre) / spread[varies], -5, 5)
                for part in (fitted, judged)
            ]
            if family in _SQUARED:
                scaled = [np.hstack([part, part**2]) for part in scaled]
            families[family] = (scaled[0], scaled[1])
    if len(families) > 1:
        parts = zip(*families.values(), strict=True)
        fitted, judged = (np.hstack(part) for part in parts)
        families[EVERYTHING] = (fitted, judged)
    return families


def _raw(
    train: Sequence[XrayRecord],
    val: Sequence[XrayRecord],
    statistics: Mapping[str, NDArray[np.float32]],
) -> dict[str, tuple[Features, Features]]:
    """Features as they were noted, and a column for each ending of a file's name in Train."""
    tables = [np.array([statistics[r.image_id] for r in part], np.float64) for part in (train, val)]
    found = {f: (tables[0][:, part], tables[1][:, part]) for f, part in _FAMILIES.items()}
    endings = [[r.image.rpartition(".")[2].lower() for r in part] for part in (train, val)]
    known = np.array(sorted(set(endings[0])))
    files = [np.array(part)[:, None] == known for part in endings]
    found["file type"] = (files[0].astype(np.float64), files[1].astype(np.float64))
    return found


def _judge(
    family: str, fitted: Features, judged: Features, labels: NDArray[Any], val: _Judged
) -> Evidence:
    model = LogisticRegression(C=1 / fitted.shape[1], class_weight="balanced", max_iter=1000)
    logs = model.fit(fitted, labels).predict_log_proba(judged)
    sums = np.zeros((len(val.labels), logs.shape[1]))
    np.add.at(sums, val.units, logs)
    predicted = model.classes_[sums.argmax(axis=1)]
    # Of the classes that Val has; what is predicted beside them is wrong in any case.
    classes, truth = np.unique(val.labels, return_inverse=True)
    names = [*classes, *sorted(set(predicted) - set(classes))]
    guesses = np.array([names.index(name) for name in predicted])
    sizes = np.bincount(truth)
    score = float(np.mean([(guesses[truth == i] == i).mean() for i in range(len(classes))]))
    # Labels dealt anew give tables of the same margins: it is these that are drawn.
    margin = np.bincount(guesses, minlength=len(names))
    tables = random_table(sizes, margin).rvs(_N_PERMUTATIONS, random_state=0)
    null = (np.diagonal(tables, axis1=1, axis2=2) / sizes).mean(axis=1)
    as_high = int((null >= score - 1e-9).sum())
    return Evidence(family, score, 1 / len(classes), (1 + as_high) / (1 + _N_PERMUTATIONS))


def _by_holm(found: list[Evidence]) -> list[Evidence]:
    """Mark what is a shortcut: from the smallest p on, each held against a share of the level."""
    ranked = sorted(found, key=lambda evidence: evidence.p)
    ruled_out = set()
    for number, evidence in enumerate(ranked):
        if evidence.p > LEVEL / (len(ranked) - number):
            break
        ruled_out.add(evidence.family)
    return [replace(e, is_shortcut=e.family in ruled_out and e.skill >= MIN_SKILL) for e in found]
