"""Preprocessing: lung masking, CLAHE, and sizes, against closed forms and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.measure import block_reduce

from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import DataError
from raybench.types import ChestXray, Gray, Mask, XrayRecord

RECORD = XrayRecord("Test/COVID-19/a.png", "Test", "COVID-19", "a.png")
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)


def xray(image: Gray, lungs: Mask | None) -> ChestXray:
    return ChestXray(RECORD, image, lungs, None)


@st.composite
def xrays(draw: st.DrawFn) -> ChestXray:
    shape = draw(SHAPES)
    return xray(draw(hnp.arrays(np.uint8, shape)), draw(hnp.arrays(np.bool_, shape)))


@given(xrays(), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_outside_the_lungs_is_zero_whatever_else(x: ChestXray, masking: bool, clahe: bool) -> None:
    assert x.lung_mask is not None
    before = x.image.copy()
    done = Preprocess(lung_masking=masking, clahe=clahe).apply(x)
    np.testing.assert_array_equal(x.image, before)
    assert (done.dtype, done.shape) == (np.uint8, x.image.shape)
    assert not np.shares_memory(done, x.image)
    if masking:
        assert not done[~x.lung_mask].any()
    if not clahe:
        np.testing.assert_array_equal(done, np.where(x.lung_mask | (not masking), x.image, 0))


@given(xrays(), st.floats(0, 0.49), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_erased_border_is_zero_on_every_side_and_the_rest_as_it_was(
    x: ChestXray, share: float, masking: bool, clahe: bool
) -> None:
    done = Preprocess(lung_masking=masking, clahe=clahe, erase_border=share).apply(x)
    height, width = x.image.shape
    rows, columns = round(share * height), round(share * width)
    y, xs = np.mgrid[:height, :width]
    inside = (y >= rows) & (y < height - rows) & (xs >= columns) & (xs < width - columns)
    assert not done[~inside].any()
    if not clahe:
        plain = Preprocess(lung_masking=masking).apply(x)
        np.testing.assert_array_equal(done[inside], plain[inside])


def test_what_lies_outside_the_lungs_never_reaches_the_contrast_inside() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 120, (64, 64), dtype=np.uint8)
    lungs = np.zeros((64, 64), dtype=np.bool_)
    lungs[8:56, 8:28] = lungs[8:56, 36:56] = True
    lettered = np.where(lungs, image, 255).astype(np.uint8)
    clahe = Preprocess(clahe=True)
    done = clahe.apply(xray(image, lungs))
    np.testing.assert_array_equal(done, clahe.apply(xray(lettered, lungs)))
    assert np.ptp(done[lungs]) > np.ptp(image[lungs])


def test_one_tile_without_a_clip_is_plain_histogram_equalisation() -> None:
    image = np.random.default_rng(1).integers(0, 90, (32, 32), dtype=np.uint8)
    plain = Preprocess(lung_masking=False, clahe=True, clahe_clip=255, clahe_tiles=1)
    cumulative = np.cumsum(np.bincount(image.ravel(), minlength=256)) / image.size
    difference = plain.apply(xray(image, None)) - 255 * cumulative[image]
    assert np.abs(difference).max() <= 1


def test_a_missing_lung_mask_is_named_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"Test/COVID-19/a\.png.*preprocess\.lung_masking false"):
        Preprocess().apply(xray(np.zeros((4, 4), np.uint8), None))


@given(hnp.arrays(np.uint8, SHAPES), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_any_size_keeps_the_range_and_its_own_size_the_pixels(image: Gray, h: int, w: int) -> None:
    resized = resize_gray(image, (h, w))
    assert (resized.dtype, resized.shape) == (np.uint8, (h, w))
    assert image.min() <= resized.min()
    assert resized.max() <= image.max()
    assert resize_gray(image, (image.shape[0], image.shape[1])) is image


@given(hnp.arrays(np.uint8, (12, 18)), st.sampled_from([(6, 6), (4, 9), (12, 3), (2, 18)]))
@settings(max_examples=40, deadline=None)
def test_shrinking_averages_areas(image: Gray, size: tuple[int, int]) -> None:
    blocks = (12 // size[0], 18 // size[1])
    means = block_reduce(image.astype(np.float64), blocks, np.mean)
    assert np.abs(resize_gray(image, size) - means).max() <= 0.51


def test_growing_interpolates_between_pixels() -> None:
    ramp = np.array([[0, 100]], dtype=np.uint8)
    np.testing.assert_array_equal(resize_gray(ramp, (1, 4)), [[0, 25, 75, 100]])
