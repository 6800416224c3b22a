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
from raybench.training.task import Classify


def numbered(n: int) -> Images:
    """Images whose pixels and labels both say their number."""
    numbers = torch.arange(n)
    return Images(numbers.to(torch.uint8).view(n, 1, 1).expand(n, 2, 2), numbers)


CLASSES = torch.arange(200)


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
    assert torch.allclose(apply(batch, CLASSES[:6])[0], batch, atol=0.01)


def test_flip_is_torchs_for_about_half_of_the_images() -> None:
    batch = waves(200, 16)
    out, _ = augmenter(Augment(flip=True, rotation=0), drawn(0))(batch, CLASSES)
    kept = torch.tensor([torch.allclose(a, b, atol=0.01) for a, b in zip(out, batch, strict=True)])
    mirrored = torch.flip(batch, dims=[3])
    assert torch.allclose(out[~kept], mirrored[~kept], atol=0.01)
    assert 70 < int(kept.sum()) < 130


@pytest.mark.parametrize("flip", [False, True])
def test_rotation_is_opencvs_within_the_range_and_black_outside(flip: bool) -> None:
    n, size, limit = 40, 64, 30.0
    batch = waves(n, size)
    out, classes = augmenter(Augment(flip=flip, rotation=limit), drawn(3))(batch, CLASSES[:n])
    assert torch.equal(classes, CLASSES[:n])
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
    out, _ = augmenter(Augment(flip=True, rotation=45), drawn(1))(white, CLASSES[:64])
    assert torch.allclose(out[:, 0, 16, 16], torch.tensor(255.0))
    assert out[:, 0, 0, 0].min() == 0
    assert out.min() >= 0
    assert out.max() <= 255.001


def test_what_is_drawn_depends_on_the_generator_alone() -> None:
    batch = waves(5, 24)
    every = Augment(scale=0.2, shift=0.1, brightness=0.3, contrast=0.3)
    for augment in (Augment(), every):
        first, second, third = (
            augmenter(augment, drawn(seed))(batch, CLASSES[:5])[0] for seed in (7, 7, 8)
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, third)


def test_scale_and_shift_stay_within_their_bounds_and_masks_go_with_the_image() -> None:
    """A square of 16 pixels in the middle of 64: its centre and side are read off after."""
    masks = torch.zeros(200, 64, 64, dtype=torch.uint8)
    masks[:, 24:40, 24:40] = 1
    augment = Augment(flip=True, rotation=0, scale=0.25, shift=0.2)
    out, moved = augmenter(augment, drawn(2))(masks[:, None].float() * 255, masks)
    assert moved.dtype == torch.uint8
    differ = (out[:, 0] > 127.5) != moved.bool()
    assert differ.float().mean() < 0.01  # bilinear and nearest part at the square's edge alone
    sides = moved.sum(dim=1).amax(dim=1).double()
    assert 16 / 1.25 - 1 <= sides.min() < 14
    assert 18 < sides.max() <= 16 * 1.25 + 1
    where = moved.nonzero().double()
    centres = torch.stack([where[where[:, 0] == i, 1:].mean(0) for i in range(200)]) - 31.5
    assert 10 < centres.abs().max() <= 0.2 * 64 * 1.25 + 1


def test_brightness_and_contrast_are_factors_within_their_bounds() -> None:
    row = 100 + 20 * torch.tensor([-1.0, 1.0]).repeat(32)
    batch = row.view(1, 1, 1, 64).expand(300, 1, 4, 64)
    bright = Augment(flip=False, rotation=0, brightness=0.2)
    out, _ = augmenter(bright, drawn(0))(batch, CLASSES[:1])
    factors = out.mean(dim=(1, 2, 3)) / 100
    assert 0.8 <= factors.min() < 0.82
    assert 1.18 < factors.max() <= 1.2
    contrast = Augment(flip=False, rotation=0, contrast=0.5)
    out, _ = augmenter(contrast, drawn(0))(batch, CLASSES[:1])
    assert torch.allclose(out.mean(dim=(1, 2, 3)), torch.tensor(100.0), atol=0.01)
    spreads = (out.amax(dim=(1, 2, 3)) - out.amin(dim=(1, 2, 3))) / 40
    assert 0.5 <= spreads.min() < 0.55
    assert 1.45 < spreads.max() <= 1.51


def test_images_are_loaded_in_the_records_order_whatever_the_threads() -> None:
    data = Phantom(name="phantom", n_train=2, n_val=1, n_test=1, size=64)
    records, preprocess = data.records()[::-1], Preprocess(lung_masking=True)
    target = Classify(data.classes).target
    images = load_images(data, records, preprocess, (48, 48), target, n_threads=3)
    assert images.pixels.dtype == torch.uint8
    assert (len(images), images.pixels.shape) == (12, (12, 48, 48))
    assert [data.classes[i] for i in images.targets] == [r.label for r in records]
    for record, pixels in zip(records, images.pixels, strict=True):
        expected = resize_gray(preprocess.apply(data.load(record)), (48, 48))
        np.testing.assert_array_equal(pixels.numpy(), expected)
