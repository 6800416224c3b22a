import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from raybench.scoring.bootstrap import weights
from raybench.scoring.classification import (
    classification_intervals,
    classification_scores,
    confusion,
    precision_recall,
    reliability,
    roc,
)
from raybench.scoring.weighted import WeightedScores, bin_of

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def draw(seed: int, n: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, n_classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    return probabilities.astype(np.float32), labels


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By its definition, image by image: torchmetrics' bins (closed below), norm l1."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.astype(np.float64), labels, strict=True):
        confidence = row.max() / row.sum()
        bins.setdefault(math.floor(15 * confidence), []).append(
            (confidence, bool(row.argmax() == label))
        )
    return sum(
        len(found)
        / len(labels)
        * abs(np.mean([c for c, _ in found]) - np.mean([r for _, r in found]))
        for found in bins.values()
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(6, 80), st.integers(2, 4))
def test_scores_agree_with_scikit_learn(seed: int, n: int, n_classes: int) -> None:
    probabilities, labels = draw(seed, n, n_classes)
    classes = [f"c{i}" for i in range(n_classes)]
    scores = classification_scores(probabilities, labels, classes)
    predicted = probabilities.argmax(axis=1)
    macro = {"average": "macro", "zero_division": 0}
    assert scores["accuracy"] == pytest.approx(peer.accuracy_score(labels, predicted))
    assert scores["precision"] == pytest.approx(peer.precision_score(labels, predicted, **macro))
    assert scores["recall"] == pytest.approx(peer.recall_score(labels, predicted, **macro))
    assert scores["f1"] == pytest.approx(peer.f1_score(labels, predicted, **macro))
    each = peer.precision_score(labels, predicted, average=None, zero_division=0)
    assert [scores[f"precision_{c}"] for c in classes] == pytest.approx(list(each))
    for figure, score in (("recall", peer.recall_score), ("f1", peer.f1_score)):
        each = score(labels, predicted, average=None, zero_division=0)
        assert [scores[f"{figure}_{c}"] for c in classes] == pytest.approx(list(each))
    each = [
        peer.average_precision_score(labels == i, probabilities[:, i]) for i in range(n_classes)
    ]
    assert [scores[f"average_precision_{c}"] for c in classes] == pytest.approx(each)
    assert scores["average_precision"] == pytest.approx(np.mean(each))
    assert scores["ece"] == pytest.approx(calibration_error(probabilities, labels))
    rows = probabilities.astype(np.float64)
    rows /= rows.sum(axis=1, keepdims=True)
    asked = rows[:, 1] if n_classes == 2 else rows
    auc = peer.roc_auc_score(labels, asked, multi_class="ovr", average="macro")
    assert scores["macro_auc"] == pytest.approx(auc)
    assert scores["loss"] == pytest.approx(-np.log(rows[np.arange(n), labels]).mean(), rel=1e-5)
    table = confusion(probabilities, labels, n_classes)
    assert table.sum() == n
    assert np.trace(table) / n == pytest.approx(scores["accuracy"])


def test_hand_worked_three_classes() -> None:
    one_hot = np.eye(3, dtype=np.float32)
    labels = np.array([0, 0, 1, 2])
    scores = classification_scores(one_hot[[0, 1, 1, 1]], labels, CLASSES)
    assert scores["accuracy"] == 0.5
    assert scores["precision_COVID-19"] == 1.0
    assert scores["precision_Non-COVID"] == pytest.approx(1 / 3)
    assert scores["precision_Normal"] == 0.0, "never predicted"
    assert scores["recall_COVID-19"] == 0.5
    assert math.isfinite(scores["loss"]), "a certain mistake is costly, not infinite"
    assert confusion(one_hot[[0, 1, 1, 1]], labels, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_missing_class_leaves_the_auc_undefined() -> None:
    probabilities, _ = draw(0, 8, 3)
    labels = np.array([0, 1] * 4)
    scores = classification_scores(probabilities, labels, CLASSES)
    assert math.isnan(scores["macro_auc"])
    assert scores["recall_Normal"] == 0.0
    with pytest.raises(ValueError, match="class 2 has 0 of the 8 images"):
        roc(probabilities, labels, 2)


def test_every_draws_figures_are_those_of_its_images() -> None:
    """Weights against images written out as often as they weigh, with ties among them."""
    probabilities, labels = draw(7, 40, 3)
    probabilities = np.round(probabilities, 1) + np.float32(0.01)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    drawn = next(weights(np.arange(40) // 2, 25, seed=2))
    scores = WeightedScores(probabilities, labels, CLASSES)
    for row, found in zip(drawn.astype(int), scores(drawn), strict=True):
        again = np.repeat(np.arange(40), row)
        expected = classification_scores(probabilities[again], labels[again], CLASSES)
        assert dict(zip(scores.names, found, strict=True)) == pytest.approx(expected)


def test_intervals_enclose_their_figures_and_a_seed_fixes_them() -> None:
    probabilities, labels = draw(4, 200, 3)
    scores = classification_scores(probabilities, labels, CLASSES)
    found = classification_intervals(probabilities, labels, CLASSES, n_draws=500, seed=1)
    assert set(found) == set(scores)
    # The calibration error of a draw is larger than that of the images: distances add up.
    assert all(low < scores[name] < high for name, (low, high) in found.items() if name != "ece")
    again = classification_intervals(probabilities, labels, CLASSES, n_draws=500, seed=1)
    assert again == found
    half = 1.96 * math.sqrt(scores["accuracy"] * (1 - scores["accuracy"]) / 200)
    low, high = found["accuracy"]
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_intervals_by_patient_are_those_of_patients() -> None:
    probabilities, labels = draw(5, 60, 2)
    patients = np.repeat(np.arange(60), 4)
    rows, repeated = np.repeat(probabilities, 4, axis=0), np.repeat(labels, 4)
    one = classification_intervals(probabilities, labels, ("a", "b"), n_draws=300)
    four = classification_intervals(rows, repeated, ("a", "b"), patients, n_draws=300)
    for name, ends in one.items():
        assert four[name] == pytest.approx(ends)
    with pytest.raises(ValueError, match="expected 240 groups"):
        classification_intervals(rows, repeated, ("a", "b"), patients[:-1])


def test_a_class_of_one_image_has_no_interval_where_it_is_measured() -> None:
    """It is missing from more than a third of the draws."""
    probabilities, _ = draw(2, 50, 3)
    labels = np.r_[2, np.arange(49) % 2]
    found = classification_intervals(probabilities, labels, CLASSES, n_draws=400)
    undefined = {name for name, ends in found.items() if np.isnan(ends).any()}
    assert undefined == {
        *("recall_Normal", "recall", "f1_Normal", "f1", "macro_auc"),
        *("average_precision_Normal", "average_precision"),
    }


def test_bins_of_confidence() -> None:
    at = np.array([0.0, 1 / 15, np.nextafter(1 / 15, 1), 0.5, 14 / 15, 0.94, 1.0])
    assert bin_of(at).tolist() == [0, 0, 1, 7, 13, 14, 14], "closed above"
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.11, 0.89], [0.4, 0.6]])
    counts, confidence, accuracy = reliability(probabilities, np.array([0, 0, 1, 1]))
    assert (counts[13], counts[8], counts.sum()) == (3, 1, 4)
    assert (confidence[13], accuracy[13]) == pytest.approx((2.69 / 3, 2 / 3))
    assert (confidence[8], accuracy[8]) == pytest.approx((0.6, 1.0))
    assert np.isnan(accuracy[counts == 0]).all()
    scores = classification_scores(probabilities, np.array([0, 0, 1, 1]), ("a", "b"))
    assert scores["ece"] == pytest.approx((2.69 - 2 + 0.4) / 4)


def test_precision_recall_encloses_the_average_precision() -> None:
    probabilities, labels = draw(3, 60, 3)
    recall, precision = precision_recall(probabilities, labels, 1)
    assert (recall[0], precision[0], recall[-1]) == (0, 1, 1)
    area = float((np.diff(recall) * precision[1:]).sum())
    expected = peer.average_precision_score(labels == 1, probabilities[:, 1])
    assert area == pytest.approx(expected)
    with pytest.raises(ValueError, match="precision-recall curve needs images"):
        precision_recall(probabilities[labels != 1], labels[labels != 1], 1)


def test_roc_encloses_the_auc() -> None:
    probabilities, labels = draw(3, 60, 3)
    false_rate, true_rate, thresholds = roc(probabilities, labels, 1)
    assert (false_rate[0], true_rate[0]) == (0, 0)
    assert (false_rate[-1], true_rate[-1]) == (1, 1)
    assert np.all(np.diff(thresholds) < 0)
    area = peer.roc_auc_score(labels == 1, probabilities[:, 1])
    assert peer.auc(false_rate, true_rate) == pytest.approx(area)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.array([[2.0, -1.0]]), np.array([0]), "apply softmax"),
        (np.array([[np.nan, 0.5]]), np.array([0]), "expected probabilities"),
        (np.array([[0.5, 0.5]]), np.array([2]), "labels from 0 to 1"),
        (np.array([[0.5, 0.5]]), np.array([0.0]), "whole-numbered"),
        (np.zeros((0, 2)), np.zeros(0, int), "n > 0"),
    ],
)
def test_what_is_refused(probabilities: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_scores(probabilities, labels, ("a", "b"))
