"""The maps made without a model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.filters import scharr

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain import (
    CentrePrior,
    Edges,
    Explainer,
    Intensity,
    Quickshift,
    RandomSuperpixels,
    Slic,
    WholeLung,
)
from raybench.types import ChestXray, Gray, Subject, Values


def draw(explainer: Explainer, subject: Subject) -> Values:
    (unit,) = explainer.plan(subject, {})
    found = explainer.merge(subject, {unit.name: explainer.run(unit, None)})
    assert (found.target, found.n_forward, explainer.n_forward_planned()) == (None, 0, 0)
    return found.values


def test_whole_lung_is_the_lung_mask(xray: ChestXray, masked: Gray) -> None:
    assert xray.lung_mask is not None
    values = draw(WholeLung(), Subject("a", masked, xray.lung_mask, masked.shape))
    np.testing.assert_array_equal(values, xray.lung_mask.astype(np.float32))
    with pytest.raises(ExplainError, match="b: whole_lung needs a lung mask"):
        draw(WholeLung(), Subject("b", masked, None, masked.shape))


@pytest.mark.parametrize("shape", [(64, 64), (65, 90), (90, 65)])
def test_centre_prior_is_a_symmetric_gaussian(masked: Gray, shape: tuple[int, int]) -> None:
    values = draw(CentrePrior(sigma=0.2), Subject("a", masked, None, shape))
    np.testing.assert_allclose(values, values[::-1], rtol=1e-6)
    np.testing.assert_allclose(values, values[:, ::-1], rtol=1e-6)
    middle = shape[0] // 2, shape[1] // 2
    assert values[middle] == values.max() == pytest.approx(1, abs=2e-3)
    # One deviation is a fifth of each side: 0.3 of the way from the edge.
    down = np.interp(0.3, (np.arange(shape[0]) + 0.5) / shape[0], values[:, middle[1]])
    across = np.interp(0.3, (np.arange(shape[1]) + 0.5) / shape[1], values[middle[0]])
    assert down == pytest.approx(np.exp(-0.5), abs=3e-3)
    assert across == pytest.approx(np.exp(-0.5), abs=3e-3)
    wide = draw(CentrePrior(sigma=0.5), Subject("a", masked, None, shape))
    assert (wide >= values).all()


def test_random_superpixels_are_limes_with_weights_of_their_own(masked: Gray) -> None:
    image = resize_gray(masked, (96, 96))

    def named(image_id: str, seed: int = 0) -> Values:
        return draw(RandomSuperpixels(seed=seed), Subject(image_id, image, None, image.shape))

    values, labels = named("a"), Quickshift().segment(image)
    weights = [np.unique(values[labels == k]) for k in range(labels.max() + 1)]
    assert all(len(found) == 1 for found in weights)
    assert len(np.unique(values)) == labels.max() + 1
    assert 0 <= values.min() < values.max() <= 1
    np.testing.assert_array_equal(values, named("a"))
    assert (values != named("b")).mean() > 0.9
    assert (values != named("a", seed=1)).mean() > 0.9


def test_random_superpixels_of_another_kind_and_within_the_lungs(
    xray: ChestXray, masked: Gray
) -> None:
    assert xray.lung_mask is not None
    explainer = RandomSuperpixels(superpixels=Slic(confine=True))
    values = draw(explainer, Subject("a", masked, xray.lung_mask, masked.shape))
    assert len(np.unique(values[~xray.lung_mask])) == 1
    assert values[~xray.lung_mask][0] not in values[xray.lung_mask]
    assert explainer.needs_lungs
    assert not RandomSuperpixels(superpixels=Slic()).needs_lungs
    with pytest.raises(ExplainError, match=r"superpixels: expected a lung mask .*found none"):
        draw(explainer, Subject("a", masked, None, masked.shape))


def test_the_centre_prior_is_learned_where_there_is_something_to_learn(masked: Gray) -> None:
    prior = np.random.default_rng(0).random(masked.shape, dtype=np.float32)
    subject = Subject("a", masked, None, masked.shape, prior=prior)
    np.testing.assert_array_equal(draw(CentrePrior(), subject), prior)
    gaussian = draw(CentrePrior(), Subject("a", masked, None, masked.shape))
    np.testing.assert_array_equal(draw(CentrePrior(learned=False), subject), gaussian)
    assert CentrePrior().needs_prior
    assert not CentrePrior(learned=False).needs_prior
    assert not WholeLung().needs_prior


def test_intensity_is_the_image(masked: Gray) -> None:
    values = draw(Intensity(), Subject("a", masked, None, masked.shape))
    np.testing.assert_array_equal(values, masked)
    assert values.dtype == np.float32


def test_edges_are_scharrs_of_the_smoothed_image(xray: ChestXray) -> None:
    image = xray.image
    grey = image / 255.0
    for lungs in (None, xray.lung_mask):  # an image that is not masked is looked at whole
        subject = Subject("a", image, lungs, image.shape)
        plain = draw(Edges(smoothing=0), subject)
        np.testing.assert_allclose(plain, scharr(grey), atol=1e-6)
        smooth = draw(Edges(smoothing=2), subject)
        np.testing.assert_allclose(smooth, scharr(gaussian_filter(grey, 2)), atol=1e-6)
        assert plain.mean() > smooth.mean() > 0


def test_the_outline_of_the_lungs_is_no_edge(xray: ChestXray, masked: Gray) -> None:
    lungs = xray.lung_mask
    assert lungs is not None
    flat = np.where(lungs, 120, 0).astype(np.uint8)
    for smoothing in (0, 1, 4):
        subject = Subject("a", flat, lungs, flat.shape)
        assert draw(Edges(smoothing=smoothing), subject).max() < 1e-6
        assert draw(Edges(smoothing=smoothing, outline=True), subject).max() > 0.05
    subject = Subject("a", masked, lungs, masked.shape)
    values = draw(Edges(), subject)
    assert (values[~lungs] == 0).all()
    assert values.max() > 0
    whole = Subject("a", masked, np.ones_like(lungs), masked.shape)
    inside = gaussian_filter(lungs.astype(float), 1.5) > 1 - 1e-9  # the outline is not felt
    np.testing.assert_allclose(values[inside], draw(Edges(), whole)[inside], atol=1e-3)
    assert inside.any()
