"""Surrogates against truth: enumeration, scikit-learn, captum, and effects that are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import KernelShap as CaptumKernelShap
from captum.attr import ShapleyValues
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from sklearn.linear_model import BayesianRidge, Ridge
from torch import nn

from raybench.answers import AnswerStore
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
from raybench.explain.neighbourhood import Neighbourhood, expected_iou, fit_of
from raybench.explain.perturbation import Keep
from raybench.explain.rows import reweighted
from raybench.explain.surrogate import (
    Floats,
    LocalFit,
    bayesian_ridge,
    cosine_distance,
    kernel,
)
from raybench.explain.surrogates import Surrogate
from raybench.models.classifier import Classifier
from raybench.types import Gray

Answer = Callable[[Keep], Floats]
SURROGATES: tuple[tuple[Surrogate, Design], ...] = (
    (RidgeSurrogate(alpha=0), "completed"),
    (BayesianRidgeSurrogate(), "completed"),
    (GlimeSurrogate(alpha=0), "bernoulli"),
    (KernelShapSurrogate(), "shapley"),
)
each_surrogate = pytest.mark.parametrize(
    ("surrogate", "design"), SURROGATES, ids=lambda s: getattr(s, "name", s)
)


def tiles(k: int) -> np.ndarray:
    return np.repeat(np.arange(k, dtype=np.int32), 4)[None].repeat(4, axis=0)


def drawn(
    design: Design, n: int, active: np.ndarray, seed: int = 0, keep_share: float = 0.731
) -> Neighbourhood:
    """A neighbourhood of as many tiles as `active` is long; those it leaves out are black."""
    image = (active[tiles(len(active))] * 200).astype(np.uint8)
    completions = 4 if design == "completed" else 1
    nothing = np.zeros_like(image)
    labels = tiles(len(active))
    return Neighbourhood.draw(
        design, n, image, nothing, labels, seed, completions, True, keep_share
    )


def fitted(
    surrogate: Surrogate,
    design: Design,
    answer: Answer,
    active: np.ndarray,
    n: int = 448,
    seed: int = 0,
    uncertain: bool = True,
) -> LocalFit:
    seen = drawn(design, n, active, seed, surrogate.keep_share)
    y = answer(seen.keep[seen.first][:, active])
    nothing = float(answer(np.zeros((1, int(active.sum())), bool))[0])
    return fit_of(seen, y[:, None], 0, surrogate, nothing, uncertain)


def with_pairs(k: int, size: float, seed: int = 0) -> Answer:
    """Effects of single superpixels, of pairs, and of one that three must share."""
    rng = np.random.default_rng(seed)
    linear, pairs = rng.normal(size=k), size * rng.normal(size=(k, k))

    def answer(keep: Keep) -> Floats:
        x = keep * 1.0
        return 0.3 + x @ linear + np.einsum("ni,ij,nj->n", x, pairs, x) + size * x[:, :3].prod(1)

    return answer


def shapley_by_enumeration(answer: Answer, k: int) -> Floats:
    """Shapley 1953: what a player adds, averaged over all coalitions by their size."""
    values = np.zeros(k)
    for i in range(k):
        others = [j for j in range(k) if j != i]
        for size in range(k):
            share = math.factorial(size) * math.factorial(k - size - 1) / math.factorial(k)
            for coalition in itertools.combinations(others, size):
                keep = np.zeros((2, k), bool)
                keep[:, list(coalition)] = True
                keep[1, i] = True
                without, having = answer(keep)
                values[i] += share * (having - without)
    return values


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


# KernelSHAP


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("design", ["shapley", "orthogonal", "completed", "bernoulli"])
def test_shapley_values_are_exact_where_all_patterns_are_asked(k: int, design: Design) -> None:
    active = np.arange(k + 4) % 3 != 0
    active[k + 3] = False
    active = np.r_[active, np.ones(k - int(active.sum()), bool)] if active.sum() < k else active
    n_active = int(active.sum())
    answer = with_pairs(max(n_active, 3), 1.0)

    def padded(keep: Keep) -> Floats:  # a model of at least three, the rest always there
        return answer(np.pad(keep, ((0, 0), (0, max(3 - n_active, 0))), constant_values=True))

    found = fitted(KernelShapSurrogate(), design, padded, active)
    exact = shapley_by_enumeration(padded, n_active)
    np.testing.assert_allclose(found.weights[active], exact, atol=1e-9)
    np.testing.assert_array_equal(found.weights[~active], 0)
    np.testing.assert_array_equal(found.uncertainty, 0)
    assert found.n_effective == np.inf
    assert expected_iou(found, np.full(len(active), 10), 0.5) == 1.0


@given(st.integers(9, 20), st.integers(0, 2**31), st.integers(30, 200))
@settings(max_examples=25, deadline=None)
def test_values_add_up_to_the_answer_whatever_was_drawn(k: int, seed: int, n: int) -> None:
    answer = with_pairs(k, 0.7, seed)
    active = np.ones(k, bool)
    for design in ("shapley", "orthogonal"):
        found = fitted(KernelShapSurrogate(), design, answer, active, n, seed)  # type: ignore[arg-type]
        both = answer(np.array([[True] * k, [False] * k]))
        assert found.weights.sum() == pytest.approx(both[0] - both[1], abs=1e-9)
        np.testing.assert_allclose(found.deltas.sum(axis=1), 0, atol=1e-6)


def test_sampled_values_approach_the_shapley_values() -> None:
    answer, active = with_pairs(10, 0.5), np.ones(10, bool)
    exact = shapley_by_enumeration(answer, 10)
    errors = []
    for n in (100, 400, 1600):
        fits = [fitted(KernelShapSurrogate(), "shapley", answer, active, n, s) for s in range(8)]
        errors.append(np.sqrt(np.mean([(fit.weights - exact) ** 2 for fit in fits])))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert errors[2] < 0.05 * exact.std()
    # coins of even chance, weighted, go to the same place
    coins = fitted(KernelShapSurrogate(), "orthogonal", answer, active, 2000)
    np.testing.assert_allclose(coins.weights, exact, atol=0.15 * exact.std())


class Shares(nn.Module):
    """Three classes; the probability moves with single regions, pairs and all together."""

    def __init__(self, labels: np.ndarray, k: int) -> None:
        super().__init__()
        masks = np.stack([labels == i for i in range(k)]).reshape(k, -1)
        self.masks = torch.from_numpy(masks.T / masks.sum(1)).float()
        torch.manual_seed(1)
        self.head = nn.Sequential(nn.Linear(k, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(3 * (x[:, 0].flatten(1) @ self.masks))


class Quarters(nn.Module):
    """As a classifier for captum: probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net(x), dim=1)


@pytest.fixture
def five_regions(monkeypatch: pytest.MonkeyPatch) -> tuple[Gray, np.ndarray, nn.Module]:
    """A picture of six tiles, one of them black, that LIME takes for its superpixels."""
    labels = tiles(6).repeat(4, axis=0)
    image = (labels * 40).astype(np.uint8)  # tile 0 holds nothing
    monkeypatch.setattr(
        "raybench.explain.superpixels.Quickshift.segment", lambda self, image, lungs: labels
    )
    return image, labels, Shares(labels, 6).eval()


def test_kernel_shap_is_that_of_captum(five_regions: Any) -> None:
    image, labels, net = five_regions
    model = Classifier(net, image.shape, mean=(0, 0, 0), std=(1, 1, 1))
    found = KernelShap().attribute(model, image, target=2)
    assert found.n_forward == 2**5
    x = torch.from_numpy(image / 255.0).float()[None, None].repeat(1, 3, 1, 1)
    masked: dict[str, Any] = {
        "target": 2,
        "feature_mask": torch.from_numpy(labels.astype(np.int64))[None, None],
    }
    theirs = ShapleyValues(Quarters(net)).attribute(x, perturbations_per_eval=64, **masked)
    np.testing.assert_allclose(found.values, theirs[0, 0].numpy(), atol=1e-5)
    torch.manual_seed(0)
    sampled = CaptumKernelShap(Quarters(net)).attribute(
        x, n_samples=600, perturbations_per_eval=100, **masked
    )
    np.testing.assert_allclose(found.values, sampled[0, 0].numpy(), atol=0.02)
    assert np.ptp(found.values) > 0.2


@pytest.mark.parametrize("design", ["independent", "shapley"])
def test_the_answer_to_nothing_is_asked_once_and_kept(
    design: Design, five_regions: Any, tmp_path: Path
) -> None:
    image, _, net = five_regions
    model, store = Classifier(net, image.shape), AnswerStore(str(tmp_path))
    model.identity = "e" * 64
    plain = Lime(design=design, n_samples=12, seed=1)
    passes = plain.attribute(model, image, store=store).n_forward
    shap = plain.model_copy(update={"surrogate": KernelShapSurrogate()})
    more = 0 if design == "shapley" else 1
    first = shap.attribute(model, image, store=store)
    assert (first.n_forward, first.extras["n_asked"]) == (passes + more, more)
    assert first.n_forward <= shap.n_forward_planned() == 12 + more
    if design == "independent":  # of another seed, which does not draw it either, it is known
        again = shap.model_copy(update={"seed": 3}).attribute(model, image, store=store)
        assert again.extras["n_asked"] == again.n_forward - 1
    both = model.predict(np.stack([image, np.zeros_like(image)]))[:, first.target]
    assert first.extras["weights"].sum() == pytest.approx(float(both[0] - both[1]), abs=1e-6)


@pytest.mark.parametrize("member", [Lime, Glime, BayLime, KernelShap])
def test_image_by_image_they_settle(member: type[Lime], five_regions: Any) -> None:
    image, _, net = five_regions
    found = member(adaptive=0.05, chunk=1, n_samples=200).attribute(
        Classifier(net, image.shape), image
    )
    assert 3 < found.n_forward <= 2**5
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("chunk", [1, 8])
@pytest.mark.parametrize("design", ["independent", "shapley"])
def test_adaptive_kernel_shap_adds_up_as_well(
    design: Design, chunk: int, five_regions: Any
) -> None:
    """Wherever it stops, and wherever the design would have switched everything off."""
    image, _, net = five_regions
    model = Classifier(net, image.shape)
    both = model.predict(np.stack([image, np.zeros_like(image)]))[:, 0]
    for seed in range(4):
        lime = KernelShap(design=design, adaptive=0.5, chunk=chunk, n_samples=60, seed=seed)
        found = lime.attribute(model, image, target=0)
        total = found.extras["weights"].sum()
        assert total == pytest.approx(float(both[0] - both[1]), abs=1e-6)
        assert found.n_forward <= lime.n_forward_planned()


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
