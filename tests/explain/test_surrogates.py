"""Surrogates against truth: scikit-learn, laws by hand, and effects that are known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from neighbourhoods import Shares, drawn, fitted, tiles, with_pairs
from pydantic import TypeAdapter
from sklearn.linear_model import BayesianRidge, Ridge

from raybench.errors import ExplainError
from raybench.explain import (
    AnyExplainer,
    BayesianRidgeSurrogate,
    BayLime,
    Glime,
    GlimeSurrogate,
    KernelShap,
    KernelShapSurrogate,
    Lime,
    RidgeSurrogate,
)
from raybench.explain.designs import Design
from raybench.explain.laws import bernoulli_law
from raybench.explain.neighbourhood import expected_iou, fit_of
from raybench.explain.rows import reweighted
from raybench.explain.surrogate import (
    bayesian_ridge,
    cosine_distance,
    kernel,
)
from raybench.explain.surrogates import Surrogate
from raybench.models.classifier import Classifier

SURROGATES: tuple[tuple[Surrogate, Design], ...] = (
    (RidgeSurrogate(alpha=0), "completed"),
    (BayesianRidgeSurrogate(), "completed"),
    (GlimeSurrogate(alpha=0), "bernoulli"),
    (KernelShapSurrogate(), "shapley"),
)
each_surrogate = pytest.mark.parametrize(
    ("surrogate", "design"), SURROGATES, ids=lambda s: getattr(s, "name", s)
)


@each_surrogate
@pytest.mark.parametrize("k", [6, 14])
def test_effects_of_an_additive_model_are_recovered(
    surrogate: Surrogate, design: Design, k: int
) -> None:
    active = np.arange(k + 5) % 4 != 1
    n_active = int(active.sum())
    effects = np.random.default_rng(1).normal(size=n_active)
    found = fitted(surrogate, design, lambda keep: 0.2 + keep @ effects, active)
    tolerance = 1e-5 if isinstance(surrogate, BayesianRidgeSurrogate) else 1e-9
    np.testing.assert_allclose(found.weights[active], effects, atol=tolerance)
    np.testing.assert_allclose(found.weights[~active], 0, atol=tolerance)
    assert found.r2 == pytest.approx(1)
    assert found.uncertainty.max() < 1e-4
    assert found.n_effective > 60
    cheap = fitted(surrogate, design, lambda keep: 0.2 + keep @ effects, active, uncertain=False)
    np.testing.assert_array_equal(cheap.weights, found.weights)
    assert len(cheap.deltas) == 0
    assert np.isinf(cheap.uncertainty[active]).all()


@each_surrogate
def test_the_uncertainty_is_the_spread_over_draws(surrogate: Surrogate, design: Design) -> None:
    active, answer = np.arange(14) > 1, with_pairs(12, 0.3)
    fits = [fitted(surrogate, design, answer, active, 160, seed) for seed in range(60)]
    spread = np.std([fit.weights[active] for fit in fits], axis=0)
    told = np.mean([fit.uncertainty[active] for fit in fits], axis=0)
    ratio = np.median(told / spread)
    if isinstance(surrogate, GlimeSurrogate | KernelShapSurrogate):
        assert 0.75 < ratio < 1.33
    else:  # the design takes noise out that neither jackknife nor posterior know to be gone
        assert ratio > 1
    areas = np.full(14, 50)
    known = [expected_iou(fit, areas, 0.5) for fit in fits]
    assert 0.3 < np.mean(known) < 1


@pytest.mark.parametrize("member", [Lime, Glime, BayLime, KernelShap])
def test_image_by_image_they_settle(member: type[Lime], five_regions: Any) -> None:
    image, _, net = five_regions
    found = member(adaptive=0.05, chunk=1, n_samples=200).attribute(
        Classifier(net, image.shape), image
    )
    assert 3 < found.n_forward <= 2**5
    assert np.isfinite(found.values).all()


# GLIME


@pytest.mark.parametrize("sigma", [0.6, 1.0, 3.0])
def test_glime_is_the_ridge_under_its_law(sigma: float) -> None:
    """All patterns, weighted by hand, against scikit-learn."""
    k, answer = 6, with_pairs(6, 1.0)
    found = fitted(GlimeSurrogate(sigma=sigma, alpha=2.0), "bernoulli", answer, np.ones(k, bool))
    keep = np.array(list(itertools.product([False, True], repeat=k)))
    # lime's exp((kept - k) / sigma^2) times a fair coin each, which is the law itself
    weights = np.exp((keep.sum(1) - k) / sigma**2) * 0.5**k
    law = np.exp(bernoulli_law(k, GlimeSurrogate(sigma=sigma).keep_share))[keep.sum(1)]
    np.testing.assert_allclose(weights / weights.sum(), law, rtol=1e-9)
    scaled = law * len(keep)
    theirs = Ridge(alpha=2.0 * len(keep) / found_rows(k)).fit(
        keep, answer(keep), sample_weight=scaled
    )
    np.testing.assert_allclose(found.weights, theirs.coef_, atol=1e-9)


def found_rows(k: int) -> int:
    """Rows that a neighbourhood of 448 samples has: the penalty is held against these."""
    return len(drawn("bernoulli", 448, np.ones(k, bool)).keep)


def test_with_the_matching_design_all_samples_weigh_the_same() -> None:
    active, surrogate = np.arange(30) < 24, GlimeSurrogate(sigma=0.8)
    seen = drawn("bernoulli", 300, active, 3, surrogate.keep_share)
    rows = seen.rows(np.zeros((seen.n_distinct, 1)), 0)
    found = reweighted(rows, bernoulli_law(24, surrogate.keep_share))
    np.testing.assert_allclose(found.weights, 1.0, atol=1e-9)
    assert len(found.weights) == 299  # the unperturbed image was not drawn
    shares = seen.keep[1:, active].mean(axis=0)
    assert np.abs(shares - surrogate.keep_share).max() < 0.1
    answer = with_pairs(24, 0.4)
    fit = fit_of(seen, answer(seen.keep[seen.first][:, active])[:, None], 0, surrogate)
    assert fit.n_effective == pytest.approx(299)
    theirs = Ridge(alpha=1.0).fit(seen.keep[1:, active], answer(seen.keep[1:, active]))
    np.testing.assert_allclose(fit.weights[active], theirs.coef_, atol=1e-9)


def test_one_design_stands_for_the_other() -> None:
    """Fair coins, weighted, and coins of GLIME's own go to the same weights."""
    surrogate, answer = GlimeSurrogate(sigma=1.5, alpha=0.0), with_pairs(10, 0.5)
    own, other = (
        fitted(surrogate, design, answer, np.ones(10, bool), 6000)
        for design in ("bernoulli", "independent")
    )
    np.testing.assert_allclose(own.weights, other.weights, atol=0.15 * own.weights.std())
    assert own.n_effective > 1.3 * other.n_effective


@pytest.mark.parametrize(
    ("surrogate", "matching"),
    [(GlimeSurrogate(), "bernoulli"), (KernelShapSurrogate(), "shapley")],
    ids=lambda x: getattr(x, "name", x),
)
def test_samples_that_hardly_count_are_refused(
    surrogate: Any, matching: Design, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = tiles(30)
    monkeypatch.setattr(
        "raybench.explain.superpixels.Quickshift.segment", lambda self, image, lungs: labels
    )
    image = np.full(labels.shape, 200, np.uint8)
    model = Classifier(Shares(labels, 30), image.shape)
    with pytest.raises(ExplainError) as caught:
        Lime(surrogate=surrogate).attribute(model, image)
    said = str(caught.value)
    assert f"image: to the surrogate {surrogate.name} the 448 samples of the design comp" in said
    assert f"too few for 30 superpixels; choose design: {matching}" in said
    found = Lime(surrogate=surrogate, design=matching).attribute(model, image)
    assert found.extras["n_effective"] == pytest.approx(448 - (2 if matching == "shapley" else 1))
    few = Lime(surrogate=surrogate, design=matching, n_samples=20)  # few, but all of them count
    assert few.attribute(model, image).extras["n_effective"] > 17
    early = Lime(surrogate=surrogate, design=matching, adaptive=0.99, chunk=40)
    assert early.attribute(model, image).n_forward < 100


# Bayesian ridge


@given(st.integers(2, 14), st.integers(20, 120), st.floats(0.01, 2), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_bayesian_ridge_is_that_of_scikit_learn(k: int, n: int, noise: float, seed: int) -> None:
    assume(n > k + 5)
    rng = np.random.default_rng(seed)
    keep = rng.random((n, k)) < 0.6
    answers = keep @ rng.normal(size=k) + noise * rng.normal(size=n)
    weights = rng.uniform(0.2, 2, n)
    weights *= n / weights.sum()
    ours, covariance = bayesian_ridge(keep, answers, weights)
    theirs = BayesianRidge(max_iter=300, tol=1e-12).fit(keep, answers, sample_weight=weights)
    np.testing.assert_allclose(ours.weights, theirs.coef_, atol=1e-5)
    assert ours.intercept == pytest.approx(theirs.intercept_, abs=1e-5)
    np.testing.assert_allclose(covariance, theirs.sigma_, rtol=1e-4, atol=1e-7)
    assert ours.r2 == pytest.approx(theirs.score(keep, answers, sample_weight=weights), abs=1e-6)


def test_bay_lime_weighs_as_lime_does_and_counts_an_image_once() -> None:
    active, answer = np.arange(16) % 4 != 0, with_pairs(12, 0.3)
    seen = drawn("independent", 200, active)
    y = answer(seen.keep[seen.first][:, active])
    fit = fit_of(seen, y[:, None], 0, BayesianRidgeSurrogate(kernel_width=0.4))
    weights = kernel(cosine_distance(seen.keep), 0.4)
    theirs = BayesianRidge(max_iter=300, tol=1e-12).fit(
        seen.keep, y[seen.same_as], sample_weight=weights * 200 / weights.sum()
    )
    np.testing.assert_allclose(fit.weights, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(fit.uncertainty, np.sqrt(np.diag(theirs.sigma_)), rtol=1e-3)
    np.testing.assert_allclose(np.sqrt((fit.deltas**2).sum(axis=0)), fit.uncertainty, rtol=1e-6)
    # four rows an image are no more observations than one
    one, four = (
        fitted(BayesianRidgeSurrogate(), design, answer, active)
        for design in ("orthogonal", "completed")
    )
    assert np.median(four.uncertainty[active] / one.uncertainty[active]) == pytest.approx(
        1, abs=0.2
    )


@pytest.mark.parametrize("n", [10, 25])
def test_fewer_observations_than_superpixels_stay_finite(n: int) -> None:
    for surrogate, design in SURROGATES:
        found = fitted(surrogate, design, with_pairs(30, 0.3), np.ones(30, bool), n)
        assert np.isfinite(found.weights).all()
        assert (found.uncertainty > 0).all()


# By name


def test_relatives_are_lime_with_another_surrogate(five_regions: Any) -> None:
    image, _, net = five_regions
    model = Classifier(net, image.shape)
    parse = TypeAdapter(AnyExplainer).validate_python
    pairs: list[tuple[type[Lime], dict[str, Any]]] = [
        (Glime, {"surrogate": "glime", "design": "bernoulli"}),
        (BayLime, {"surrogate": {"name": "bayesian_ridge"}}),
        (KernelShap, {"surrogate": "kernel_shap", "design": "shapley"}),
    ]
    for member, spelled in pairs:
        name = member.model_fields["name"].default
        relative, lime = parse({"name": name}), parse({"name": "lime", **spelled})
        assert type(relative) is member
        assert isinstance(relative, Lime)
        one, other = (e.attribute(model, image) for e in (relative, lime))
        np.testing.assert_array_equal(one.values, other.values)
    own = parse({"name": "glime", "surrogate": {"sigma": 0.5}})
    assert own.surrogate == GlimeSurrogate(sigma=0.5)
    assert parse({"name": "lime", "surrogate": {"alpha": 3}}).surrogate == RidgeSurrogate(alpha=3)


def test_no_superpixel_holds_anything() -> None:
    for surrogate, design in SURROGATES:
        found = fitted(surrogate, design, lambda keep: np.full(len(keep), 0.4), np.zeros(5, bool))
        np.testing.assert_allclose(found.weights, 0, atol=1e-9)
