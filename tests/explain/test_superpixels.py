"""Superpixels: what every kind promises, scikit-image called directly, and the lungs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.filters import sobel
from skimage.measure import label
from skimage.segmentation import felzenszwalb, quickshift, slic, watershed

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain import Lime, RandomSuperpixels
from raybench.explain.regions import Labels, Superpixels, confined, dense, on_grid
from raybench.explain.superpixels import (
    AnySuperpixels,
    CompactWatershed,
    Felzenszwalb,
    Grid,
    Quickshift,
    Slic,
    superpixels_unit,
)
from raybench.models.classifier import Classifier
from raybench.types import ChestXray, Gray, Mask, Subject

MEMBERS: tuple[type[Superpixels], ...] = get_args(get_args(AnySuperpixels)[0])
CONNECTED = {Slic: 1, Felzenszwalb: 2, CompactWatershed: 1, Grid: 1}
"""1: by sides, 2: by sides or corners. Quickshift links what lies apart."""

each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)


@st.composite
def images(draw: st.DrawFn) -> Gray:
    """Constant, noisy, in few levels or smooth, and any small shape."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from(["constant", "noise", "levels", "smooth"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "constant":
        return np.full(shape, rng.integers(0, 256), np.uint8)
    if kind == "smooth":
        return (np.add.outer(*map(np.arange, shape)) * rng.integers(1, 9) % 256).astype(np.uint8)
    drawn = rng.integers(0, 256 if kind == "noise" else 3, shape)
    return drawn.astype(np.uint8)


def check(labels: Labels, shape: tuple[int, ...]) -> None:
    assert (labels.shape, labels.dtype) == (shape, np.int32)
    assert sorted(np.unique(labels)) == list(range(int(labels.max()) + 1))


@each_member
@given(images())
@settings(max_examples=25, deadline=None)
def test_every_kind(member: type[Superpixels], image: Gray) -> None:
    before = image.copy()
    labels = member().segment(image)
    check(labels, image.shape)
    np.testing.assert_array_equal(labels, member().segment(image, np.ones((5, 5), bool)))
    np.testing.assert_array_equal(image, before)
    if member in CONNECTED:
        assert label(labels + 1, connectivity=CONNECTED[member]).max() == labels.max() + 1


@st.composite
def lungs_of(draw: st.DrawFn, shape: tuple[int, ...]) -> Mask:
    mask = draw(hnp.arrays(np.bool_, shape))
    mask[tuple(draw(st.integers(0, n - 1)) for n in shape)] = True
    return mask


@each_member
@given(st.data(), st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_every_kind_within_the_lungs(
    member: type[Superpixels], data: st.DataObject, smallest: int
) -> None:
    image = data.draw(images())
    lungs = data.draw(lungs_of(image.shape))
    labels = member(confine=True, smallest_piece=smallest).segment(image, lungs)
    check(labels, image.shape)
    outside = set(np.unique(labels[~lungs]))
    assert outside <= {0}
    assert not outside & set(np.unique(labels[lungs]))
    islands = label(lungs, connectivity=1)
    for k in np.unique(labels[lungs]):
        piece = labels == k
        assert label(piece, connectivity=1).max() == 1
        on = islands[piece][0]
        assert piece.sum() >= min(smallest, int((islands == on).sum()))


@pytest.fixture(scope="module")
def small(masked: Gray) -> Gray:
    return resize_gray(masked, (96, 80))


def test_scikit_image_says_the_same(small: Gray) -> None:
    rgb = np.stack([small] * 3, axis=2)
    cases: list[tuple[Superpixels, Any]] = [
        (Quickshift(), quickshift(rgb, kernel_size=4, max_dist=200, ratio=0.2)),
        (Quickshift(kernel_size=2), quickshift(rgb, kernel_size=2, max_dist=200, ratio=0.2)),
        (Slic(), slic(rgb, n_segments=50, compactness=10)),
        (
            Slic(n_segments=20, compactness=3, sigma=1),
            slic(rgb, n_segments=20, compactness=3, sigma=1),
        ),
        (Felzenszwalb(), felzenszwalb(small, scale=100, min_size=50, channel_axis=None)),
        (Felzenszwalb(scale=9, sigma=2, min_size=5), felzenszwalb(small, 9, 2, 5)),
        (CompactWatershed(), watershed(sobel(small), markers=50, compactness=0.001)),
        (
            CompactWatershed(n_segments=9, compactness=0),
            watershed(sobel(small), markers=9, compactness=0),
        ),
    ]
    counts = []
    for superpixels, theirs in cases:
        ours = superpixels.segment(small)
        counts.append(ours.max() + 1)
        pairs = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1)
        assert len(pairs[0]) == counts[-1] == len(np.unique(theirs)), superpixels
    assert min(counts) > 1


def test_a_grid_is_even() -> None:
    labels = Grid(cells=4).segment(np.zeros((10, 6), np.uint8))
    assert np.bincount(labels.ravel()).tolist() == [6, 3, 6, 3, 4, 2, 4, 2, 6, 3, 6, 3, 4, 2, 4, 2]
    assert labels[0].tolist() == [0, 0, 1, 2, 2, 3]
    assert Grid(cells=9).segment(np.zeros((2, 3), np.uint8)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_slivers_join_the_neighbour_with_the_longest_border() -> None:
    lungs = np.zeros((7, 12), bool)
    lungs[1:6, 1:6] = lungs[1:6, 7:11] = True
    lungs[0, 11] = True  # an island of one pixel
    labels = np.full((7, 12), 1)
    labels[1:3, 1:6], labels[3:6, 1:3], labels[4:6, 3:6] = 2, 3, 4
    # 1 reaches over everything else: a strip of three pixels in the left lung, all of the right.
    found = confined(labels, lungs, smallest=4)
    assert (found[~lungs] == 0).all()
    assert len(np.unique(found[lungs])) == 5
    strip = np.unique(found[3, 3:6])
    assert strip.tolist() in (np.unique(found[1:3, 1:6]).tolist(), np.unique(found[4:, 4]).tolist())
    assert (found[1:6, 7:11] == found[1, 7]).all()
    assert (found == found[1, 7]).sum() == 20
    assert (found == found[0, 11]).sum() == 1
    merged = confined(labels, lungs, smallest=100)
    assert len(np.unique(merged[lungs])) == 3  # two lungs and the island


def test_a_sliver_goes_to_the_longer_border_first() -> None:
    lungs = np.ones((4, 6), bool)
    labels = np.zeros((4, 6), int)
    labels[:2, :5], labels[2:, :5] = 1, 2
    labels[1, 4] = labels[:, 5] = 3
    labels[2:, 5] = 4
    found = dense(confined(labels, lungs, smallest=4))
    # 4 has two pixels: two sides with 2, one with 3.
    np.testing.assert_array_equal(found == found[3, 5], (labels == 2) | (labels == 4))
    # 3 has three: two with 1 above and to the left, and one each with 2 and 4.
    assert found[1, 4] == found[0, 5] == found[1, 5] == found[0, 0]


@each_member
def test_confined_to_the_lungs_of_an_xray(
    member: type[Superpixels], xray: ChestXray, small: Gray
) -> None:
    assert xray.lung_mask is not None
    labels = member(confine=True).segment(small, xray.lung_mask)
    lungs = on_grid(xray.lung_mask, small.shape)
    assert 0.1 < lungs.mean() < 0.9
    np.testing.assert_array_equal(labels == 0, ~lungs)
    assert 3 < labels.max() < 60
    for mask, said in ((None, "found none"), (np.zeros((9, 9), bool), "found an empty one")):
        with pytest.raises(ExplainError, match=said):
            member(confine=True).segment(small, mask)


@pytest.mark.parametrize("shape", [(7, 5), (9, 9), (40, 31)])
def test_the_mask_comes_by_nearest_neighbour(xray: ChestXray, shape: tuple[int, int]) -> None:
    mask = xray.lung_mask
    assert mask is not None
    rows, columns = (
        np.floor((np.arange(n) + 0.5) * whole / n).astype(int)
        for n, whole in zip(shape, mask.shape, strict=True)
    )
    np.testing.assert_array_equal(on_grid(mask, shape), mask[np.ix_(rows, columns)])
    assert on_grid(mask, mask.shape) is mask


def test_the_unit_carries_the_mask_and_its_key_where_it_matters(
    xray: ChestXray, small: Gray
) -> None:
    assert xray.lung_mask is not None
    half = xray.lung_mask.copy()
    half[:, :80] = False

    def unit(superpixels: Superpixels, lungs: Mask | None, image: Gray = small) -> Any:
        return superpixels_unit(superpixels, Subject("a", image, lungs, xray.image.shape))

    def key(*args: Any) -> str:
        return str(unit(*args).question.key)

    free, bound = Quickshift(), Quickshift(confine=True)
    assert set(unit(free, xray.lung_mask).payload) == {"image"}
    assert set(unit(bound, xray.lung_mask).payload) == {"image", "lungs"}
    assert unit(bound, xray.lung_mask).payload["lungs"].shape == small.shape
    keys = [
        key(free, half),
        key(bound, half),
        key(bound, xray.lung_mask),
        key(Quickshift(confine=True, smallest_piece=5), half),
        key(Quickshift(ratio=0.3), half),
        key(Slic(), half),
        key(free, half, small // 2),
    ]
    assert len(set(keys)) == len(keys)
    assert key(free, half) == key(free, None) == key(Quickshift(smallest_piece=5), half)


def test_explainers_take_the_family_by_name(xray: ChestXray, small: Gray) -> None:
    for kind in ("slic", "felzenszwalb", "watershed", "grid", "quickshift"):
        lime, random = (e.model_validate({"superpixels": kind}) for e in (Lime, RandomSuperpixels))
        assert lime.superpixels == random.superpixels
        assert lime.superpixels.name == kind
        assert type(lime).model_validate_json(lime.model_dump_json()) == lime
        subject = Subject("a", small, None, small.shape)
        done = {"superpixels": lime.run(lime.plan(subject, {})[0], None)}
        expected = lime.superpixels.segment(small)
        np.testing.assert_array_equal(done["superpixels"]["labels"], expected)
        assert lime.plan(subject, done)
    bare = Lime.model_validate({"superpixels": {"kernel_size": 3}})
    assert bare.superpixels == Quickshift(kernel_size=3)


def test_lime_within_the_lungs(
    xray: ChestXray, masked: Gray, make_classifier: Callable[..., Classifier]
) -> None:
    assert xray.lung_mask is not None
    lime = Lime(n_samples=20, superpixels=Slic(confine=True))
    assert lime.needs_lungs
    assert not Lime().needs_lungs
    model = make_classifier("test_resnet")
    found = lime.attribute(model, masked, lung_mask=xray.lung_mask)
    labels = found.extras["superpixels"]
    np.testing.assert_array_equal(labels == 0, ~on_grid(xray.lung_mask, labels.shape))
    assert found.values[0, 0] == np.float32(found.extras["weights"][0])
    with pytest.raises(ExplainError, match=r"superpixels: expected a lung mask .* found none"):
        lime.attribute(model, masked)


def test_what_is_kept_is_named_as_before() -> None:
    """Answers that an earlier version kept are found."""
    assert Quickshift().identity.endswith(
        '{"name":"quickshift","kernel_size":4.0,"max_dist":200.0,"ratio":0.2}'
    )
