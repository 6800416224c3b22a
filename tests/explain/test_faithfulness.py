"""Faithfulness curves against plain loops, another imputation, and a linear model's closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import nn

from raybench.errors import ExplainError
from raybench.executor import Job, run_jobs
from raybench.executor.local import LocalPool
from raybench.explain import RandomSuperpixels
from raybench.explain.faithfulness import Curves, Explained, Faithfulness
from raybench.explain.imputation import linear, noisy_linear
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.scoring.faithfulness import area, road_gap
from raybench.types import Arrays, Subject

SIZE = 16


class _Linear(nn.Module):
    """Logits 0 and the weighted sum of the grey levels, so that p = sigmoid(w . x)."""

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.astype(np.float32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said = (x.mean(1) * self.weights).sum((1, 2))
        return torch.stack([torch.zeros_like(said), said], 1)


def _setting(seed: int = 0) -> tuple[Classifier, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.normal(0, 0.1, (SIZE, SIZE))
    image = rng.integers(30, 255, (SIZE, SIZE)).astype(np.uint8)
    model = Classifier(_Linear(weights), (SIZE, SIZE), (0, 0, 0), (1, 1, 1), ("a", "b"))
    return model, image, weights


def _curves(model: Classifier, image: np.ndarray, values: np.ndarray, **settings: int) -> Curves:
    task = Faithfulness(**settings)
    told = Explained(Subject("x", image, None, image.shape, 1), values.astype(np.float32))
    done: dict[str, Arrays] = {u.name: task.run(u, model) for u in task.plan(told, {})}
    assert task.plan(told, done) == []
    return task.merge(told, done)


def _figures(curves: Curves) -> tuple[float, float, float]:
    return (
        area(curves.shares, curves.deletion),
        area(curves.shares, curves.insertion),
        road_gap(curves.road_shares, curves.morf, curves.lerf),
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_imputation_is_that_of_the_papers_code(share: float) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (13, 17)).astype(np.uint8)
    hidden = rng.random(image.shape) < share
    theirs = NoisyLinearImputer(noise=0)
    expected = theirs(torch.from_numpy(image[None]).float(), torch.from_numpy(~hidden).float())
    np.testing.assert_allclose(linear(image, hidden), np.asarray(expected)[0], atol=1e-3)


def test_noise_falls_on_hidden_pixels_alone() -> None:
    image = np.full((9, 9), 100, np.uint8)
    hidden = np.zeros(image.shape, bool)
    hidden[2:6, 3:8] = True
    found = noisy_linear(image, hidden, 0.05, 1)
    assert (found[~hidden] == 100).all()
    assert 5 < found[hidden].astype(float).std() < 25
    assert (noisy_linear(image, hidden, 0.05, 1) == found).all()
    with pytest.raises(ExplainError, match="all are hidden"):
        linear(image, np.ones_like(hidden))


def test_deletion_is_a_linear_models_closed_form() -> None:
    model, image, weights = _setting()
    product = (weights * image / 255).ravel()
    curves = _curves(model, image, product.reshape(image.shape), steps=SIZE * SIZE)
    left = product.sum() - np.concatenate([[0], np.cumsum(np.sort(product)[::-1])])
    expected = 1 / (1 + np.exp(-left))
    np.testing.assert_allclose(curves.deletion, expected, atol=1e-4)
    assert area(curves.shares, curves.deletion) == pytest.approx(
        np.trapezoid(expected, curves.shares), abs=1e-4
    )


def test_curves_are_those_of_a_plain_loop() -> None:
    model, image, _ = _setting(1)
    values = np.random.default_rng(8).permutation(SIZE * SIZE).reshape(image.shape)
    task = Faithfulness(steps=8, road_steps=4, chunk=3)
    curves = _curves(model, image, values, steps=8, road_steps=4, chunk=3)
    blurred = task.inserted_into.draw(Subject("x", image, None, image.shape), None)[0]
    order = np.argsort(-values.ravel())
    for i in range(9):
        some = np.zeros(image.size, bool)
        some[order[: image.size * i // 8]] = True
        some = some.reshape(image.shape)
        shown = np.stack([np.where(some, 0, image), np.where(some, image, blurred)])
        expected = model.predict(shown.astype(np.uint8))[:, 1]
        assert [curves.deletion[i], curves.insertion[i]] == pytest.approx(expected, abs=1e-6)
    for i in range(4):
        for found, by in ((curves.morf, order), (curves.lerf, order[::-1])):
            hidden = np.zeros(image.size, bool)
            hidden[by[: image.size * i // 4]] = True
            imputed = noisy_linear(image, hidden.reshape(image.shape), task.noise, task.seed)
            assert found[i] == pytest.approx(model.predict(imputed[None])[0, 1], abs=1e-6)
    assert (
        curves.n_forward
        == task.model_copy(update={"steps": 8, "road_steps": 4}).n_forward_planned()
    )


def test_a_true_map_beats_drawn_superpixels_and_its_own_reverse() -> None:
    model, image, weights = _setting(2)
    subject = Subject("x", image, None, image.shape, 1)
    drawn = RandomSuperpixels().draw(subject)
    # What a linear model loses depends on what takes a pixel's place: black, or about the mean.
    for baseline, (figure, better) in ((0, (0, -1)), (image.mean(), (2, 1))):
        true = weights * (image - baseline)
        good, random, bad = (
            better * _figures(_curves(model, image, v))[figure] for v in (true, drawn, -true)
        )
        assert good > random > bad
    good, bad = (_figures(_curves(model, image, s * weights * image))[1] for s in (1, -1))
    assert good > bad


def test_a_pool_makes_the_same_curves_and_asks_nothing_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("test_efficientnet", 3)
    card = Card("test_efficientnet", ("COVID-19", "Non-COVID", "Normal"), (32, 32))
    checkpoint = save_checkpoint(net, card)
    image = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    values = np.random.default_rng(1).random((40, 40)).astype(np.float32)
    told = Explained(Subject("x", image, None, (40, 40)), values)
    task = Faithfulness(steps=4, road_steps=3, chunk=2)
    pool = LocalPool(lambda key: checkpoint, 1, store=str(tmp_path))
    first, again = (next(run_jobs([Job("x", task, told, "t")], pool)) for _ in range(2))
    assert (first.error, again.error) == (None, None)
    assert (first.n_forward, again.n_forward) == (task.n_forward_planned(), 0)
    direct = Classifier.from_checkpoint(checkpoint)
    done = {u.name: task.run(u, direct) for u in task.plan(told, {})}
    expected = task.merge(told, done)
    for name in ("deletion", "insertion", "morf", "lerf"):
        np.testing.assert_array_equal(getattr(first.result, name), getattr(again.result, name))
        np.testing.assert_allclose(getattr(first.result, name), getattr(expected, name), atol=1e-6)


def test_a_plateau_is_ordered_alike_for_all_and_a_bad_map_is_refused() -> None:
    model, image, _ = _setting()
    flat = _curves(model, image, np.zeros(image.shape))
    again = _curves(model, image, np.full(image.shape, 7.0))
    np.testing.assert_array_equal(flat.deletion, again.deletion)
    with pytest.raises(ExplainError, match="finite"):
        _curves(model, image, np.full(image.shape, np.nan))
