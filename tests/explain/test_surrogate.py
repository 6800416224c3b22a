"""The surrogate against scikit-learn, and against effects that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import pairwise_distances
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.explain import Lime, Quickshift, RidgeSurrogate
from raybench.explain.perturbation import Keep
from raybench.explain.surrogate import Floats, cosine_distance, kernel, ridge
from raybench.models.classifier import Classifier
from raybench.types import ChestXray


@st.composite
def problems(draw: st.DrawFn) -> tuple[Keep, Floats, Floats, float]:
    n, k = draw(st.integers(2, 40)), draw(st.integers(1, 12))
    unit = st.floats(0, 1, allow_subnormal=False)
    keep = draw(hnp.arrays(np.bool_, (n, k)))
    answers = draw(hnp.arrays(np.float64, n, elements=unit))
    weights = draw(hnp.arrays(np.float64, n, elements=unit))
    weights[0] = 1.0
    return keep, answers, weights, draw(st.floats(0.01, 10))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_ridge_is_that_of_scikit_learn(problem: tuple[Keep, Floats, Floats, float]) -> None:
    keep, answers, weights, alpha = problem
    ours = ridge(keep, answers, weights, alpha)
    theirs = Ridge(alpha=alpha).fit(keep, answers, sample_weight=weights)
    np.testing.assert_allclose(ours.weights, theirs.coef_, atol=1e-9)
    assert ours.intercept == pytest.approx(theirs.intercept_, abs=1e-9)
    if np.average((answers - np.average(answers, weights=weights)) ** 2, weights=weights) > 1e-9:
        score = theirs.score(keep, answers, sample_weight=weights)
        assert ours.r2 == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(("n", "k"), [(10, 30), (60, 8)])
def test_without_penalty_the_shortest_of_the_best_fits(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    keep = rng.random((n, k)) < 0.5
    keep[:, 0], keep[:, 1] = True, keep[:, 2]
    answers, weights = rng.random(n), rng.uniform(0.1, 1, n)
    ours = ridge(keep, answers, weights, 0.0)
    theirs = LinearRegression().fit(keep, answers, sample_weight=weights)
    np.testing.assert_allclose(ours.weights, theirs.coef_, atol=1e-9)
    assert ours.intercept == pytest.approx(theirs.intercept_, abs=1e-9)


@given(hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)))
@settings(max_examples=100, deadline=None)
def test_cosine_distance_is_that_of_scikit_learn(keep: Keep) -> None:
    keep = np.vstack([np.ones_like(keep[:1]), np.zeros_like(keep[:1]), keep])
    theirs = pairwise_distances(keep.astype(int), keep[:1].astype(int), metric="cosine").ravel()
    np.testing.assert_allclose(cosine_distance(keep), theirs, atol=1e-12)
    assert cosine_distance(keep)[1] == 1.0


@given(st.floats(0, 1), st.floats(0.05, 3))
@settings(max_examples=50, deadline=None)
def test_kernel_is_a_gaussian_under_a_square_root(distance: float, width: float) -> None:
    found = kernel(np.array([distance]), width)[0]
    assert found == pytest.approx(np.exp(-(distance**2) / (2 * width**2)), rel=1e-9)


class Additive(nn.Module):
    """Class 1 has probability 0.4, and more or less for each superpixel that is as it was."""

    def __init__(self, image: NDArray[np.uint8], labels: NDArray[np.int32], effects: Floats):
        super().__init__()
        masks = np.stack([labels == k for k in range(len(effects))]).reshape(len(effects), -1)
        sums = masks @ (image.ravel() / 255.0)
        shares = torch.from_numpy((masks / sums[:, None]).T)
        self.shares, self.effects = shares, torch.from_numpy(effects)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x[:, 0].flatten(1).double() @ self.shares
        p = 0.4 + kept @ self.effects
        return torch.stack([torch.log(1 - p), torch.log(p)], dim=1)


def test_effects_of_an_additive_classifier_are_recovered(xray: ChestXray) -> None:
    image = resize_gray(xray.image, (96, 96))
    fine = Quickshift(kernel_size=2, max_dist=20)
    labels = fine.segment(image)
    n_superpixels = int(labels.max()) + 1
    assert 20 < n_superpixels < 100
    effects = np.random.default_rng(0).uniform(-0.01, 0.01, n_superpixels)
    effects[[3, 8]] = 0.2, -0.15
    net = Additive(image, labels, effects)
    model = Classifier(net, (96, 96), mean=(0, 0, 0), std=(1, 1, 1))

    default = Lime(n_samples=400, superpixels=fine).attribute(model, image, target=1)
    weights = default.extras["weights"]
    assert list(np.argsort(-np.abs(weights))[:2]) == [3, 8]
    np.testing.assert_allclose(weights[[3, 8]], effects[[3, 8]], rtol=0.05)
    assert default.extras["r2"] > 0.99
    np.testing.assert_array_equal(default.values, weights.astype(np.float32)[labels])

    bare = Lime(n_samples=400, surrogate=RidgeSurrogate(alpha=0), superpixels=fine)
    exact = bare.attribute(model, image, target=1).extras["weights"]
    np.testing.assert_allclose(exact, effects, atol=1e-5)
    other = bare.attribute(model, image, target=0).extras["weights"]
    np.testing.assert_allclose(other, -effects, atol=1e-5)
