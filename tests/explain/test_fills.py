"""What stands in for a superpixel, and where neighbours come from."""

from __future__ import annotations

from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import TypeAdapter

from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ExplainError
from raybench.explain import Occlusion, Rise
from raybench.explain.fills import AnyFill, AnyWholeFill, Blur, Inpaint, Mean, Neighbour, Noise
from raybench.explain.lime import Lime
from raybench.explain.neighbours import Bank, distances, lay_over, pixel_features
from raybench.explain.perturbation import render
from raybench.types import Gray, Mask, Subject
from tests.explain.conftest import MakeClassifier

MEMBERS: tuple[Any, ...] = get_args(get_args(AnyFill)[0])


def subject_of(image: Gray, n_neighbours: int = 4) -> Subject:
    near = np.stack([np.roll(image, number + 1, axis=1) for number in range(n_neighbours)])
    return Subject("a", image, None, (image.shape[0], image.shape[1]), None, near)


def blocks(shape: tuple[int, int], side: int = 16) -> NDArray[np.int32]:
    rows, columns = np.indices(shape) // side
    return (rows * (columns.max() + 1) + columns).astype(np.int32)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Gray, NDArray[np.int32]]:
    """An image and labels 0 to K - 1 that all occur."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
    raw = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 6)))
    labels = np.unique(raw, return_inverse=True)[1].reshape(shape).astype(np.int32)
    return draw(hnp.arrays(np.uint8, shape)), labels


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
@given(scene=scenes())
@settings(max_examples=25, deadline=None)
def test_every_fill_draws_images_that_stay_the_same(
    member: Any, scene: tuple[Gray, NDArray[np.int32]]
) -> None:
    image, labels = scene
    fill, before = member(), image.copy()
    drawn = fill.draw(subject_of(image), labels)
    assert (drawn.dtype, drawn.shape) == (np.uint8, (fill.n_drawn, *image.shape))
    np.testing.assert_array_equal(fill.draw(subject_of(image), labels), drawn)
    np.testing.assert_array_equal(image, before)
    if member in get_args(get_args(AnyWholeFill)[0]):
        assert fill.draw(subject_of(image), None).shape == drawn.shape


@given(scenes())
@settings(max_examples=100, deadline=None)
def test_mean_against_lime(scene: tuple[Gray, NDArray[np.int32]]) -> None:
    image, labels = scene
    rgb = np.repeat(image[:, :, None], 3, axis=2)
    fudged = rgb.copy()
    for label in np.unique(labels):
        fudged[labels == label] = tuple(np.mean(rgb[labels == label][:, c]) for c in range(3))
    np.testing.assert_array_equal(Mean().draw(subject_of(image), labels)[0], fudged[:, :, 0])


def test_inpainting_looks_at_everything_but_the_superpixel_itself(masked: Gray) -> None:
    labels = blocks(masked.shape)
    hidden = labels == labels[masked.shape[0] // 2, masked.shape[1] // 3]
    assert masked[hidden].any()
    changed = np.where(hidden, 255 - masked, masked)
    here, there = (Inpaint().draw(subject_of(i), labels)[0] for i in (masked, changed))
    np.testing.assert_array_equal(here[hidden], there[hidden])
    assert (here[hidden] != masked[hidden]).any()
    radius = max(1.0, 0.02 * min(masked.shape))
    whole = cv2.inpaint(masked, hidden.astype(np.uint8), radius, cv2.INPAINT_TELEA)
    np.testing.assert_array_equal(here[hidden], whole[hidden])


def test_noise_keeps_the_outline_the_mean_and_the_spread(masked: Gray) -> None:
    drawn = Noise(n_images=3).draw(subject_of(masked), None)
    assert not drawn[:, masked == 0].any()
    lit = masked > 0
    assert drawn[:, lit].mean() == pytest.approx(masked[lit].mean(), abs=2)
    assert drawn[:, lit].std() == pytest.approx(masked[lit].std(), rel=0.1)
    np.testing.assert_array_equal(Noise(n_images=2).draw(subject_of(masked), None), drawn[:2])
    assert (Noise(seed=1, n_images=1).draw(subject_of(masked), None)[0] != drawn[0]).any()


def test_blur_scales_with_the_image(masked: Gray) -> None:
    small = cv2.resize(masked, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    large = Blur().draw(subject_of(masked), None)[0]
    halved = cv2.resize(large, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    found = Blur().draw(subject_of(small), None)[0]
    assert abs(found.astype(int) - halved).mean() < 1


def test_neighbours_take_turns_or_are_averaged(masked: Gray) -> None:
    subject = subject_of(masked)
    near = subject.neighbours
    assert near is not None
    np.testing.assert_array_equal(Neighbour(n=3).draw(subject, None), near[:3])
    mean = Neighbour(n=3, combine="mean").draw(subject, None)
    assert abs(mean[0] - near[:3].astype(float).mean(axis=0)).max() <= 0.5
    with pytest.raises(ExplainError, match="a: fill: expected 5 neighbours, found 4"):
        Neighbour(n=5).draw(subject, None)


@pytest.mark.parametrize("design", ["independent", "completed"])
def test_lime_asks_about_the_images_that_its_fill_gives(
    design: str, make_classifier: MakeClassifier, masked: Gray
) -> None:
    """Pairs share a fill, and the surrogate's answers are those to images rendered here."""
    classifier = make_classifier(size=(masked.shape[0], masked.shape[1]))
    settings = {"n_samples": 60, "design": design, "chunk": 16, "superpixels": {"ratio": 0.5}}
    lime = Lime.model_validate({**settings, "fill": {"name": "neighbour", "n": 3}})
    subject = subject_of(masked)
    done: dict[str, Any] = {}
    while units := lime.plan(subject, done):
        done |= {unit.name: lime.run(unit, classifier) for unit in units}
    seen = lime._neighbourhood(subject, done)
    rows = seen.first
    assert set(seen.which[rows].tolist()) == {0, 1, 2}
    together = 1 if design == "independent" else 2
    shown = np.arange(1, len(seen.keep)) // seen.completions
    for image_number in range(1, 55):
        own = seen.which[1:][shown == image_number]
        assert (own == (image_number - 1) // together % 3).all()
    near = subject.neighbours
    assert near is not None
    labels = done["superpixels"]["labels"]
    images = render(masked, near[:3], labels, seen.keep[rows], seen.which[rows])
    found = np.concatenate([done[n]["answers"] for n in sorted(done) if n.startswith("samples")])
    np.testing.assert_allclose(found, classifier.predict(images), atol=1e-6)
    other = Lime.model_validate({**settings, "fill": {"name": "neighbour", "n": 2}})
    keys = {
        unit.question.key
        for each in (lime, other)
        for unit in each.plan(subject, {"superpixels": done["superpixels"]})
        if unit.question is not None
    }
    assert len(keys) == 2


def box(shape: tuple[int, int], top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_a_neighbour_fills_the_lungs_of_a_resized_phantom_and_nothing_else() -> None:
    data = Phantom(name="phantom", n_train=2, n_val=1, n_test=1, size=256)
    one, other = (data.load(data.records()[i]) for i in (0, -1))
    image = resize_gray(Preprocess().apply(one), (100, 100))
    found = lay_over(Preprocess().apply(other), other.lung_mask, image, one.lung_mask)
    np.testing.assert_array_equal(found > 0, image > 0)


def test_a_neighbour_is_laid_lungs_over_lungs() -> None:
    """A ramp in one box comes out as the same ramp in another, twice as large."""
    its_lungs, lungs = box((60, 70), 10, 30, 5, 45), box((90, 100), 20, 60, 12, 92)
    columns = np.indices(its_lungs.shape)[1]
    other = np.where(its_lungs, 5 * (columns - 5) + 20, 0).astype(np.uint8)
    image = np.where(lungs, 100, 0).astype(np.uint8)
    found = lay_over(other, its_lungs, image, lungs)
    assert not found[~lungs].any()
    expected = 2.5 * (np.indices(lungs.shape)[1] - 12 - 0.5) + 20
    inner = box((90, 100), 26, 54, 18, 86)
    assert abs(found.astype(float) - expected)[inner].max() <= 1.5


def test_no_hole_is_left_where_the_neighbours_lungs_end() -> None:
    """An hourglass laid over a full box: what it lacks is taken from its nearest lung pixel."""
    lungs = box((64, 64), 8, 56, 8, 56)
    its_lungs = lungs & ~box((64, 64), 24, 40, 8, 24) & ~box((64, 64), 24, 40, 40, 56)
    other = np.where(its_lungs, 90, 0).astype(np.uint8)
    image = np.where(lungs, 200, 0).astype(np.uint8)
    np.testing.assert_array_equal(
        lay_over(other, its_lungs, image, lungs), np.where(lungs, 90, 0).astype(np.uint8)
    )
    rim = np.where(lungs, 200, 0).astype(np.uint8)
    rim[7, 8:56] = 30  # what resizing leaves beside the mask
    rimmed = lay_over(other, its_lungs, rim, lungs)
    np.testing.assert_array_equal(rimmed, np.where(rim > 0, 90, 0).astype(np.uint8))
    unmasked = np.full((64, 64), 7, np.uint8)
    np.testing.assert_array_equal(lay_over(other, its_lungs, unmasked, lungs), other)
    np.testing.assert_array_equal(lay_over(other, None, image, lungs), other)


@pytest.mark.parametrize("masked", [False, True])
def test_a_large_neighbour_is_averaged_and_not_sampled(masked: bool) -> None:
    """Stripes of two pixels, shown at an eighth of their size, are their mean grey everywhere."""
    lungs = np.zeros((64, 48), bool)
    lungs[10:50, 8:40] = True
    its_lungs = np.zeros((520, 520), bool)
    its_lungs[61:381, 101:357] = True
    lines = np.arange(520) // 2 % 2
    for stripes in (lines[None], lines[:, None]):
        other = np.broadcast_to(200 * stripes, (520, 520)).astype(np.uint8)
        other = np.where(its_lungs, other, 0).astype(np.uint8) if masked else other
        image = np.where(lungs | (not masked), 90, 0).astype(np.uint8)
        laid = lay_over(other, its_lungs, image, lungs)
        assert np.abs(laid[lungs].astype(int) - 100).max() <= 1
    # What is shown keeps its place: a bright quarter of the lungs' box stays a quarter.
    other = np.zeros((520, 520), np.uint8)
    other[61:221, 101:229] = 250
    other = np.maximum(other, np.where(its_lungs, 50, 0)).astype(np.uint8)
    laid = lay_over(other, its_lungs, image, lungs)
    expected = np.where(lungs, 50, laid)
    expected[10:30, 8:24] = 250
    np.testing.assert_array_equal(laid[lungs], expected[lungs])
    speck = np.zeros((64, 48), bool)
    speck[30, 20] = True  # lungs of a pixel: the scale is in the hundreds, the memory is not
    assert lay_over(other, its_lungs, np.where(speck, 90, 0).astype(np.uint8), speck).any()


def test_the_bank_gives_the_nearest_of_other_patients() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 5))
    images = [np.full((20, 20), 40 * number, np.uint8) for number in range(6)]
    bank = Bank(
        features, lambda i: (images[i], None), list("aabbab"), ["p", "q", "p", None, "r", "q"]
    )
    asked = features[2] + 0.01
    cosines = features @ asked / np.linalg.norm(features, axis=1) / np.linalg.norm(asked)
    order = [int(i) for i in np.argsort(-cosines)]
    assert bank.nearest(asked, 6) == order
    assert order[0] == 2
    assert bank.nearest(asked, 4, patient="p") == [i for i in order if i not in (0, 2)]
    assert bank.nearest(asked, 2, patient="q", among="b") == [i for i in order if i in (2, 3)]
    near = bank.neighbours(np.ones((10, 12), np.uint8), None, asked, 3)
    assert [int(image[0, 0]) for image in near] == [40 * i for i in order[:3]]
    assert near.shape == (3, 10, 12)
    with pytest.raises(ExplainError, match=r"expected 4 neighbours .* class b, the bank has 3"):
        bank.nearest(asked, 4, among="b")
    with pytest.raises(ExplainError, match="expected a label for each of the bank's 6 images"):
        Bank(features, bank.load).nearest(asked, 1, among="b")
    np.testing.assert_allclose(
        distances(features[:2] * 3, features[1:]),
        [
            1
            - max(
                (features[1:] @ features[0])
                / np.linalg.norm(features[1:], axis=1)
                / np.linalg.norm(features[0])
            ),
            0,
        ],
        atol=1e-12,
    )


def test_pixel_features_do_not_see_brightness() -> None:
    image = np.random.default_rng(0).integers(0, 200, (40, 40), dtype=np.uint8)
    features = pixel_features([image, image + 50])
    assert features.shape == (2, 256)
    np.testing.assert_allclose(features[0], features[1], atol=1.01)


def test_short_forms_and_mistakes() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(AnyFill)
    assert adapter.validate_python("blur") == Blur()
    assert Lime.model_validate({"fill": "mean"}).fill == Mean()
    assert Lime.model_validate({"fill": {"name": "neighbour", "n": 4}}).fill == Neighbour(n=4)
    with pytest.raises(ValueError, match="grey"):
        adapter.validate_python("grey")
    for member in (Rise, Occlusion):
        assert member.model_validate({"fill": {"name": "noise", "n_images": 1}}).fill.n_drawn == 1
        with pytest.raises(ValueError, match="found 8 that take turns; set n_images: 1"):
            member.model_validate({"fill": "noise"})
        with pytest.raises(ValueError, match="found 3 that take turns; set combine: mean"):
            member.model_validate({"fill": {"name": "neighbour", "n": 3}})
        with pytest.raises(ValueError, match="inpaint"):
            member.model_validate({"fill": "inpaint"})
