"""Otsu's cut, and the cut that marks as much as infection covers on Val."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu

from raybench.config_explain import Scoring
from raybench.scoring.binarise import binarise, min_max
from raybench.scoring.thresholds import RULES, Shares, area_threshold, otsu

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
VALUES = st.one_of(
    st.floats(-1e6, 1e6, width=32), st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 2.0])
)
MAPS = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=VALUES))
SHARES = Shares(math.nan, 0.25)


def between_classes(levels: np.ndarray, cut: float) -> float:
    """The variance between the two sides of a cut, by its definition."""
    low, high = levels[levels <= cut], levels[levels > cut]
    if not (low.size and high.size):
        return 0.0
    return float(low.size * high.size * (low.mean() - high.mean()) ** 2) / levels.size**2


@settings(deadline=None, max_examples=60)
@given(MAPS)
def test_no_cut_parts_better_than_otsus(values: np.ndarray) -> None:
    levels = min_max(values).astype(np.float64)
    found = otsu(values)
    assert 0 <= found <= 1
    if levels.min() == levels.max():
        assert not binarise(values, found).any()
        return
    best = max(between_classes(levels, cut) for cut in np.unique(levels))
    assert between_classes(levels, found) == pytest.approx(best, rel=1e-9)
    assert (binarise(values, found) == (levels > found)).all()


def test_otsu_is_scikit_images_but_for_its_bins() -> None:
    values = gaussian_filter(np.random.default_rng(0).standard_normal((64, 64)), 5)
    values[20:40, 20:40] += 0.3
    levels = min_max(values.astype(np.float32))
    ours = between_classes(levels, otsu(levels))
    theirs = between_classes(levels, threshold_otsu(levels, nbins=256))
    assert theirs <= ours <= 1.001 * theirs


def test_otsu_takes_probabilities_as_they_are() -> None:
    values = np.repeat(np.float32([0.1, 0.2, 0.6, 0.7]), 4).reshape(4, 4)
    assert otsu(values, stretch=False) == np.float32(0.2)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        otsu(values * 10, stretch=False)


def test_shares_are_means_over_images() -> None:
    lungs = np.zeros((4, 5), bool)
    lungs[:, :2] = True
    small, large = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    small[0, :2], large[:2, :3] = True, True
    found = Shares.of([(small, lungs), (large, lungs), (large, None), (small, lungs & False)])
    assert found.of_lungs == pytest.approx((2 / 8 + 4 / 8) / 2)
    assert found.of_image == pytest.approx((2 + 6 + 6 + 2) / 4 / 20)
    assert math.isnan(Shares.of([(small, None)]).of_lungs)
    with pytest.raises(ValueError, match="at least one Val image"):
        Shares.of([])


@settings(deadline=None, max_examples=150)
@given(MAPS, st.floats(0.01, 1), st.booleans(), st.data())
def test_the_area_rule_marks_the_highest_pixels_and_as_many_as_are_wanted(
    values: np.ndarray, share: float, clip: bool, data: st.DataObject
) -> None:
    lungs = data.draw(st.none() | arrays(bool, values.shape))
    by_lungs = lungs is not None and lungs.any()
    shares = Shares(share, share / 2)
    cut = area_threshold(values, shares, lungs, clip)
    assert 0 <= cut <= 1
    salient = binarise(values, cut, lungs if clip else None)
    possible = lungs if clip and lungs is not None else np.ones(values.shape, bool)
    wanted = share * lungs.sum() if by_lungs else share / 2 * values.size
    levels = min_max(values)
    allowed = possible & (levels > levels.min())
    n = min(max(1, round(wanted)), int(possible.sum()))
    assert not (salient & ~allowed).any()
    assert salient.sum() >= min(n, int(allowed.sum())), "as many as are wanted, or all there are"
    if salient.any():
        lowest = levels[salient].min()
        assert (levels[allowed & ~salient] < lowest).all(), "the highest"
        assert (levels[salient] > lowest).sum() < n, "no value more than is needed"


def test_under_the_area_rule_the_whole_lung_stays_whole_and_a_constant_map_marks_nothing() -> None:
    lungs = np.zeros((8, 8), bool)
    lungs[2:6, 2:6] = True
    shares = Shares(0.2, 0.05)
    for clip in (False, True):
        cut = area_threshold(lungs.astype(np.float32), shares, lungs, clip)
        assert (binarise(lungs.astype(np.float32), cut, lungs if clip else None) == lungs).all()
        flat = np.ones((8, 8), np.float32)
        assert not binarise(flat, area_threshold(flat, shares, lungs, clip)).any()
    with pytest.raises(ValueError, match="one shape"):
        area_threshold(np.ones((3, 3), np.float32), shares, lungs, True)
    assert area_threshold(np.eye(8, dtype=np.float32), SHARES, lungs & False, True) == 1


def test_rules_stand_once_each() -> None:
    assert Scoring().threshold_rules == ("fixed", "val")
    assert Scoring(threshold_rules=RULES).threshold_rules == RULES
    with pytest.raises(ValueError, match="found twice: otsu"):
        Scoring(threshold_rules=("otsu", "otsu"))
    with pytest.raises(ValueError, match="'fixed', 'val', 'otsu', 'area' or 'top_k'"):
        Scoring.model_validate({"threshold_rules": ["best"]})
