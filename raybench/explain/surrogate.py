"""The surrogate: a weighted ridge regression from keep-vectors to the model's answers.

Ribeiro et al. 2016, "Why should I trust you?", equation 1, with the choices of the lime library:
cosine distance to the unperturbed image, exponential kernel under a square root, alpha 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.explain.perturbation import Keep

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted surrogate.

    Attributes:
        weights: `[K]`, the effect of keeping each superpixel on the target's probability.
        intercept: the fitted probability with everything switched off.
        r2: weighted coefficient of determination, at most 1.
    """

    weights: Floats
    intercept: float
    r2: float


def jackknife(
    keep: Keep,
    answers: NDArray[np.floating],
    sample_weights: Floats,
    alpha: float,
    fit: Fit,
    group_size: int,
) -> Floats:
    """The weights less those without one group of samples, `[G, K]`, in closed form.

    Groups are what was drawn together: a sample, a vector with its complement, all keep-vectors of
    one perturbed image. `draw = weights + signs @ deltas` with random signs is another draw of the
    weights (wild bootstrap, Wu 1986); `sqrt((deltas ** 2).sum(0) * (G - 1) / G)` is their standard
    error (jackknife, Tukey 1958; CR3 of cluster-robust regression). Samples that a design places
    evenly vary less than independent ones, so there it errs on the safe side.

    Args:
        keep, answers, sample_weights, alpha: what `ridge` was given.
        fit: what it returned.
        group_size: rows of a group; the last group may be shorter.
    """
    x = keep.astype(np.float64)
    x -= sample_weights @ x / sample_weights.sum()
    residual = np.asarray(answers, np.float64) - fit.intercept - keep @ fit.weights
    gram = x.T @ (x * sample_weights[:, None])
    gram[np.diag_indices_from(gram)] += max(alpha, 1e-9)
    influence = np.linalg.solve(gram, x.T).T * sample_weights[:, None]
    whole = len(x) // group_size * group_size
    parts = [slice(0, whole), slice(whole, len(x))] if whole < len(x) else [slice(0, whole)]
    deltas = []
    for part in parts:
        size = group_size if part.start == 0 and whole else len(x) - whole
        xs = x[part].reshape(-1, size, x.shape[1])
        pull = influence[part].reshape(xs.shape)
        within = np.eye(size) - xs @ pull.transpose(0, 2, 1)
        left_out = np.linalg.solve(within, residual[part].reshape(-1, size, 1))
        deltas.append((pull.transpose(0, 2, 1) @ left_out)[:, :, 0])
    return np.concatenate(deltas)


def standard_error(deltas: Floats) -> Floats:
    """Standard errors of the weights, `[K]`, from what `jackknife` returned."""
    n_groups = len(deltas)
    return np.asarray(np.sqrt((deltas**2).sum(axis=0) * (n_groups - 1) / n_groups))


def cosine_distance(keep: Keep) -> Floats:
    """Cosine distance of each keep-vector `[n, K]` to the vector of ones; 1 where none is kept."""
    n_kept = keep.sum(axis=1)
    return np.asarray(1.0 - np.sqrt(n_kept / keep.shape[1]), dtype=np.float64)


def kernel(distance: Floats, width: float) -> Floats:
    """Sample weights `sqrt(exp(-d^2 / width^2))`, as lime has them."""
    return np.asarray(np.sqrt(np.exp(-(distance**2) / width**2)))


def ridge(keep: Keep, answers: NDArray[np.floating], sample_weights: Floats, alpha: float) -> Fit:
    """Weighted ridge regression with an unpenalised intercept, in closed form.

    Args:
        keep: `[n, K]`.
        answers: `[n]`, the target's probabilities.
        sample_weights: `[n]`, not negative.
        alpha: penalty on the squared weights. With 0, several weights may fit equally well (fewer
            samples than superpixels, or one that is always kept); the shortest are returned.
    """
    x, y = keep.astype(np.float64), np.asarray(answers, dtype=np.float64)
    total = sample_weights.sum()
    x_mean, y_mean = sample_weights @ x / total, float(sample_weights @ y / total)
    centred, target = x - x_mean, y - y_mean
    weighted = centred * sample_weights[:, None]
    if alpha > 0:
        gram = centred.T @ weighted
        gram[np.diag_indices_from(gram)] += alpha
        weights = np.linalg.solve(gram, weighted.T @ target)
    else:
        root = np.sqrt(sample_weights)
        weights = np.linalg.lstsq(centred * root[:, None], target * root, rcond=None)[0]
    residual = target - centred @ weights
    spread = float(sample_weights @ target**2)
    r2 = 1.0 - float(sample_weights @ residual**2) / spread if spread > 0 else 1.0
    return Fit(weights=weights, intercept=y_mean - float(x_mean @ weights), r2=r2)
