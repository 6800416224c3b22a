import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from raybench.scoring.classification import classification_scores, confusion, roc

CLASSES = ("COVID-19", "Non-COVID", "Normal")


def draw(seed: int, n: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, n_classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])
    return probabilities.astype(np.float32), labels


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
