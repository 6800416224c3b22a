"""KernelSHAP against truth: enumeration, captum, and what the values add up to."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import KernelShap as CaptumKernelShap
from captum.attr import ShapleyValues
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbourhoods import Answer, drawn, fitted, with_pairs
from torch import nn

from raybench.answers import AnswerStore
from raybench.explain import GlimeSurrogate, KernelShap, KernelShapSurrogate, Lime
from raybench.explain.designs import Design
from raybench.explain.neighbourhood import expected_iou, fit_of
from raybench.explain.perturbation import Keep
from raybench.explain.surrogate import Floats
from raybench.explain.surrogates import Surrogate
from raybench.models.classifier import Classifier


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


@pytest.mark.parametrize(
    ("surrogate", "design"), [(KernelShapSurrogate(), "shapley"), (GlimeSurrogate(), "bernoulli")]
)
def test_where_fills_take_turns_nothing_is_certain(surrogate: Surrogate, design: Design) -> None:
    """All patterns are asked, but which fill each is seen with was left to chance."""
    active, answer = np.arange(7) < 5, with_pairs(5, 1.0)
    told, weights = [], []
    for seed in range(30):
        seen = drawn(design, 48, active, seed, surrogate.keep_share, n_fills=3)
        y = answer(seen.keep[seen.first][:, active]) + 0.8 * seen.which[seen.first]
        y[0] = answer(np.ones((1, 5), bool))[0]
        nothing = float(answer(np.zeros((1, 5), bool))[0]) + 0.8
        fit = fit_of(seen, y[:, None], 0, surrogate, nothing)
        told.append(fit.uncertainty[active])
        weights.append(fit.weights[active])
        assert np.isfinite(fit.n_effective)
        assert (fit.uncertainty[~active] == 0).all()
    ratio = np.median(np.mean(told, axis=0) / np.std(weights, axis=0))
    assert 0.6 < ratio < 4


def test_one_superpixel_leaves_nothing_to_chance_whatever_the_fills() -> None:
    """What is between all and none is all there is, and both are asked with every fill."""
    seen = drawn("shapley", 20, np.arange(3) < 1, n_fills=3)
    y = np.r_[1.0, np.full(seen.n_distinct - 1, 0.3)]
    fit = fit_of(seen, y[:, None], 0, KernelShapSurrogate(), nothing=0.2)
    np.testing.assert_allclose(fit.weights, [0.8, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(fit.uncertainty, 0)


class Quarters(nn.Module):
    """As a classifier for captum: probabilities."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net(x), dim=1)


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
