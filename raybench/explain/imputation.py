"""Noisy linear imputation (Rong et al. 2022, ROAD): hidden pixels drawn from those that are left.

Each hidden pixel is the weighted mean of its eight neighbours, hidden ones included: a sparse
linear system. A share of hidden pixels so does not leave its outline in the image, which a model
could read as it reads the fill of a black hole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu

from raybench.errors import ExplainError
from raybench.types import Gray, Mask

_BESIDE, _ACROSS = 1 / 6, 1 / 12
_NEIGHBOURS = tuple(
    (dy, dx, _ACROSS if dy and dx else _BESIDE)
    for dy in (-1, 0, 1)
    for dx in (-1, 0, 1)
    if dy or dx
)


def linear(image: Gray, hidden: Mask) -> NDArray[np.float64]:
    """The image with its hidden pixels imputed, float64 `[h, w]` in grey levels, not rounded.

    Weights are the paper's, 1/6 beside and 1/12 across a corner; at the border they are those of
    the neighbours that exist, scaled to sum to 1.

    Args:
        image: uint8 `[h, w]`.
        hidden: bool `[h, w]`.

    Raises:
        ExplainError: the shapes differ, or no pixel is left to impute from.
    """
    if hidden.shape != image.shape or hidden.dtype != np.bool_:
        raise ExplainError(
            f"hidden: expected bool {list(image.shape)}, found {hidden.dtype} {list(hidden.shape)}"
        )
    found = image.astype(np.float64)
    if not hidden.any():
        return found
    if hidden.all():
        raise ExplainError("hidden: expected a pixel that is left, found that all are hidden")
    matrix, right = _system(found, hidden)
    # The matrix is symmetric: an ordering made for that keeps the factors thin.
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    found[hidden] = factors.solve(right)
    return found


def _system(image: NDArray[np.float64], hidden: Mask) -> tuple[csc_matrix, NDArray[np.float64]]:
    """Matrix `[k, k]` and right side `[k]` of the k hidden pixels, row by row."""
    height, width = hidden.shape
    ys, xs = np.nonzero(hidden)
    number = np.full(hidden.shape, -1)
    number[ys, xs] = np.arange(len(ys))
    total, right = np.zeros(len(ys)), np.zeros(len(ys))
    rows, columns, weights = [], [], []
    for dy, dx, weight in _NEIGHBOURS:
        y, x = ys + dy, xs + dx
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        total[inside] += weight
        other = number[y[inside], x[inside]]
        known = other < 0
        right[inside[known]] += weight * image[y[inside[known]], x[inside[known]]]
        rows.append(inside[~known])
        columns.append(other[~known])
        weights.append(np.full(int((~known).sum()), -weight))
    every = np.arange(len(ys))
    entries = np.concatenate([*weights, total])
    where = (np.concatenate([*rows, every]), np.concatenate([*columns, every]))
    return csc_matrix((entries, where), shape=(len(ys), len(ys))), right


def noisy_linear(image: Gray, hidden: Mask, noise: float, seed: int) -> Gray:
    """`linear` with normal noise on the hidden pixels, rounded to grey levels.

    Args:
        noise: deviation, as a share of the grey levels' range.
        seed: of the noise.

    Raises:
        ExplainError: as for `linear`.
    """
    found = linear(image, hidden)
    drawn = np.random.default_rng(seed).standard_normal(image.shape)
    found[hidden] += 255 * noise * drawn[hidden]
    return np.asarray(np.clip(np.rint(found), 0, 255), np.uint8)
