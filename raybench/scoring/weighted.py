"""The classification figures of many weightings of the same images at once.

One weighting of ones gives the figures themselves, the draws of a bootstrap their intervals: both
come from the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybench.scoring.bootstrap import Floats

N_BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""


class WeightedScores:
    """From weights, float64 `[d, n]`, to the figures of `names`, `[d, k]`.

    What does not depend on the weights (orders, ties, bins) is made once. An image of weight 2
    counts as two images; equal probabilities are ties, whatever their weights.

    Args:
        probabilities: `[n, C]`, rows that sum to one, checked.
        labels: int `[n]`, checked.
        classes: C names.
    """

    def __init__(
        self,
        probabilities: NDArray[np.floating[Any]],
        labels: NDArray[np.integer[Any]],
        classes: Sequence[str],
    ) -> None:
        self.n_classes = len(classes)
        rows = normalised(probabilities)
        predicted = rows.argmax(axis=1)
        confidence = confidences(rows)
        truth = np.clip(rows[np.arange(len(rows)), labels], np.finfo(np.float64).eps, 1)
        gap = (predicted == labels) - confidence
        # A column for each of: cells of the confusion matrix, bins of the gaps, the loss.
        self._columns = np.hstack(
            [
                np.eye(self.n_classes**2)[labels * self.n_classes + predicted],
                np.eye(N_BINS)[bin_of(confidence)] * gap[:, None],
                -np.log(truth)[:, None],
            ]
        )
        self._ranked = [
            _Ranked(probabilities[:, index], labels == index) for index in range(self.n_classes)
        ]
        by_class = [
            name
            for figure in ("precision", "recall", "f1")
            for name in (*(f"{figure}_{c}" for c in classes), figure)
        ]
        areas = [*(f"average_precision_{c}" for c in classes), "average_precision"]
        self.names = ("accuracy", *by_class, "macro_auc", *areas, "ece", "loss")

    def __call__(self, weights: Floats, absent: float = np.nan) -> Floats:
        """The figures.

        Args:
            weights: float64 `[d, n]`, at least 0, not all 0 in a row.
            absent: the recall and F1 of a class without weight, which enter their means.
        """
        n_cells = self.n_classes**2
        sums = weights @ self._columns
        table = sums[:, :n_cells].reshape(-1, self.n_classes, self.n_classes)
        total = table.sum(axis=(1, 2))
        right = np.diagonal(table, axis1=1, axis2=2)
        true, called = table.sum(axis=2), table.sum(axis=1)
        precision = _ratio(right, called, 0.0)
        recall = _ratio(right, true, absent)
        f1 = np.where(true > 0, _ratio(2 * right, true + called, 0.0), absent)
        pairs = [ranked.areas(weights) for ranked in self._ranked]
        auc, average_precision = (np.stack(list(kind), axis=1) for kind in zip(*pairs, strict=True))
        return np.column_stack(
            [
                right.sum(axis=1) / total,
                *(f for each in (precision, recall, f1) for f in (each, each.mean(axis=1))),
                auc.mean(axis=1),
                average_precision,
                average_precision.mean(axis=1),
                np.abs(sums[:, n_cells:-1]).sum(axis=1) / total,
                sums[:, -1] / total,
            ]
        )


class _Ranked:
    """The images by falling probability of one class, equal ones joined."""

    def __init__(self, values: NDArray[np.floating[Any]], belongs: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-values, kind="stable")
        ranked = values[self._order]
        self._starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        self._belongs = belongs[self._order].astype(np.float64)

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Area under the ROC curve and average precision, `[d]` each; NaN where undefined."""
        ordered = weights[:, self._order]
        hits = self._joined(ordered * self._belongs)
        everything = self._joined(ordered)
        hits_so_far = hits.cumsum(axis=1)
        so_far = everything.cumsum(axis=1)
        n_hits, n_others = hits_so_far[:, -1], so_far[:, -1] - hits_so_far[:, -1]
        # Of tied pairs half counts as rightly ordered, which is the trapezium rule.
        below = ((everything - hits) * (hits_so_far - hits / 2)).sum(axis=1)
        gained = (hits * _ratio(hits_so_far, so_far, 0.0)).sum(axis=1)
        undefined = (n_hits == 0) | (n_others == 0)
        auc = _ratio(below, n_hits * n_others, np.nan)
        return auc, np.where(undefined, np.nan, _ratio(gained, n_hits, np.nan))

    def _joined(self, values: Floats) -> Floats:
        if len(self._starts) == values.shape[1]:
            return values
        return np.asarray(np.add.reduceat(values, self._starts, axis=1), np.float64)


def normalised(probabilities: NDArray[np.floating[Any]]) -> Floats:
    """The rows in float64, each summing to one exactly: half precision's only nearly do."""
    rows = probabilities.astype(np.float64)
    return np.asarray(rows / rows.sum(axis=1, keepdims=True), np.float64)


def confidences(rows: Floats) -> Floats:
    """The predicted class's probability of each image, `[n]`."""
    return np.asarray(rows.max(axis=1), np.float64)


def bin_of(confidence: Floats) -> NDArray[np.intp]:
    """The bin of each confidence, 0 to 14: bin i holds those above i / 15, up to (i + 1) / 15.

    The calibration error is the mean over bins, weighted by their images, of the distance between
    accuracy and mean confidence. Bins, their edges and the predicted class alone being looked at
    are those of Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    (torchmetrics closes bins below instead of above: another figure only where a confidence lies
    exactly on an edge.)
    """
    edges = np.arange(1, N_BINS) / N_BINS
    return np.asarray(np.searchsorted(edges, confidence, side="left"), np.intp)


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    """`above / below`, and `otherwise` where that is a division by zero."""
    found = np.full(above.shape, otherwise)
    np.divide(above, below, out=found, where=below > 0)
    return found
