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


def active_superpixels(
    image: Gray, fills: NDArray[np.uint8], superpixels: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Which superpixels change anything when switched off, bool `[K]`.

    Args:
        fills: `[F, h, w]`, or `[h, w]` where there is one; one that differs is enough.
    """
    differs = image != fills
    changed = np.bincount(
        superpixels.ravel(), weights=differs.reshape(-1, *image.shape).any(axis=0).ravel()
    )
    return np.asarray(changed > 0)


def distinct(
    keep: Keep, active: NDArray[np.bool_], which: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that show the model different images, and for each row which of them it equals.

    Args:
        which: `[n]`, the number of each row's fill, below 256; None: there is one.

    Returns:
        `first` `[m]`, indices of the first row of each kind in ascending order, and `same_as`
        `[n]`, positions in `first`, so that `answers_of_first[same_as]` are all n answers.
    """
    packed = np.packbits(keep[:, active], axis=1)
    if which is not None and packed.shape[1]:  # with all kept, no fill is seen
        seen = np.where(keep[:, active].all(axis=1), 0, which).astype(np.uint8)
        packed = np.column_stack([packed, seen])
    if packed.shape[1] == 0:
        return np.zeros(1, np.intp), np.zeros(len(keep), np.intp)
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.ravel()]


def render(
    image: Gray,
    fills: NDArray[np.uint8],
    superpixels: NDArray[np.int32],
    keep: Keep,
    which: NDArray[np.integer] | None = None,
) -> NDArray[np.uint8]:
    """The perturbed images, uint8 `[n, h, w]`.

    Args:
        fills: `[F, h, w]`, or `[h, w]` where there is one.
        which: `[n]`, the number of each row's fill; None: there is one.
    """
    return np.where(keep[:, superpixels], image, fills if which is None else fills[which])
