import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sklearn.metrics import average_precision_score, roc_auc_score

from raybench.scoring.ranking import (
    MAP_METRICS,
    MAP_SCORES,
    map_scores,
    outside_lungs,
    within_lungs,
)

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
# Few levels, so that ties abound; both zeros, which are equal; the widest range.
LEVELS = st.sampled_from([-3e38, -1.0, -0.0, 0.0, 1e-45, 0.5, 1.0, 3e38])


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    values = draw(arrays(np.float32, shape, elements=draw(st.sampled_from([FINITE, LEVELS]))))
    return values, draw(arrays(bool, shape))


@settings(deadline=None, max_examples=200)
@given(maps())
def test_scores_agree_with_plain_counting(pair: tuple[np.ndarray, np.ndarray]) -> None:
    values, truth = pair
    found = map_scores(values, truth, None)
    assert list(found) == list(MAP_SCORES)
    assert math.isnan(found["outside_lungs"])
    for name, metric in MAP_METRICS.items():
        assert metric.function(values, truth) == pytest.approx(found[name], nan_ok=True)
        low, high = metric.bounds
        assert low <= found[name] <= high or (math.isnan(found[name]))
    if not truth.any():
        assert all(math.isnan(found[name]) for name in MAP_METRICS)
        return
    assert found["hit_rate"] == pytest.approx(truth[values == values.max()].mean())
    positive = [(max(float(v), 0.0), t) for v, t in zip(values.flat, truth.flat, strict=True)]
    total = math.fsum(v for v, _ in positive)
    inside = math.fsum(v for v, t in positive if t)
    assert found["mass_accuracy"] == pytest.approx(inside / total if total else 0.0)
    cut = np.sort(values, axis=None)[::-1][truth.sum() - 1]
    above, at = values > cut, values == cut
    share = (truth.sum() - above.sum()) / at.sum()
    expected = ((above & truth).sum() + share * (at & truth).sum()) / truth.sum()
    assert found["rank_accuracy"] == pytest.approx(expected)
    flat = truth.ravel(), values.ravel()
    assert found["pixel_ap"] == pytest.approx(average_precision_score(*flat))
    if truth.all():
        assert math.isnan(found["pixel_auroc"])
    else:
        assert found["pixel_auroc"] == pytest.approx(roc_auc_score(*flat))


def test_ties_count_as_the_mean_over_all_orders() -> None:
    values = np.array([[3, 2, 2], [2, 2, 1]], np.float32)
    truth = np.array([[True, True, False], [False, True, False]])
    by_order = []
    for tied in itertools.permutations([1, 2, 3, 4]):
        top = [0, *tied][: int(truth.sum())]
        by_order.append(truth.ravel()[top].mean())
    assert map_scores(values, truth, None)["rank_accuracy"] == pytest.approx(np.mean(by_order))


@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
def test_a_constant_map_scores_what_chance_does(value: float) -> None:
    truth = np.zeros((10, 10), bool)
    truth[:2, :5] = True
    found = map_scores(np.full((10, 10), value, np.float32), truth, ~truth)
    assert [found[n] for n in ("hit_rate", "rank_accuracy", "pixel_ap")] == pytest.approx([0.1] * 3)
    assert found["pixel_auroc"] == 0.5
    assert found["mass_accuracy"] == pytest.approx(0.1 if value > 0 else 0.0)
    assert found["outside_lungs"] == pytest.approx(0.1 if value > 0 else math.nan, nan_ok=True)


def test_the_infection_itself_is_the_best_map_and_its_reverse_the_worst() -> None:
    truth = np.zeros((9, 8), bool)
    truth[2:5, 3:6] = True
    best, worst = truth.astype(np.float32), (~truth).astype(np.float32)
    assert [map_scores(best, truth, None)[n] for n in MAP_METRICS] == [1.0] * 5
    found = map_scores(worst, truth, None)
    assert [found[n] for n in MAP_METRICS if n != "pixel_ap"] == [0.0] * 4
    assert found["pixel_ap"] == pytest.approx(truth.mean())


def test_attribution_outside_the_lungs() -> None:
    values = np.array([[4, -9], [1, 3]], np.float32)
    lungs = np.array([[True, True], [False, False]])
    assert outside_lungs(values, lungs) == 0.5
    assert outside_lungs(values, ~lungs) == 0.5
    assert outside_lungs(values, np.ones((2, 2), bool)) == 0.0
    assert outside_lungs(-values, ~lungs) == 1.0
    assert math.isnan(outside_lungs(values, None))
    assert math.isnan(outside_lungs(values, np.zeros((2, 2), bool)))
    assert math.isnan(outside_lungs(np.minimum(values, 0), lungs))
    scores = map_scores(values, ~lungs, lungs)
    assert (scores["outside_lungs"], scores["mass_accuracy"]) == (0.5, 0.5)


@pytest.mark.parametrize("name", MAP_METRICS)
def test_bad_maps_are_refused(name: str) -> None:
    function, mask = MAP_METRICS[name].function, np.ones((3, 3), bool)
    values = np.ones((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"truth: expected a bool mask of shape \(3, 3\)"):
        function(values, mask[:2])
    with pytest.raises(ValueError, match="truth: expected a bool mask"):
        function(values, mask.astype(np.uint8))
    with pytest.raises(ValueError, match="of shape \\[H, W\\]"):
        function(values[0], mask[0])
    values[1, 1] = math.nan
    with pytest.raises(ValueError, match="1 of 9 are NaN or infinite"):
        function(values, mask)
    with pytest.raises(ValueError, match="lungs: expected a bool mask"):
        outside_lungs(np.ones((3, 3), np.float32), mask[:1])


@settings(deadline=None, max_examples=100)
@given(maps(), st.data())
def test_within_the_lungs_only_their_pixels_count(
    pair: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    values, truth = pair
    lungs = data.draw(arrays(bool, values.shape))
    found = within_lungs(values, truth, lungs)
    assert {k: v for k, v in map_scores(values, truth, lungs).items() if k in found} == (
        pytest.approx(found, nan_ok=True)
    )
    inside = truth[lungs], values[lungs]
    if not inside[0].any():
        assert all(math.isnan(v) for v in found.values())
        return
    assert found["pixel_ap_lungs"] == pytest.approx(average_precision_score(*inside))
    if inside[0].all():
        assert math.isnan(found["pixel_auroc_lungs"])
    else:
        assert found["pixel_auroc_lungs"] == pytest.approx(roc_auc_score(*inside))


def test_finding_the_lungs_earns_nothing_within_them() -> None:
    lungs, truth = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    lungs[2:8, 2:8], truth[3:5, 3:5] = True, True
    found = map_scores(lungs.astype(np.float32), truth, lungs)
    assert found["pixel_auroc"] > 0.8
    assert found["pixel_auroc_lungs"] == 0.5
    assert found["pixel_ap_lungs"] == pytest.approx(truth.sum() / lungs.sum())
    assert all(math.isnan(v) for v in within_lungs(np.ones((2, 2)), np.eye(2) > 0, None).values())
    with pytest.raises(ValueError, match="lungs: expected a bool mask"):
        within_lungs(np.ones((2, 2), np.float32), np.eye(2) > 0, np.ones((3, 3), bool))
