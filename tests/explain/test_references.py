"""The maps made without a model."""

from __future__ import annotations

import numpy as np
import pytest

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain import CentrePrior, Explainer, Quickshift, RandomSuperpixels, WholeLung
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
