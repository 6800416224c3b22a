"""How well the classifier classifies: the figures of PROTOCOL.md, 3, and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from raybench.scoring.bootstrap import N_DRAWS, intervals
from raybench.scoring.weighted import N_BINS, WeightedScores, bin_of, confidences, normalised

# Softmax in half precision sums to one only roughly; logits miss by far more.
_SUM_TOLERANCE = 0.02


def classification_scores(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
) -> dict[str, float]:
    """Every classification figure of one set of images; the predicted class is the likeliest.

    Zero divisions: the precision of a class that is never predicted, and the recall and F1 of one
    that has no image, are 0.0 (scikit-learn's `zero_division=0`) and enter the averages as such.

    Args:
        probabilities: `[n, C]`, 0 to 1, rows that sum to one.
        labels: int `[n]`, 0 to C - 1.
        classes: C names.

    Returns:
        `accuracy`; `precision_<class>`, `recall_<class>` and `f1_<class>` for each class, and
        `precision`, `recall` and `f1`, their plain means over classes; `macro_auc`, the mean over
        classes of the area under the one-vs-rest ROC curve; `average_precision_<class>`, the sum
        over thresholds of precision times the gain in recall (no interpolation), one-vs-rest, and
        `average_precision`, their mean; `ece`, the calibration error of the predicted class's
        probability (`reliability` gives its bins); `loss`, the cross-entropy in nats, with
        probabilities kept above float64's epsilon. Areas and average precisions are NaN where a
        class has no image or all of them, and so are their means (a mean over the others would not
        be comparable).

    Raises:
        ValueError: shapes, ranges or sums are not as above, or there are no images.
    """
    _check(probabilities, labels, classes)
    scores = WeightedScores(probabilities, labels, classes)
    values = scores(np.ones((1, len(labels))), absent=0.0)[0]
    return {name: float(value) for name, value in zip(scores.names, values, strict=True)}


def classification_intervals(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
    groups: NDArray[np.integer[Any]] | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals (percentile, 95%) of the figures of `classification_scores`.

    In a draw without an image of some class, what is measured on that class (its recall, F1, area
    and average precision, and the means over classes that they enter) is undefined, and left out
    as `bootstrap.intervals` says; accuracy, precision, loss and calibration stand.

    Args:
        probabilities: `[n, C]`, 0 to 1, rows that sum to one.
        labels: int `[n]`, 0 to C - 1.
        classes: C names.
        groups: int `[n]`, equal numbers for images of one patient, who is drawn whole; None draws
            images.
        n_draws: bootstrap draws.
        seed: of the draws.

    Returns:
        Lower and upper end by figure; both NaN where there is no interval.

    Raises:
        ValueError: an argument is not as above.
    """
    _check(probabilities, labels, classes)
    if groups is not None and groups.shape != labels.shape:
        raise ValueError(f"expected {len(labels)} groups, but got shape {groups.shape}")
    scores = WeightedScores(probabilities, labels, classes)
    drawn = np.arange(len(labels)) if groups is None else groups
    found = intervals(scores, drawn, n_draws=n_draws, seed=seed)
    return {
        name: (float(low), float(high))
        for name, low, high in zip(scores.names, found.low, found.high, strict=True)
    }


def reliability(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """What the calibration error is made of: the images by the predicted class's probability.

    Returns:
        Of each of the 15 bins (`weighted.bin_of`): how many images lie in it, their mean confidence
        and their accuracy, `[15]` each; the last two are NaN where a bin is empty.

    Raises:
        ValueError: shapes, ranges or sums are wrong, or there are no images.
    """
    check_predictions(probabilities, labels)
    rows = normalised(probabilities)
    confidence = confidences(rows)
    bins, right = bin_of(confidence), rows.argmax(axis=1) == labels
    counts = np.bincount(bins, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        mean, accuracy = (
            np.bincount(bins, weights=values, minlength=N_BINS) / counts
            for values in (confidence, right)
        )
    return counts.astype(np.int64), mean, accuracy


def confusion(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]], n_classes: int
) -> NDArray[np.int64]:
    """Counts of images: rows are the true classes, columns the predicted ones.

    Args:
        probabilities: `[n, C]`, 0 to 1, rows that sum to one.
        labels: int `[n]`, 0 to C - 1.
        n_classes: C.

    Returns:
        int64 `[C, C]`, which sums to n.

    Raises:
        ValueError: shapes, ranges or sums are not as above, or there are no images.
    """
    check_predictions(probabilities, labels)
    if probabilities.shape[1] != n_classes:
        raise ValueError(f"expected {n_classes} columns, but got {probabilities.shape[1]}")
    predicted = probabilities.argmax(axis=1)
    return np.asarray(confusion_matrix(labels, predicted, labels=range(n_classes)), np.int64)


def roc(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_index: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The one-vs-rest ROC curve of one class, corners only.

    Args:
        probabilities: `[n, C]`, 0 to 1, rows that sum to one.
        labels: int `[n]`, 0 to C - 1.
        class_index: which class, 0 to C - 1.

    Returns:
        False positive rates, true positive rates (0 to 1, rising) and the thresholds that give
        them (falling, the first infinite), float64 `[k]` each.

    Raises:
        ValueError: there is no such class, it has no image or all of them, or shapes, ranges or
            sums are not as above.
    """
    belongs = _one_against_rest(probabilities, labels, class_index, "ROC")
    false_rate, true_rate, thresholds = roc_curve(belongs, probabilities[:, class_index])
    return (
        np.asarray(false_rate, np.float64),
        np.asarray(true_rate, np.float64),
        np.asarray(thresholds, np.float64),
    )


def precision_recall(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_index: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The one-vs-rest precision-recall curve of one class.

    Args:
        probabilities: `[n, C]`, 0 to 1, rows that sum to one.
        labels: int `[n]`, 0 to C - 1.
        class_index: which class, 0 to C - 1.

    Returns:
        Recall (0 to 1, rising) and precision, float64 `[k]` each. It begins at recall 0 with
        precision 1 by convention; between two points the curve is a step, whose area is the
        average precision.

    Raises:
        ValueError: as `roc`.
    """
    belongs = _one_against_rest(probabilities, labels, class_index, "precision-recall")
    precision, recall, _ = precision_recall_curve(belongs, probabilities[:, class_index])
    return np.asarray(recall[::-1], np.float64), np.asarray(precision[::-1], np.float64)


def check_predictions(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> None:
    """Refuse anything but `[n, C]` probabilities and their `[n]` labels.

    Raises:
        ValueError: shapes, ranges or sums are wrong, or there are no images.
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or len(probabilities) == 0:
        raise ValueError(
            "expected probabilities of shape [n, C], n > 0 and C > 1, but got "
            f"{probabilities.shape}"
        )
    if labels.shape != probabilities.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"expected {len(probabilities)} whole-numbered labels, but got {labels.dtype} of shape "
            f"{labels.shape}"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"expected labels from 0 to {probabilities.shape[1] - 1}, but they run from "
            f"{labels.min()} to {labels.max()}"
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # Written so that NaN is refused too.
    if not (probabilities.min() >= 0 and np.abs(sums - 1).max() <= _SUM_TOLERANCE):
        raise ValueError(
            "expected probabilities (at least 0, rows that sum to one), but the smallest is "
            f"{probabilities.min()} and rows sum to {sums.min():.3g} to {sums.max():.3g}; apply "
            "softmax to logits first"
        )


def _check(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
) -> None:
    check_predictions(probabilities, labels)
    if len(classes) != probabilities.shape[1]:
        raise ValueError(
            f"expected {probabilities.shape[1]} class names, but got {len(classes)}: {classes}"
        )


def _one_against_rest(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    class_index: int,
    curve: str,
) -> NDArray[np.bool_]:
    check_predictions(probabilities, labels)
    if not 0 <= class_index < probabilities.shape[1]:
        raise ValueError(
            f"expected a class from 0 to {probabilities.shape[1] - 1}, got {class_index}"
        )
    belongs: NDArray[np.bool_] = labels == class_index
    if belongs.all() or not belongs.any():
        raise ValueError(
            f"class {class_index} has {int(belongs.sum())} of the {labels.size} images: a {curve} "
            "curve needs images of the class and of others"
        )
    return belongs
