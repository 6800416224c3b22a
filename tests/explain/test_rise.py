"""RISE against the paper's equation written out, and its masks against torch's interpolation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raybench.answers import AnswerStore
from raybench.data.preprocess import resize_gray
from raybench.errors import ModelError
from raybench.explain import Rise
from raybench.explain.fills import Mean
from raybench.explain.soft_masks import SoftMasks
from raybench.models.classifier import Classifier
from raybench.models.perturbed import resize_matrices
from raybench.types import Arrays, Gray, Subject

MakeClassifier = Callable[..., Classifier]
CPU = torch.device("cpu")


def by_torch(masks: SoftMasks, n: int) -> np.ndarray:
    """The masks as the paper makes them: enlarge each grid to one cell more, and crop."""
    grids, shifts = masks.drawn(0, n)
    size = tuple((masks.cells + 1) * cell for cell in masks.cell)
    coins = torch.from_numpy(grids).double().unsqueeze(1)
    large = nn.functional.interpolate(coins, size, mode="bilinear", align_corners=False)
    h, w = masks.shape
    crops = zip(large.squeeze(1).numpy(), shifts, strict=True)
    return np.stack([one[y : y + h, x : x + w] for one, (y, x) in crops])


SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(SHAPES, st.integers(1, 9), st.sampled_from([0.1, 0.5, 0.8]), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_masks_are_enlarged_grids_and_a_sequence(
    shape: tuple[int, int], cells: int, keep: float, seed: int
) -> None:
    masks = SoftMasks(shape, cells, keep, seed)
    all_of_them = masks.render(0, 150, CPU).numpy()
    assert (all_of_them.shape, all_of_them.dtype) == ((150, *shape), np.float32)
    assert 0 <= all_of_them.min() <= all_of_them.max() <= 1
    np.testing.assert_allclose(all_of_them, by_torch(masks, 150), atol=1e-5)
    for start, stop in ((0, 1), (63, 65), (64, 128), (100, 150)):
        np.testing.assert_array_equal(masks.render(start, stop, CPU), all_of_them[start:stop])
    weights = np.random.default_rng(seed).normal(size=150)
    summed = np.einsum("n,nyx->yx", weights, all_of_them.astype(np.float64))
    np.testing.assert_allclose(masks.weighted_sum(weights), summed, atol=1e-4)


def test_each_pixel_is_shown_as_often_as_was_asked() -> None:
    masks = SoftMasks((30, 20), 4, 0.3, 0)
    mean = masks.weighted_sum(np.ones(20_000)) / 20_000
    np.testing.assert_allclose(mean, 0.3, atol=0.015)
    shifts = masks.drawn(0, 20_000)[1]
    assert masks.cell == (8, 5)
    for axis in (0, 1):
        share = np.bincount(shifts[:, axis], minlength=masks.cell[axis]) / 20_000
        np.testing.assert_allclose(share, 1 / masks.cell[axis], atol=0.01)
    other = SoftMasks((30, 20), 4, 0.3, 1)
    assert (masks.drawn(0, 9)[0] != other.drawn(0, 9)[0]).any()


def equation(
    rise: Rise, classifier: Classifier, image: Gray, fill: Gray, target: int
) -> np.ndarray:
    """S(x) = 1 / (E[M] N) sum_i f(I . M_i) M_i(x), one mask at a time, in plain NumPy."""
    masks = by_torch(
        SoftMasks((image.shape[0], image.shape[1]), rise.cells, rise.keep, rise.seed), rise.n_masks
    )
    rows, columns = resize_matrices((image.shape[0], image.shape[1]), classifier.input_size)
    mean, std = classifier._inputs._mean.numpy().ravel(), classifier._inputs._std.numpy().ravel()
    total, shown = np.zeros(image.shape), np.zeros(image.shape)
    for mask in masks:
        seen = mask * image + (1 - mask) * fill
        if image.shape != classifier.input_size:
            seen = rows @ seen @ columns
        pixels = (seen[:, :, None] - mean) / std
        batch = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            answer = torch.softmax(classifier.net(batch), dim=1)[0, target].item()
        total += answer * mask
        shown += mask
    return total / (shown if rise.coverage == "observed" else rise.keep * rise.n_masks)


@pytest.mark.parametrize(
    ("size", "grid", "changes"),
    [
        ((64, 64), (64, 64), {}),
        ((64, 48), (64, 48), {"cells": 3, "keep": 0.3, "coverage": "observed"}),
        ((64, 64), (80, 100), {"cells": 5, "seed": 4, "fill": Mean()}),
    ],
)
def test_map_is_the_papers_equation(
    make_classifier: MakeClassifier,
    masked: Gray,
    size: tuple[int, int],
    grid: tuple[int, int],
    changes: dict[str, Any],
) -> None:
    classifier = make_classifier("test_resnet", size)
    image = resize_gray(masked, grid)
    rise = Rise(n_masks=70, chunk=32, **changes)
    level = int(image.mean()) if rise.fill == Mean() else 0
    for target in (0, 2):
        subject_map = explain(rise, classifier, image, target)
        expected = equation(rise, classifier, image, np.full_like(image, level), target)
        np.testing.assert_allclose(subject_map, expected, atol=2e-5)
        assert np.ptp(subject_map) > 1e-3


def explain(rise: Rise, classifier: Classifier, image: Gray, target: int | None) -> np.ndarray:
    """The map of an image that is explained at its own size, whatever the model takes."""
    subject, done = Subject("a", image, None, image.shape, target), dict[str, Arrays]()
    while units := rise.plan(subject, done):
        done |= {unit.name: rise.run(unit, classifier) for unit in units}
    return rise.merge(subject, done).values


class Bright(nn.Module):
    """Class 1 is as likely as one patch is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = x[:, 0, 10:20, 36:50].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(light), 6 * light - 3], dim=1)


def test_a_planted_patch_is_found() -> None:
    image = np.full((48, 64), 255, np.uint8)
    model = Classifier(Bright(), (48, 64), mean=(0, 0, 0), std=(1, 1, 1))
    for coverage in ("expected", "observed"):
        rise = Rise(n_masks=1500, cells=6, coverage=coverage)
        found = rise.attribute(model, image)
        assert (found.target, found.n_forward) == (1, 1501)
        assert found.values[10:20, 36:50].mean() > np.quantile(found.values, 0.95)
        against = rise.attribute(model, image, target=0).values
        assert against[10:20, 36:50].mean() < np.quantile(against, 0.05)


def test_observed_coverage_of_a_constant_answer_is_flat() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ones((len(x), 2))

    image = np.full((20, 20), 9, np.uint8)
    flat, noisy = (
        Rise(n_masks=50, coverage=coverage).attribute(Constant(), image).values
        for coverage in ("observed", "expected")
    )
    np.testing.assert_allclose(flat, 0.5, atol=1e-6)
    assert np.std(noisy) > 0.01
    # With so few coins some pixels are never shown; nothing is divided by nothing.
    rare = Rise(n_masks=10, keep=0.001, coverage="observed").attribute(Constant(), image).values
    np.testing.assert_allclose(rare, 0.5, atol=1e-6)


def test_more_masks_and_other_chunks_ask_for_nothing_twice(
    make_classifier: MakeClassifier, masked: Gray, tmp_path: Path
) -> None:
    model, store = make_classifier(), AnswerStore(str(tmp_path))
    model.identity = "f" * 64
    image = resize_gray(masked, (64, 64))
    rise = Rise(n_masks=24, chunk=10)
    first = rise.attribute(model, image, store=store)
    assert first.extras["n_asked"] == first.n_forward == rise.n_forward_planned() == 25
    free_of_charge: list[dict[str, Any]] = [
        {"chunk": 25},
        {"n_masks": 16, "chunk": 7},
        {"coverage": "observed"},
    ]
    for change in free_of_charge:
        changed = rise.model_copy(update=change)
        free = changed.attribute(model, image, store=AnswerStore(str(tmp_path)))
        assert free.extras["n_asked"] == 0, change
        own = changed.attribute(model, image).values
        np.testing.assert_allclose(free.values, own, atol=1e-6)
    assert rise.attribute(model, image, target=2, store=store).extras["n_asked"] == 0
    longer = rise.model_copy(update={"n_masks": 29}).attribute(model, image, store=store)
    assert longer.extras["n_asked"] == 10  # a unit is asked whole: rows 20 to 30
    upstream: list[dict[str, Any]] = [{"seed": 1}, {"cells": 6}, {"keep": 0.4}, {"fill": Mean()}]
    for change in upstream:
        changed = rise.model_copy(update=change)
        assert changed.attribute(model, image, store=store).extras["n_asked"] == 25, change


def test_what_does_not_fit_is_refused(make_classifier: MakeClassifier, masked: Gray) -> None:
    model, image = make_classifier(), resize_gray(masked, (64, 64))
    ones = torch.ones
    with pytest.raises(ModelError, match=r"fill: expected uint8 \[64, 64\], found uint8 \[32, 64"):
        model.predict_blended(image, image[:32], 1, lambda a, b: ones(b - a, 64, 64))
    with pytest.raises(ModelError, match=r"shown: expected \[2, 64, 64\], found \[2, 60, 64\]"):
        model.predict_blended(image, image, 2, lambda a, b: ones(b - a, 60, 64))
    for size in ((64, 64), (80, 60)):
        picture = resize_gray(masked, size)
        whole = model.predict_blended(picture, picture * 0, 3, lambda a, b: ones(b - a, *size))  # noqa: B023
        np.testing.assert_allclose(whole, model.predict(picture[None]).repeat(3, 0), atol=5e-3)


def test_one_mask_at_a_time_is_the_same(make_classifier: MakeClassifier, masked: Gray) -> None:
    classifier = make_classifier()
    found, other = (
        Rise(n_masks=10, chunk=chunk).attribute(classifier, masked, 1).values for chunk in (1, 64)
    )
    np.testing.assert_allclose(found, other, rtol=1e-5)
