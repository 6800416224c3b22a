"""Classifiers whose superpixels' effects are known, explained from the network to the map.

What answers an explainer reads decides what its weights mean, so it is fixed here: everything that
asks perturbed images (the LIME family, RISE, occlusion) reads the class's **probability**, softmax
of the logits; gradients and class activation maps read the **logit**. Truth is a closed form, or an
enumeration of all 2^k coalitions that asks the bare network about images rendered right here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from raybench.errors import ExplainError
from raybench.explain import (
    BayesianRidgeSurrogate,
    GlimeSurrogate,
    Grid,
    InputXGradient,
    KernelShap,
    KernelShapSurrogate,
    Lime,
    RidgeSurrogate,
)
from raybench.explain.designs import Design
from raybench.models.classifier import Classifier
from raybench.types import Gray

Effects = NDArray[np.float64]

DESIGNS: tuple[Design, ...] = get_args(Design)
SURROGATES: tuple[Any, ...] = (
    RidgeSurrogate(alpha=0),
    BayesianRidgeSurrogate(),
    GlimeSurrogate(alpha=0),
    KernelShapSurrogate(),
)
A, B, PAIR = 1, 4, 0.12
"""Two superpixels, and what the answer gets on top where both are shown."""


class OfCells(nn.Module):
    """A classifier that sees of each cell of a grid only how much of its grey is left.

    `told` maps these shares, `[N, K]`, 1 as it was and 0 black, to the two classes' logits.
    """

    def __init__(
        self, image: Gray, labels: NDArray[np.int64], told: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        k = int(labels.max()) + 1
        masks = np.stack([labels.ravel() == i for i in range(k)]).astype(np.float64)
        grey = masks @ (image.ravel() / 255.0)
        shares = masks / np.where(grey > 0, grey, np.inf)[:, None]  # of a black cell none is left
        self.shares = torch.from_numpy(shares.T)
        self.told = told

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.told(x[:, 0].flatten(1).double() @ self.shares)


class Case:
    """An X-ray of `side` x `side` cells, the first `k` of them lit, with an effect each."""

    def __init__(self, side: int, k: int) -> None:
        self.k, self.grid = k, Grid(cells=side)
        image = np.random.default_rng(0).integers(60, 250, (6 * side, 6 * side), np.uint8)
        self.labels = np.asarray(self.grid.cut(image), np.int64)
        self.image = np.where(self.labels < k, image, 0).astype(np.uint8)
        effects = np.random.default_rng(1).uniform(-0.04, 0.04, k)
        self.effects = np.append(effects, np.zeros(side * side - k))

    def classifier(self, told: Callable[[torch.Tensor], torch.Tensor]) -> Classifier:
        net = OfCells(self.image, self.labels, told)
        return Classifier(net, self.image.shape[:2], mean=(0, 0, 0), std=(1, 1, 1))

    def by_probability(self, pair: float = 0.0) -> Classifier:
        """The probability of class 1 is 0.4, an effect a cell that is shown, and the pair's."""
        effects = torch.from_numpy(self.effects)

        def told(z: torch.Tensor) -> torch.Tensor:
            p = 0.4 + z @ effects + pair * z[:, A] * z[:, B]
            return torch.stack([torch.log(1 - p), torch.log(p)], dim=1)

        return self.classifier(told)

    def by_logit(self) -> Classifier:
        """The logit of class 1 is -1, and 60 times an effect for each cell that is shown."""
        effects = torch.from_numpy(60 * self.effects)
        return self.classifier(lambda z: torch.stack([0 * z[:, 0], z @ effects - 1], dim=1))

    def explained(
        self, model: Classifier, design: Design, surrogate: Any, n: int = 448
    ) -> tuple[Effects, Effects]:
        """Weights of the superpixels and their uncertainty, as LIME's map and its extras say."""
        lime = Lime(superpixels=self.grid, design=design, surrogate=surrogate, n_samples=n)
        found = lime.attribute(model, self.image, target=1)
        weights: Effects = found.extras["weights"]
        np.testing.assert_array_equal(found.values, weights.astype(np.float32)[self.labels])
        return weights, found.extras["uncertainty"]

    def answers(self, model: Classifier) -> tuple[NDArray[np.bool_], Effects]:
        """All coalitions of the lit cells, `[2^k, k]`, and the bare network's probabilities."""
        keep = np.array(list(itertools.product([False, True], repeat=self.k)))
        shown = np.pad(keep, ((0, 0), (0, len(self.effects) - self.k)))[:, self.labels]
        grey = torch.from_numpy(np.where(shown, self.image, 0) / 255.0)[:, None]
        with torch.no_grad():
            logits = model.net(grey.expand(-1, 3, -1, -1))
        return keep, torch.softmax(logits, dim=1)[:, 1].numpy()


def shapley(keep: NDArray[np.bool_], answers: Effects) -> Effects:
    """Shapley values by the subset formula, from the answers to all 2^k coalitions."""
    k = keep.shape[1]
    place = 1 << np.arange(k)[::-1]
    number = keep @ place
    of = answers[np.argsort(number)]
    size = keep.sum(axis=1)[np.argsort(number)]
    factorial = np.cumprod(np.append(1.0, np.arange(1, k + 1)))
    values = np.zeros(k)
    for i in range(k):
        without = np.flatnonzero(np.arange(len(of)) & place[i] == 0)
        share = factorial[size[without]] * factorial[k - size[without] - 1] / factorial[k]
        values[i] = share @ (of[without + place[i]] - of[without])
    return values


@pytest.fixture(scope="module")
def nine() -> Case:
    """Eight lit cells and a black one: few enough for every design to ask all coalitions."""
    return Case(3, 8)


@pytest.fixture(scope="module")
def sixteen() -> Case:
    """Ten lit cells and six black ones: coalitions are drawn."""
    return Case(4, 10)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: str(s.name))
def test_a_linear_probability_has_its_effects_for_weights(
    surrogate: Any, design: Design, sixteen: Case
) -> None:
    """By every surrogate under every design that it takes: without interactions all agree."""
    model = sixteen.by_probability()
    if (surrogate.name, design) == ("kernel_shap", "bernoulli"):
        with pytest.raises(ExplainError, match="choose design: shapley"):
            sixteen.explained(model, design, surrogate)
        return
    found, _ = sixteen.explained(model, design, surrogate)
    np.testing.assert_allclose(found, sixteen.effects, atol=1e-4)
    assert np.abs(sixteen.effects).max() > 0.03


@pytest.mark.parametrize("design", DESIGNS)
def test_kernel_shap_is_the_enumerated_shapley_value(design: Design, nine: Case) -> None:
    """Of the probability, also where it is the logit that is additive."""
    for model in (nine.by_probability(PAIR), nine.by_logit()):
        found, told = nine.explained(model, design, KernelShapSurrogate(), 600)
        exact = shapley(*nine.answers(model))
        assert np.ptp(exact) > 0.1
        assert found[-1] == 0
        if design in ("independent", "paired"):  # coins miss some of the 256 coalitions
            assert (np.abs(found[:-1] - exact) < 4 * told[:-1]).all()
            assert told.max() < 0.1
        else:
            np.testing.assert_allclose(found[:-1], exact, atol=1e-5)
    share = exact / (60 * nine.effects[:-1])
    assert np.ptp(share) > 0.02, "no multiple of the logit's effects"


def test_a_pair_is_shared_by_each_surrogates_own_law(nine: Case) -> None:
    """An interaction g between two superpixels, in closed form.

    Shapley values halve it. Coins that keep with probability q give each its expectation over the
    other's coin, g q: GLIME's, and with q = 1/2 LIME's where the kernel is flat.
    """
    model = nine.by_probability(PAIR)
    sigma = 1.3
    kept = 1 / (1 + np.exp(-1 / sigma**2))
    for surrogate, design, part in (
        (KernelShapSurrogate(), "shapley", 0.5),
        (RidgeSurrogate(alpha=0, kernel_width=1000), "completed", 0.5),
        (GlimeSurrogate(sigma=sigma, alpha=0), "bernoulli", kept),
    ):
        expected = nine.effects.copy()
        expected[[A, B]] += part * PAIR
        # One row for the image itself, then whole blocks of all 256 patterns.
        found, _ = nine.explained(model, design, surrogate, 1 + 256)  # type: ignore[arg-type]
        loose = 1e-3 if isinstance(surrogate, RidgeSurrogate) else 2e-5
        np.testing.assert_allclose(found, expected, atol=loose)
    assert kept * PAIR - PAIR / 2 > 0.015, "the two laws can be told apart"


@pytest.mark.parametrize("design", ["shapley", "orthogonal"])
def test_pairs_cost_kernel_shap_no_coalition_more(design: Design, sixteen: Case) -> None:
    """With complements beside them 200 of 1,024 coalitions share a pair out exactly."""
    model = sixteen.by_probability(PAIR)
    found, _ = sixteen.explained(model, design, KernelShapSurrogate(), 200)
    expected = sixteen.effects.copy()
    expected[[A, B]] += PAIR / 2
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_lime_is_the_kernels_projection_of_the_probability(nine: Case) -> None:
    """lime's own kernel: least squares over all coalitions, by the formula."""
    model = nine.by_logit()
    keep, answers = nine.answers(model)
    # The image itself leads the design; the black cell is a coin that no answer depends on.
    rows = np.append(keep, np.ones((1, nine.k), bool), axis=0)
    y = np.append(answers, answers[-1])
    both = [np.append(rows, np.full((len(rows), 1), on), axis=1) for on in (True, False)]
    x = np.vstack([both[0], both[1][:-1]]).astype(np.float64)
    told = np.append(y, y[:-1])
    distance = 1 - np.sqrt(x.mean(axis=1))
    root = np.exp(-(distance**2) / 0.25**2) ** 0.25
    design = np.column_stack([np.ones(len(x)), x]) * root[:, None]
    expected = np.linalg.lstsq(design, told * root, rcond=None)[0][1:]
    lime = Lime(superpixels=nine.grid, surrogate=RidgeSurrogate(alpha=0), n_samples=257)
    found = lime.model_copy(update={"completions": 2}).attribute(model, nine.image, target=1)
    np.testing.assert_allclose(found.extras["weights"][:-1], expected[:-1], atol=2e-3)
    logit = 60 * nine.effects[:-1]
    assert np.abs(found.extras["weights"][:-1] - logit).max() > 0.3, "the logit is another answer"


def test_gradients_read_the_logit(nine: Case) -> None:
    """Gradient times grey level, summed over a cell, is what the cell adds to the logit."""
    model = nine.by_logit()
    values = InputXGradient().attribute(model, nine.image, target=1).values.astype(np.float64)
    summed = np.bincount(nine.labels.ravel(), weights=values.ravel())
    np.testing.assert_allclose(summed, 60 * nine.effects, atol=1e-4)
    by_shares = KernelShap(superpixels=nine.grid).attribute(model, nine.image, target=1)
    assert np.abs(by_shares.extras["weights"] - summed).max() > 0.3
