"""Occlusion against captum, and which windows are asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from raybench.answers import AnswerStore
from raybench.data.preprocess import resize_gray
from raybench.explain import Occlusion
from raybench.explain.fills import Mean
from raybench.explain.occlusion import Windows
from raybench.models.classifier import Classifier
from raybench.types import Gray

MakeClassifier = Callable[..., Classifier]


def by_captum(
    classifier: Classifier,
    image: Gray,
    fill: Gray,
    window: tuple[int, int],
    stride: tuple[int, int],
    target: int,
) -> np.ndarray:
    """Of probabilities; windows over all channels, so that each channel has the same map."""
    found = captum.attr.Occlusion(
        lambda batch: torch.softmax(classifier.net(batch), dim=1)
    ).attribute(
        classifier.prepare(image[None]),
        sliding_window_shapes=(3, *window),
        strides=(3, *stride),
        baselines=classifier.prepare(fill[None]),
        target=target,
        perturbations_per_eval=16,
    )
    return found[0, 0].detach().numpy()


@pytest.mark.parametrize(
    ("size", "changes", "window", "stride"),
    [
        ((64, 64), {"cells": 8, "window": 3}, (24, 24), (8, 8)),
        ((64, 96), {"cells": 8, "window": 2}, (16, 24), (8, 12)),
        # cut at the border: the last cells are of 4 and 6 pixels, and of 1
        ((64, 96), {"cells": 7, "window": 2, "fill": Mean()}, (20, 28), (10, 14)),
        ((65, 72), {"cells": 16, "window": 4}, (20, 20), (5, 5)),
        ((64, 80), {"cells": 5, "window": 1}, (13, 16), (13, 16)),
    ],
)
def test_map_is_that_of_captum(
    make_classifier: MakeClassifier,
    masked: Gray,
    size: tuple[int, int],
    changes: dict[str, Any],
    window: tuple[int, int],
    stride: tuple[int, int],
) -> None:
    classifier = make_classifier("test_resnet", size)
    image, occlusion = resize_gray(masked, size), Occlusion(**changes)
    level = int(image.mean()) if occlusion.fill == Mean() else 0
    for target in (0, 1):
        theirs = by_captum(classifier, image, np.full_like(image, level), window, stride, target)
        ours = occlusion.attribute(classifier, image, target)
        np.testing.assert_allclose(ours.values, theirs, atol=1e-5)
        assert np.ptp(theirs) > 1e-3
        assert ours.n_forward <= occlusion.n_forward_planned()


class Bright(nn.Module):
    """Class 1 is as likely as one patch is bright."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = x[:, 0, 8:16, 40:48].mean(dim=(1, 2))
        return torch.stack([torch.zeros_like(light), light], dim=1)


def test_a_planted_patch_is_found_and_only_what_it_can_be_is_asked() -> None:
    image = np.zeros((48, 64), np.uint8)
    image[8:16, 40:48] = image[40:, :8] = 255
    model = Classifier(Bright(), (48, 64), mean=(0, 0, 0), std=(1, 1, 1))
    found = Occlusion(cells=8, window=1).attribute(model, image)
    # cells of 6 x 8: each patch lies in two; and the image as it is
    assert found.n_forward == 1 + 2 + 2
    assert found.target == 1
    lit = torch.tensor([[0.0, 1.0], [0.0, 0.5]]).softmax(1)[:, 1].numpy()
    rows = found.values[:, 40]
    np.testing.assert_allclose(rows[12:18], lit[0] - lit[1], atol=1e-6)  # four of eight rows
    np.testing.assert_allclose(rows[6:12], lit[0] - lit[1], atol=1e-6)
    assert (found.values[:, :40] == 0).all()
    assert (found.values[18:] == 0).all()
    black = Occlusion().attribute(model, np.zeros_like(image))
    assert (black.n_forward, np.ptp(black.values)) == (1, 0)


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_windows_against_a_naive_loop(
    shape: tuple[int, int], cells: int, window: int, seed: int
) -> None:
    occlusion = Occlusion(cells=cells, window=min(window, cells))
    windows = Windows(shape, cells, occlusion.window)
    labels, cell = windows.labels, [-(-n // cells) for n in shape]
    assert (labels.max() + 1, labels.min()) == (windows.grid[0] * windows.grid[1], 0)
    rng = np.random.default_rng(seed)
    image = (rng.random(shape) < 0.1).astype(np.uint8)
    covers = []
    for top in range(windows.places[0]):
        for left in range(windows.places[1]):
            cover = np.zeros(shape, bool)
            cover[
                top * cell[0] : (top + windows.size[0]) * cell[0],
                left * cell[1] : (left + windows.size[1]) * cell[1],
            ] = True
            covers.append(cover)
    assert len(covers) + 1 <= occlusion.n_forward_planned()
    reach = [number for number, cover in enumerate(covers) if image[cover].any()]
    asked = windows.asked(image, np.zeros_like(image))
    assert asked.tolist() == [-1, *reach]
    everything = np.arange(-1, len(covers), dtype=np.int32)
    shown = windows.keep(everything)[:, labels]
    np.testing.assert_array_equal(shown, ~np.stack([np.zeros(shape, bool), *covers]))
    drops = rng.normal(size=windows.places)
    mean = np.tensordot(drops.ravel(), covers, 1) / np.sum(covers, axis=0)
    np.testing.assert_allclose(windows.averaged(drops).ravel()[labels], mean, atol=1e-12)


def test_answers_are_kept(make_classifier: MakeClassifier, masked: Gray, tmp_path: Path) -> None:
    model, store = make_classifier(), AnswerStore(str(tmp_path))
    model.identity = "f" * 64
    image = resize_gray(masked, (64, 64))
    occlusion = Occlusion(cells=8, window=2, chunk=10)
    first = occlusion.attribute(model, image, store=store)
    assert 20 < first.extras["n_asked"] == first.n_forward < occlusion.n_forward_planned() == 50
    again = occlusion.model_copy(update={"chunk": 64}).attribute(model, image, 2, store=store)
    assert again.extras["n_asked"] == 0
    changes: list[dict[str, Any]] = [{"window": 3}, {"cells": 7}, {"fill": Mean()}]
    for change in changes:
        other = occlusion.model_copy(update=change).attribute(model, image, store=store)
        assert other.extras["n_asked"] > 0, change


def test_a_window_larger_than_the_grid_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"window: expected at most .* \(3\), found 4"):
        Occlusion(cells=3)
    assert Occlusion(cells=4).n_forward_planned() == 2
