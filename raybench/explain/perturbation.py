"""Perturbations: which superpixels are kept in each sample, and what the model is shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raybench.types import Gray

Keep = NDArray[np.bool_]
"""Keep-vectors, bool `[n, K]`: a row a perturbation, True where a superpixel stays."""


def coin_flips(n_samples: int, n_superpixels: int, seed: int) -> Keep:
    """lime's own design, bit for bit: independent fair coins; the first row keeps everything.

    The draws are those of `LimeImageExplainer(random_state=seed)` explaining its first image: it
    draws a seed for the superpixels before it draws the coins.
    """
    state = np.random.RandomState(seed)
    state.randint(0, high=1000)
    keep = state.randint(0, 2, n_samples * n_superpixels).reshape(n_samples, n_superpixels) > 0
    keep[0] = True
    return keep


def fill_image(image: Gray, superpixels: NDArray[np.int32], fill: str) -> Gray:
    """What is shown where a superpixel is switched off, uint8 `[h, w]`.

    Args:
        fill: `black` (lime's `hide_color=0`), or `mean`, each superpixel's own mean grey level,
            rounded down as lime's assignment to uint8 does (its `hide_color=None`).
    """
    if fill == "black":
        return np.zeros_like(image)
    counts = np.bincount(superpixels.ravel())
    sums = np.bincount(superpixels.ravel(), weights=image.ravel())
    return np.asarray((sums / counts).astype(np.uint8)[superpixels], dtype=np.uint8)


def active_superpixels(
    image: Gray, fill: Gray, superpixels: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Which superpixels change anything when switched off, bool `[K]`."""
    changed = np.bincount(superpixels.ravel(), weights=(image != fill).ravel())
    return np.asarray(changed > 0)


def distinct(keep: Keep, active: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that show the model different images, and for each row which of them it equals.

    Returns:
        `first` `[m]`, indices of the first row of each kind in ascending order, and `same_as`
        `[n]`, positions in `first`, so that `answers_of_first[same_as]` are all n answers.
    """
    packed = np.packbits(keep[:, active], axis=1)
    if packed.shape[1] == 0:
        return np.zeros(1, np.intp), np.zeros(len(keep), np.intp)
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.ravel()]


def render(
    image: Gray, fill: Gray, superpixels: NDArray[np.int32], keep: Keep
) -> NDArray[np.uint8]:
    """The perturbed images, uint8 `[n, h, w]`."""
    return np.where(keep[:, superpixels], image, fill)
