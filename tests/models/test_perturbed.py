"""Perturbed images composed on the device, and features. About 10 seconds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ModelError
from raybench.explain.perturbation import render
from raybench.models.classifier import Classifier
from raybench.models.perturbed import Composer, resize_matrices
from raybench.models.runtime import Runtime
from tests.models.runtime_nets import question, shares, steep


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return steep()


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 12),
    batch_size=st.integers(1, 7),
    size=st.sampled_from([(64, 64), (96, 80), (40, 64), (64, 100), (33, 47)]),
    n_fills=st.sampled_from([0, 1, 1, 3]),
    seed=st.integers(0, 999),
)
def test_composed_answers_are_those_to_the_rendered_images_to_the_bit(
    net: nn.Module, n: int, batch_size: int, size: tuple[int, int], n_fills: int, seed: int
) -> None:
    """Black, one image, or three that take turns."""
    classifier = Classifier(net, (64, 64), runtime=Runtime(batch_size=batch_size))
    image, fill, superpixels, keep = question(n, size, seed)
    fills = np.stack([fill * n_fills, fill + 9, fill // 2])[: max(n_fills, 1)]
    which = np.random.default_rng(seed).integers(0, len(fills), n) if n_fills > 1 else None
    found = classifier.predict_perturbed(image, fills, superpixels, keep, which)
    expected = classifier.predict(render(image, fills, superpixels, keep, which))
    assert (found.dtype, found.shape) == (np.float32, (n, 3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (40, 64)])
def test_blends_are_those_of_grey_levels(net: nn.Module, size: tuple[int, int]) -> None:
    classifier = Classifier(net, (64, 64), runtime=Runtime(batch_size=3))
    image, fill, _, _ = question(1, size)
    shown = shares(8, size)
    found = classifier.predict_blended(image, fill, 8, lambda start, stop: shown[start:stop])
    weight = shown.double().numpy()
    rows, columns = resize_matrices(size, (64, 64))
    grey = rows @ (weight * image + (1 - weight) * fill) @ columns
    batch = (grey[:, None] - classifier._inputs._mean.numpy()) / classifier._inputs._std.numpy()
    with torch.no_grad():
        expected = torch.softmax(classifier.net(torch.from_numpy(batch).float()), dim=1)
    assert (found.dtype, found.shape) == (np.float32, (8, 3))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found, axis=0).max() > 1e-2
    if size == (64, 64):  # at the ends a blend is the image or the fill itself
        np.testing.assert_allclose(
            found[:2], classifier.predict(np.stack([image, fill])), atol=1e-6
        )


def test_answers_differ_between_perturbations(net: nn.Module) -> None:
    # Or the equality above would say nothing.
    answers = Classifier(net, (64, 64)).predict_perturbed(*question(20))
    assert len(np.unique(answers[:, 0])) == 20


def test_a_batch_is_composed_channels_last_and_whole() -> None:
    image, fill, superpixels, keep = question(5, (8, 6))
    tensors = [torch.from_numpy(a)[None, None].expand(1, 3, 8, 6) for a in (image, fill)]
    batch = Composer(torch.cat(tensors), superpixels, keep)(1, 4)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = render(image, fill, superpixels, keep[1:4])
    for channel in range(3):
        np.testing.assert_array_equal(batch[:, channel].numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 99),
)
def test_resizing_by_matrices_is_resize_gray_within_a_grey_level(
    shape: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    rows, columns = resize_matrices(shape, size)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(columns.sum(axis=0), 1, atol=1e-5)
    found = (rows @ image.astype(np.float32) @ columns).round()
    expected = resize_gray(image, size).astype(np.float32)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1


def test_resizing_on_the_device_is_that_of_the_host(net: nn.Module) -> None:
    """The GPU's way, on CPU tensors, at the study's 256 against 224."""
    classifier = Classifier(net, (224, 224))
    image, fill, superpixels, keep = question(6, (256, 256))
    both = np.stack([image, fill])
    found = classifier._inputs.resizing(both, superpixels, keep, None)(1, 6)
    expected = classifier.prepare(render(image, fill, superpixels, keep[1:6]))
    level = classifier.prepare(np.ones((1, 224, 224), np.uint8)) - classifier.prepare(
        np.zeros((1, 224, 224), np.uint8)
    )
    steps = (found - expected) / level
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert abs(steps).max() <= 1.001
    assert (abs(steps) > 0.5).float().mean() < 0.02


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, np.zeros((64, 64, 3), np.uint8), "image: expected uint8"),
        (0, np.zeros((64, 64), np.float32), "image: expected uint8"),
        (1, np.zeros((64, 63), np.uint8), r"fill: expected uint8 \[64, 64\], found .*64, 63"),
        (2, np.zeros((64, 63), np.int32), "superpixels: expected whole numbers"),
        (2, np.zeros((64, 64), np.float32), "superpixels: expected whole numbers"),
        (2, np.full((64, 64), 9, np.int32), r"labels 0 to 8 .*found 9 to 9"),
        (2, np.full((64, 64), -1, np.int32), r"labels 0 to 8 .*found -1"),
        (3, np.zeros((0, 9), np.bool_), r"keep: expected bool \[n, K\]"),
        (3, np.zeros((4, 9), np.uint8), r"keep: expected bool \[n, K\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    net: nn.Module, at: int, value: np.ndarray, said: str
) -> None:
    arrays = list(question())
    arrays[at] = value
    with pytest.raises(ModelError, match=said):
        Classifier(net, (64, 64)).predict_perturbed(*arrays)


@pytest.mark.parametrize(
    ("n_fills", "which", "said"),
    [
        (2, None, "which: expected the fill of each row, for there are 2"),
        (2, np.zeros(3, np.intp), r"which: expected whole numbers \[4\], found int64 \[3\]"),
        (2, np.zeros(4), "which: expected whole numbers"),
        (2, np.array([0, 1, 2, 0]), "which: expected 0 to 1, found 0 to 2"),
        (1, np.array([0, 0, -1, 0]), "which: expected 0 to 0, found -1 to 0"),
    ],
)
def test_a_fill_that_is_not_there_is_refused(
    net: nn.Module, n_fills: int, which: np.ndarray | None, said: str
) -> None:
    image, fill, superpixels, keep = question(4)
    with pytest.raises(ModelError, match=said):
        Classifier(net, (64, 64)).predict_perturbed(
            image, np.stack([fill] * n_fills), superpixels, keep, which
        )


def test_features_are_timms_and_a_network_without_them_is_refused(net: nn.Module) -> None:
    image = question()[0]
    classifier = Classifier(net, (64, 64), runtime=Runtime(batch_size=2))
    found = classifier.embed(np.stack([image, image // 2, image]))
    with torch.no_grad():
        prepared = classifier.prepare(np.stack([image, image // 2]))
        expected = net.forward_head(net.forward_features(prepared), pre_logits=True)
    np.testing.assert_allclose(found[:2], expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    with pytest.raises(ModelError, match="embedding: pixels"):
        Classifier(nn.Flatten(), (64, 64)).embed(image[None])
