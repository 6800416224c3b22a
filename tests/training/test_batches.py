"""Batches hold every image once; augmentation is what torch and OpenCV say. About 2 seconds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.training.batches import Images, augmenter, batches, load_images
from raybench.training.recipe import Augment


def numbered(n: int) -> Images:
    """Images whose pixels and labels both say their number."""
    numbers = torch.arange(n)
    return Images(numbers.to(torch.uint8).view(n, 1, 1).expand(n, 2, 2), numbers)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_every_image_once_and_no_batch_of_one(n: int, batch_size: int, seed: int) -> None:
    parts = list(batches(numbered(n), batch_size, drawn(seed)))
    for pixels, labels in parts:
        assert torch.equal(pixels[:, 0, 0].long(), labels)
    assert sorted(torch.cat([labels for _, labels in parts]).tolist()) == list(range(n))
    sizes = [len(labels) for _, labels in parts]
    merged = n > batch_size and (n - 1) % batch_size == 0
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    last = (n - 1) % batch_size + 1
    assert sizes[-1] == (batch_size + 1 if merged else last)
    again = list(batches(numbered(n), batch_size, drawn(seed)))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(parts, again, strict=True))


def test_order_is_the_generators_alone() -> None:
    def order(seed: int) -> list[int]:
        torch.rand(seed)  # the global state does not enter
        return torch.cat([labels for _, labels in batches(numbered(40), 8, drawn(seed))]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def waves(n: int, size: int) -> torch.Tensor:
    """Smooth, asymmetric images, float `[n, 1, size, size]` in [0, 255]."""
    y, x = np.mgrid[:size, :size] / size
    planes = [127 + 60 * np.sin(5 * x + k) + 60 * np.cos(7 * y * (k + 1) / n) for k in range(n)]
    return torch.from_numpy(np.stack(planes)[:, None].astype(np.float32))


def test_without_flip_and_rotation_nothing_changes() -> None:
    batch = waves(6, 48)
    apply = augmenter(Augment(flip=False, rotation=0), drawn(0))
    assert torch.allclose(apply(batch), batch, atol=0.01)


def test_flip_is_torchs_for_about_half_of_the_images() -> None:
    batch = waves(200, 16)
    out = augmenter(Augment(flip=True, rotation=0), drawn(0))(batch)
    kept = torch.tensor([torch.allclose(a, b, atol=0.01) for a, b in zip(out, batch, strict=True)])
    mirrored = torch.flip(batch, dims=[3])
    assert torch.allclose(out[~kept], mirrored[~kept], atol=0.01)
    assert 70 < int(kept.sum()) < 130


@pytest.mark.parametrize("flip", [False, True])
def test_rotation_is_opencvs_within_the_range_and_black_outside(flip: bool) -> None:
    n, size, limit = 40, 64, 30.0
    batch = waves(n, size)
    out = augmenter(Augment(flip=flip, rotation=limit), drawn(3))(batch)
    assert out.shape == batch.shape
    again = drawn(3)
    flips = torch.rand(n, generator=again) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    angles = (torch.rand(n, generator=again) * 2 - 1) * limit
    assert angles.abs().max() <= limit < 2 * angles.abs().max()
    centre = ((size - 1) / 2, (size - 1) / 2)
    for image, rotated, mirror, angle in zip(batch, out, flips, angles, strict=True):
        matrix = cv2.getRotationMatrix2D(centre, float(angle), 1.0)
        expected = cv2.warpAffine(image[0].numpy(), matrix, (size, size))
        inside = cv2.warpAffine(np.ones((size, size), np.float32), matrix, (size, size))
        if mirror:
            expected, inside = expected[:, ::-1], inside[:, ::-1]
        difference = np.abs(rotated[0].numpy() - expected)
        assert difference[inside == 1].max() < 2.5  # OpenCV rounds coordinates to 1/32 pixel
        assert (rotated[0].numpy()[inside == 0] < 2.5).all()


def test_rotation_leaves_black_corners_and_the_centre() -> None:
    white = torch.full((64, 1, 33, 33), 255.0)
    out = augmenter(Augment(flip=True, rotation=45), drawn(1))(white)
    assert torch.allclose(out[:, 0, 16, 16], torch.tensor(255.0))
    assert out[:, 0, 0, 0].min() == 0
    assert out.min() >= 0
    assert out.max() <= 255.001


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    batch = waves(5, 24)
    first, second = (augmenter(Augment(), drawn(7))(batch) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, augmenter(Augment(), drawn(8))(batch))


def test_images_are_loaded_in_the_records_order_whatever_the_threads() -> None:
    data = Phantom(name="phantom", n_train=2, n_val=1, n_test=1, size=64)
    records, preprocess = data.records()[::-1], Preprocess(lung_masking=True)
    images = load_images(data, records, preprocess, (48, 48), n_threads=3)
    assert images.pixels.dtype == torch.uint8
    assert (len(images), images.pixels.shape) == (12, (12, 48, 48))
    assert [data.classes[i] for i in images.labels] == [r.label for r in records]
    for record, pixels in zip(records, images.pixels, strict=True):
        expected = resize_gray(preprocess.apply(data.load(record)), (48, 48))
        np.testing.assert_array_equal(pixels.numpy(), expected)
