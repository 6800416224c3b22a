import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from skimage.metrics import hausdorff_distance
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from raybench.scoring.boundary import hausdorff
from raybench.scoring.metrics import METRICS, localisation_scores
from raybench.scoring.overlap import dice, iou, precision, recall, specificity

CXR = Path(__file__).resolve().parents[3] / "shared/data/cxr/Infection Segmentation Data"

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)

# What a metric becomes with the masks changed round; itself for all others.
TURNED = {
    "precision": recall,
    "recall": precision,
    "specificity": lambda truth, predicted: precision(~truth, ~predicted),
}


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, single pixels, stripes, empty and full masks alike."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    pair = []
    for _ in range(2):
        kind = draw(st.sampled_from(["any", "sparse", "box", "full", "empty"]))
        mask = np.zeros(shape, bool)
        if kind == "any":
            mask = draw(arrays(bool, shape))
        elif kind == "sparse":
            mask = rng.random(shape) < 0.02
        elif kind == "box":
            top, left = rng.integers(0, shape[0]), rng.integers(0, shape[1])
            mask[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = True
        elif kind == "full":
            mask[:] = True
        pair.append(mask)
    return pair[0], pair[1]


@settings(deadline=None, max_examples=200)
@given(mask_pairs())
def test_metrics_agree_with_other_libraries(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pair
    scores = localisation_scores(predicted, truth)
    assert list(scores) == list(METRICS)
    flat = truth.ravel(), predicted.ravel()
    assert scores["iou"] == pytest.approx(jaccard_score(*flat, zero_division=1.0))
    assert scores["dice"] == pytest.approx(f1_score(*flat, zero_division=1.0))
    # scikit-learn's zero_division goes by the denominator alone, ours by the other mask too.
    assert scores["precision"] == pytest.approx(
        precision_score(*flat, zero_division=float(not truth.any()))
    )
    assert scores["recall"] == pytest.approx(
        recall_score(*flat, zero_division=float(not predicted.any()))
    )
    assert scores["specificity"] == pytest.approx(
        recall_score(*flat, pos_label=False, zero_division=float(predicted.all()))
    )
    if predicted.any() and truth.any():
        assert scores["hausdorff"] == pytest.approx(hausdorff_distance(*pair), abs=1e-9)
    else:
        assert math.isnan(scores["hausdorff"])


@settings(deadline=None, max_examples=100)
@given(mask_pairs())
def test_rows_of_the_table_hold(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, truth = pair
    for metric in METRICS.values():
        value = metric.function(predicted, truth)
        assert np.isnan(value) or metric.bounds[0] <= value <= metric.bounds[1]
        turned = TURNED.get(metric.name, metric.function)
        assert value == pytest.approx(turned(truth, predicted), nan_ok=True)
        if truth.any():
            best = metric.bounds[1] if metric.higher_is_better else metric.bounds[0]
            assert metric.function(truth, truth) == best


def test_hausdorff_on_extreme_masks() -> None:
    far, near = np.zeros((2, 1400, 1400), bool)
    far[-1, -1] = near[0, 0] = True
    assert hausdorff(far, near) == pytest.approx(math.hypot(1399, 1399), abs=1e-12)
    assert hausdorff(np.ones((5, 7), bool), np.ones((5, 7), bool)) == 0
    corner = np.zeros((30, 40), bool)
    corner[0, 0] = True
    assert hausdorff(np.ones((30, 40), bool), corner) == math.hypot(29, 39)


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    assert (iou(empty, empty), dice(empty, empty)) == (1.0, 1.0)
    assert (iou(full, empty), dice(empty, full)) == (0.0, 0.0)
    for metric in (precision, recall):
        assert metric(empty, empty) == 1.0
        assert (metric(full, empty), metric(empty, full)) == (0.0, 0.0)
    assert (specificity(empty, empty), specificity(full, full)) == (1.0, 1.0)
    assert (specificity(full, empty), specificity(empty, full)) == (0.0, 0.0)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())
def test_only_bool_masks_of_one_shape(metric) -> None:
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="of one shape"):
        metric.function(mask, mask[:3])
    with pytest.raises(ValueError, match="truth: expected a bool array"):
        metric.function(mask, mask.astype(np.uint8))


@pytest.mark.parametrize(
    ("split", "count", "expected"),
    [("Test", 26, (0.3434, 0.4738, 96.51)), ("Val", 14, (0.2693, 0.3965, 108.19))],
)
def test_whole_lung_on_real_masks(split: str, count: int, expected: tuple[float, ...]) -> None:
    folder = CXR / split / "COVID-19"
    if not folder.is_dir():
        pytest.skip("the X-rays of data/cxr are not beside this checkout")
    rows = []
    for truth in sorted((folder / "infection masks").glob("*.png")):
        infection = cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE) > 127
        lung = cv2.imread(str(folder / "lung masks" / truth.name), cv2.IMREAD_GRAYSCALE) > 127
        rows.append(list(localisation_scores(lung, infection).values()))
    means = np.mean(rows, axis=0)
    assert len(rows) == count
    assert means[:2] == pytest.approx(expected[:2], abs=1e-3)
    assert means[2] == pytest.approx(expected[2], abs=0.1)
