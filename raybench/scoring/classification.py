"""How well the classifier classifies: the figures of PROTOCOL.md, 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

# Softmax in half precision sums to one only roughly; logits miss by far more.
_SUM_TOLERANCE = 0.02


def classification_scores(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    classes: Sequence[str],
) -> dict[str, float]:
    """Every classification figure of one set of images; the predicted class is the likeliest.

    Zero divisions: the precision of a class that is never predicted, and the recall of one that
    has no image, are 0.0 (scikit-learn's `zero_division=0`) and enter the averages as such.

    Args:
        probabilities: `[n, C]`, 0 to 1, rows that sum to one.
        labels: int `[n]`, 0 to C - 1.
        classes: C names.

    Returns:
        `accuracy`; `precision_<class>` for each class and `precision`, their plain mean;
        `recall_<class>` and `recall` likewise; `f1`, the mean over classes; `macro_auc`, the mean
        over classes of the area under the one-vs-rest ROC curve, NaN where a class has no image or
        all of them (a mean over the others would not be comparable); `loss`, the cross-entropy in
        nats, with probabilities kept above float64's epsilon.

    Raises:
        ValueError: shapes, ranges or sums are not as above, or there are no images.
    """
    check_predictions(probabilities, labels)
    n_classes = probabilities.shape[1]
    if len(classes) != n_classes:
        raise ValueError(f"expected {n_classes} class names, but got {len(classes)}: {classes}")
    indices = list(range(n_classes))
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=indices, zero_division=0
    )
    scores = {"accuracy": float((predicted == labels).mean())}
    scores |= {f"precision_{c}": float(p) for c, p in zip(classes, precision, strict=True)}
    scores["precision"] = float(precision.mean())
    scores |= {f"recall_{c}": float(r) for c, r in zip(classes, recall, strict=True)}
    scores["recall"] = float(recall.mean())
    scores["f1"] = float(f1.mean())
    scores["macro_auc"] = _macro_auc(probabilities, labels)
    rows = probabilities.astype(np.float64)
    rows /= rows.sum(axis=1, keepdims=True)
    scores["loss"] = float(log_loss(labels, rows, labels=indices))
    return scores


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
    check_predictions(probabilities, labels)
    if not 0 <= class_index < probabilities.shape[1]:
        raise ValueError(
            f"expected a class from 0 to {probabilities.shape[1] - 1}, got {class_index}"
        )
    belongs = labels == class_index
    if belongs.all() or not belongs.any():
        raise ValueError(
            f"class {class_index} has {int(belongs.sum())} of the {labels.size} images: a ROC "
            "curve needs images of the class and of others"
        )
    false_rate, true_rate, thresholds = roc_curve(belongs, probabilities[:, class_index])
    return (
        np.asarray(false_rate, np.float64),
        np.asarray(true_rate, np.float64),
        np.asarray(thresholds, np.float64),
    )


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


def _macro_auc(probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> float:
    areas = []
    for index in range(probabilities.shape[1]):
        belongs = labels == index
        if belongs.all() or not belongs.any():
            return math.nan
        areas.append(float(roc_auc_score(belongs, probabilities[:, index])))
    return float(np.mean(areas))
