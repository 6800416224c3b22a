"""The k superpixels that a map likes best, against lime's own choice and by brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lime.lime_image import ImageExplanation

from raybench.explain import WholeLung
from raybench.scoring.binarise import CANDIDATES
from raybench.scoring.cuts import Cutter, Place, TopK, known, of_every_image
from raybench.scoring.thresholds import Shares
from raybench.scoring.top_regions import MOST, k_of, rank_levels, threshold_of
from raybench.studies.score_stage import cutter_of
from raybench.types import Subject

SHAPE = (9, 7)
VALUES = arrays(np.float32, SHAPE, elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 3.0]))
REGIONS = arrays(np.int32, SHAPE, elements=st.integers(0, 25))
PLAIN = Cutter("both", clip_to_lungs=False, median=0, stretch=True)


def by_hand(values: np.ndarray, regions: np.ndarray, inside: np.ndarray, k: int) -> np.ndarray:
    """Superpixel by superpixel: salient where fewer than k others are higher."""
    low, high = float(values.min()), float(values.max())
    scaled = (values.astype(np.float64) - low) / (high - low) if high > low else values * 0.0
    scaled = scaled.astype(np.float32)
    means = {
        int(region): float(scaled[inside & (regions == region)].astype(np.float64).mean())
        for region in np.unique(regions[inside])
    }
    found = np.zeros(values.shape, bool)
    for region, mean in means.items():
        if mean > 0 and sum(other > mean + 1e-11 for other in means.values()) < k:
            found |= inside & (regions == region)
    return found


@settings(deadline=None, max_examples=60)
@given(VALUES, REGIONS, arrays(np.bool_, SHAPE), st.booleans(), st.integers(1, MOST))
def test_the_best_superpixels_are_those_that_fewer_than_k_beat(
    values: np.ndarray, regions: np.ndarray, lungs: np.ndarray, clip: bool, k: int
) -> None:
    cutter = Cutter("both", clip_to_lungs=clip, median=0, stretch=True)
    number, found = cutter.cut(values, TopK(k), Place(lungs, regions))
    inside = lungs if clip else np.ones(SHAPE, bool)
    assert number == k
    assert (found == by_hand(values, regions, inside, k)).all()


@settings(deadline=None, max_examples=30)
@given(arrays(np.int64, 12, elements=st.integers(-999, 999), unique=True), st.integers(1, MOST))
def test_of_limes_map_they_are_the_superpixels_that_lime_shows(weights: np.ndarray, k: int) -> None:
    """`get_image_and_mask(positive_only=True, num_features=k)` of the lime library.

    But for the lowest superpixel where every one speaks for the class: lime shows it if k takes all
    of them, here the map's lowest value is never salient.
    """
    weights = (weights / 1000).astype(np.float32)
    assume(len(np.unique(np.maximum(weights, 0))) > 1)
    assume(k < 12 or weights.min() <= 0)
    regions = np.arange(12).reshape(3, 4).repeat(5, 0).repeat(6, 1)
    theirs = ImageExplanation(np.zeros((15, 24, 3)), regions)
    order = np.argsort(-np.abs(weights))
    theirs.local_exp = {0: [(int(i), float(weights[i])) for i in order]}
    expected = theirs.get_image_and_mask(0, positive_only=True, num_features=k)[1].astype(bool)
    cutter = Cutter("for", clip_to_lungs=False, median=0, stretch=True)
    assert (cutter.cut(weights[regions], TopK(k), Place(None, regions))[1] == expected).all()


def test_superpixels_of_one_value_stay_together_and_a_constant_map_has_none() -> None:
    regions = np.repeat(np.arange(6), 4).reshape(4, 6)
    lungs = np.zeros((4, 6), np.float32)
    lungs[:, 2:4] = 1
    for k in (1, 2, MOST):
        whole = Cutter("both", clip_to_lungs=True, median=0, stretch=True)
        place = Place(lungs > 0, regions)
        assert (whole.cut(lungs, TopK(k), place)[1] == (lungs > 0)).all(), "the whole lung"
        assert not PLAIN.cut(np.full((4, 6), 0.3, np.float32), TopK(k), place)[1].any()


def test_equal_means_of_unlike_pixels_are_equal_in_whatever_order_they_are_summed() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(96, np.float32)
    others = [rng.permutation(one) for _ in range(30)]
    values = np.stack([np.zeros(96, np.float32), one, *others, np.ones(96, np.float32)])
    regions = np.arange(len(values))[:, None].repeat(96, 1)
    assert len({float(row.mean(dtype=np.float64)) for row in np.sort(values)[1:-1]}) == 1
    first, second = (PLAIN.cut(values, TopK(k), Place(None, regions))[1] for k in (1, 2))
    assert first.sum() == 96, "the ones"
    assert second.sum() == 32 * 96, "and all that are equal"


def test_the_whole_lung_is_the_lung_by_every_rule() -> None:
    rng = np.random.default_rng(0)
    lungs, regions = rng.random((12, 10)) > 0.6, np.arange(120).reshape(12, 10) // 7
    subject = Subject("x", np.zeros((12, 10), np.uint8), lungs, (12, 10))
    values = WholeLung().draw(subject)
    cutter = cutter_of(WholeLung())
    for cut in (0.5, None, Shares(0.1, 0.05), TopK(1), TopK(MOST)):
        assert (cutter.cut(values, cut, Place(lungs, regions))[1] == lungs).all(), cut
    plain = replace(cutter, clip_to_lungs=False)
    clipped = plain.cut(values, TopK(1), Place(lungs, regions))[1]
    assert (clipped != lungs).any(), "else the test shows nothing"


def test_superpixels_of_another_resolution_are_laid_over_the_map() -> None:
    values = np.zeros((8, 8), np.float32)
    values[:4, 4:] = 1
    found = rank_levels(values, np.array([[0, 1], [2, 70_000]]))
    assert (found > 0).tolist() == (values > 0).tolist()
    assert found.max() == pytest.approx(1 - 0.5 / (MOST + 1))


def test_thresholds_and_numbers_of_superpixels_are_the_same_thing() -> None:
    assert [k_of(threshold_of(k)) for k in range(1, MOST + 1)] == list(range(1, MOST + 1))
    assert sorted(threshold_of(k) for k in range(1, MOST + 1)) == sorted(CANDIDATES)
    assert (known("top_k", 5.0), known("val", 0.5)) == (TopK(5), 0.5)
    assert [of_every_image(cut) for cut in (TopK(5), 0.5)] == [5.0, 0.5]
    assert np.isnan(of_every_image(None))
    for wrong in (0, MOST + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {MOST} superpixels, but got {wrong}"):
            threshold_of(wrong)
    with pytest.raises(ValueError, match="expected the image's superpixels to rank, but got none"):
        PLAIN.cut(np.eye(4, dtype=np.float32), TopK(1), Place(None))
