"""The published study's figures, and whether a sweep's data are the study's (PROTOCOL.md, 1, 3, 5).

*Evaluating XAI Localization Fidelity on Chest X-Ray Images* (MSIT, 2025), by timm's names of its
backbones and raybench's names of its explainers and scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from raybench.data.covid_qu_ex import KNOWN_CLASSES, CovidQuEx
from raybench.types import Dataset, Split, XrayRecord

COLUMNS = ("backbone", "explainer", "n_classes", "metric", "value")
NAME = "published.csv"

N_EXPLAINED = 583
"""Test images that the study's means of localisation are taken over."""

THRESHOLDS: Mapping[str, float] = {"lime": 0.5, "grad_cam": 0.6}
"""What the study cut its maps at; Grad-CAM's in places at 0.55, found by eye."""

_BACKBONES = ("vgg16", "densenet121", "densenet201", "convnext_base")

_THREE: Mapping[str, tuple[float, ...]] = {
    "accuracy": (0.85, 0.89, 0.90, 0.93),
    "precision_COVID-19": (0.94, 0.92, 0.94, 0.97),
    "precision_Non-COVID": (0.75, 0.81, 0.85, 0.87),
    "precision_Normal": (0.82, 0.91, 0.88, 0.91),
    "precision": (0.83, 0.88, 0.89, 0.92),
    "macro_auc": (0.94, 0.97, 0.98, 0.99),
    "parameters_millions": (130, 8, 20, 89),
}
"""Classification with three classes: a figure for each of `_BACKBONES`."""

_TWO: Mapping[str, float] = {
    "accuracy": 0.97,
    "precision_COVID-19": 0.96,
    "precision_Non-COVID": 0.99,
    "precision": 0.98,
    "macro_auc": 1.00,
}
"""Classification with two classes: ConvNeXt-Base alone."""

_LOCALISATION: Mapping[tuple[int, str, str], tuple[float, float, float]] = {
    (3, "densenet121", "lime"): (0.3336, 0.4659, 93.05),
    (3, "densenet201", "lime"): (0.3254, 0.4564, 94.32),
    (3, "convnext_base", "lime"): (0.3263, 0.4566, 92.59),
    (3, "densenet121", "grad_cam"): (0.1257, 0.1960, 126.32),
    (3, "densenet201", "grad_cam"): (0.2331, 0.3452, 112.08),
    (3, "convnext_base", "grad_cam"): (0.1293, 0.2036, 133.69),
    (2, "convnext_base", "lime"): (0.3950, 0.5312, 82.00),
    (2, "convnext_base", "grad_cam"): (0.2355, 0.3449, 92.59),
}
"""Mean IoU, Dice and Hausdorff distance in pixels, by number of classes, backbone, explainer."""

_COUNTS: Mapping[Split, tuple[tuple[int, ...], ...]] = {
    "Train": ((1864, 932, 932),),
    "Val": ((466, 233, 233),),
    # The report's table and its notebook disagree on which of the two has 292.
    "Test": ((583, 291, 292), (583, 292, 291)),
}
"""Images of COVID-19, Non-COVID and Normal: what a split may hold to be the study's."""


def published(n_classes: int) -> pd.DataFrame:
    """The study's figures with so many classes, columns as in `COLUMNS`.

    Args:
        n_classes: 3 or 2 (COVID-19 against Non-COVID); other numbers have no figures.

    Returns:
        A row a figure. Classification has an empty `explainer`; metrics are named as in
        `trials.csv` (without `test_`) and `leaderboard.csv`.
    """
    return pd.DataFrame(list(_rows(n_classes)), columns=list(COLUMNS))


def _rows(n_classes: int) -> Iterator[tuple[str, str, int, str, float]]:
    if n_classes == 3:
        for metric, values in _THREE.items():
            for backbone, value in zip(_BACKBONES, values, strict=True):
                yield backbone, "", 3, metric, float(value)
    if n_classes == 2:
        for metric, value in _TWO.items():
            yield "convnext_base", "", 2, metric, value
    for (n, backbone, explainer), means in _LOCALISATION.items():
        if n == n_classes:
            for metric, value in zip(("iou", "dice", "hausdorff"), means, strict=True):
                yield backbone, explainer, n, metric, value


def is_the_studys(dataset: Dataset, records: Sequence[XrayRecord]) -> bool:
    """Whether a sweep is trained and judged on the study's own images, as far as can be told.

    The reader has to be COVID-QU-Ex's, of the infection subset and of no other data set beside it,
    its classes the study's three or its two, and every split has to hold as many usable images of
    each class as the study's. Names of folders and files decide nothing, nor do settings.

    Args:
        dataset: what the classifiers are trained on.
        records: its usable images.
    """
    if not isinstance(dataset, CovidQuEx) or dataset.subset != "infection":
        return False
    if getattr(dataset, "explain", None) is not None or dataset.infection_class != "COVID-19":
        return False
    return has_the_studys_counts(Counter((r.split, r.label) for r in records), dataset.classes)


def has_the_studys_counts(counts: Mapping[tuple[str, str], int], classes: Sequence[str]) -> bool:
    """Whether there are as many images of each class in each split as in the study.

    Args:
        counts: images by split and class.
        classes: COVID-19 and Non-COVID, with or without Normal, in any order.
    """
    wanted = [c for c in KNOWN_CLASSES if c in classes]
    if wanted not in (list(KNOWN_CLASSES), list(KNOWN_CLASSES[:2])) or len(classes) != len(wanted):
        return False
    return all(
        tuple(counts.get((split, c), 0) for c in wanted) in {n[: len(wanted)] for n in allowed}
        for split, allowed in _COUNTS.items()
    )
