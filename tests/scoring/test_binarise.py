import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import median_filter

from raybench.scoring.binarise import (
    CANDIDATES,
    binarise,
    choose_threshold,
    min_max,
    oriented,
)
from raybench.scoring.overlap import iou

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
# Whole numbers, so that scaling by a power of two and shifting lose no bit.
MAPS = arrays(np.int16, SHAPES, elements=st.integers(-100, 100)).map(lambda a: a.astype(np.float32))


@settings(deadline=None)
@given(MAPS, st.sampled_from([0.25, 1.0, 8.0]), st.integers(-500, 500), st.sampled_from([0, 3, 5]))
def test_scale_and_offset_do_not_matter(
    values: np.ndarray, scale: float, offset: int, median: int
) -> None:
    moved = np.float32(scale) * values + np.float32(offset)
    assert np.array_equal(min_max(moved), min_max(values))
    assert np.array_equal(binarise(moved, 0.4, median=median), binarise(values, 0.4, median=median))


@settings(deadline=None)
@given(MAPS, st.integers(0, 10**6), st.sampled_from(CANDIDATES))
def test_salient_mask_is_threshold_then_clip_then_median(
    values: np.ndarray, seed: int, threshold: float
) -> None:
    clip = np.random.default_rng(seed).random(values.shape) < 0.7
    plain = binarise(values, threshold)
    clipped = binarise(values, threshold, clip)
    assert np.array_equal(plain, min_max(values) > np.float32(threshold))
    assert np.array_equal(clipped, plain & clip)
    smooth = median_filter(clipped.astype(np.uint8), size=5, mode="nearest") > 0
    assert np.array_equal(binarise(values, threshold, clip, median=5), smooth)


def test_min_max_of_unusual_maps() -> None:
    assert not min_max(np.full((3, 3), 7, np.float32)).any(), "nothing stands out"
    assert not binarise(np.full((3, 3), 7, np.float32), 0.05).any()
    most = np.finfo(np.float32).max
    assert min_max(np.array([[-most, 0, most]], np.float32)).tolist() == [[0, 0.5, 1]]
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="1 of 4 are NaN or infinite"):
            min_max(np.array([[0, 1], [bad, 2]], np.float32))


def images(seed: int, n: int, side: int = 24) -> tuple[list, list, list]:
    rng = np.random.default_rng(seed)
    maps, truths, clips = [], [], []
    for _ in range(n):
        truth = np.zeros((side, side), bool)
        top, left = rng.integers(0, side - 4, 2)
        truth[top : top + 10, left : left + 10] = True
        maps.append((truth * rng.uniform(0, 2) + rng.normal(size=truth.shape)).astype(np.float32))
        truths.append(truth)
        clips.append(None if rng.random() < 0.2 else rng.random(truth.shape) < 0.8)
    return maps, truths, clips


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0, 1, 3, 5, 7]), st.booleans())
def test_chosen_threshold_is_the_one_that_trying_all_finds(
    seed: int, n: int, median: int, clipped: bool
) -> None:
    maps, truths, clips = images(seed, n)
    used = clips if clipped else [None] * n
    means = {
        candidate: np.mean(
            [
                iou(binarise(m, candidate, c, median), t)
                for m, t, c in zip(maps, truths, used, strict=True)
            ]
        )
        for candidate in CANDIDATES
    }
    threshold, mean = choose_threshold(iter(maps), truths, clips if clipped else None, median)
    best = max(means.values())
    tied = [c for c in CANDIDATES if means[c] > best - 1e-9]
    assert mean == pytest.approx(best)
    assert threshold == min(tied, key=lambda c: (round(abs(c - 0.5), 9), c))


def test_ties_go_to_the_middle_then_down() -> None:
    truth = np.array([[True, False]])
    step = [truth.astype(np.float32)]
    assert choose_threshold(step, [truth]) == (0.5, 1.0)
    assert choose_threshold(step, [truth], candidates=(0.9, 0.55, 0.45)) == (0.45, 1.0)


def test_maps_are_streamed() -> None:
    given_out: list[weakref.ref] = []

    def stream() -> Iterator[np.ndarray]:
        for _ in range(20):
            held = sum(ref() is not None for ref in given_out)
            assert held <= 2, "old maps are still held"
            values = np.eye(8, dtype=np.float32)
            given_out.append(weakref.ref(values))
            yield values
            del values

    choose_threshold(stream(), [np.eye(8, dtype=bool)] * 20)
    assert len(given_out) == 20


def test_what_is_refused() -> None:
    values, mask = np.eye(4, dtype=np.float32), np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match="odd number"):
        binarise(values, 0.5, median=4)
    with pytest.raises(ValueError, match="clip: expected a bool mask"):
        binarise(values, 0.5, mask[:3])
    with pytest.raises(ValueError, match="at least one image"):
        choose_threshold([], [])
    with pytest.raises(ValueError, match=r"longer|shorter"):
        choose_threshold([values, values], [mask])
    with pytest.raises(ValueError, match="truth: expected a bool mask"):
        choose_threshold([values], [mask.astype(np.uint8)])
    with pytest.raises(ValueError, match="candidates"):
        choose_threshold([values], [mask], candidates=())


@settings(deadline=None)
@given(MAPS)
def test_what_speaks_for_and_what_speaks_against(values: np.ndarray) -> None:
    """The two parts never overlap, and together are the map."""
    pro, contra = oriented(values, "for"), oriented(values, "against")
    assert pro.min() >= 0
    assert contra.min() >= 0
    assert not (pro * contra).any()
    assert np.array_equal(pro - contra, values)
    assert np.array_equal(pro + contra, oriented(values, "absolute"))
    assert oriented(values, "both") is values
    assert np.array_equal(oriented(-values, "for"), contra)


def test_probabilities_are_cut_as_they_are() -> None:
    values = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    truth = values > 0.25
    assert not binarise(values, 0.5, stretch=False).any()
    assert binarise(values, 0.5).sum() == 2  # stretched, the largest is 1
    np.testing.assert_array_equal(binarise(values, 0.25, stretch=False), truth)
    assert choose_threshold([values], [truth], stretch=False) == (0.25, 1.0)
    for bad in (values + 1, values - 1, np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            binarise(bad, 0.5, stretch=False)
