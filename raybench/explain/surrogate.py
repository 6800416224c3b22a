"""The mathematics of the surrogates: regressions from keep-vectors to the model's answers.

`kernel` and `ridge` are Ribeiro et al. 2016, "Why should I trust you?", equation 1, with the
choices of the lime library: cosine distance to the unperturbed image, exponential kernel under a
square root. `bayesian_ridge` is MacKay 1992, `shapley_values` Lundberg and Lee 2017, theorem 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert

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


@dataclass(frozen=True, slots=True)
class LocalFit:
    """A surrogate with its uncertainty.

    Attributes:
        weights: `[K]`.
        r2: weighted coefficient of determination.
        uncertainty: `[K]`, standard errors of the weights; infinite where they cannot be told, or
            nobody asked for them.
        deltas: `[G, K]`: `weights + signs @ deltas` with random signs is another draw of the
            weights; empty where there is none.
        n_effective: samples that the fit rests on, as if all weighed the same; infinite where
            every pattern was asked and none was drawn by chance.
    """

    weights: Floats
    r2: float
    uncertainty: Floats
    deltas: Floats
    n_effective: float = float("nan")


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
    return left_out(x, residual, sample_weights, max(alpha, 1e-9), group_size)


def left_out(
    x: Floats, residual: Floats, sample_weights: Floats, alpha: float, group_size: int
) -> Floats:
    """The coefficients of a weighted ridge less those without one group of rows, `[G, p]`.

    Args:
        x: `[n, p]`, the regressors; centred before, where there is an intercept.
        residual: `[n]`, what the fit leaves.
        sample_weights: `[n]`, not negative.
        alpha: the penalty, above 0, so that no group is more than the rest can do without.
        group_size: rows of a group; the last group may be shorter.
    """
    gram = x.T @ (x * sample_weights[:, None])
    gram[np.diag_indices_from(gram)] += alpha
    influence = np.linalg.solve(gram, x.T).T * sample_weights[:, None]
    whole = len(x) // group_size * group_size
    parts = [slice(0, whole), slice(whole, len(x))] if whole < len(x) else [slice(0, whole)]
    deltas = []
    for part in parts:
        size = group_size if part.start == 0 and whole else len(x) - whole
        xs = x[part].reshape(-1, size, x.shape[1])
        pull = influence[part].reshape(xs.shape)
        within = np.eye(size) - xs @ pull.transpose(0, 2, 1)
        without = np.linalg.solve(within, residual[part].reshape(-1, size, 1))
        deltas.append((pull.transpose(0, 2, 1) @ without)[:, :, 0])
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


def bayesian_ridge(
    keep: Keep, answers: NDArray[np.floating], sample_weights: Floats
) -> tuple[Fit, Floats]:
    """Ridge regression that finds its own penalty: noise and weights with unknown precisions.

    As scikit-learn's `BayesianRidge` has it (MacKay 1992; gamma priors of 1e-6, as good as none),
    iterated to the end. The sum of the sample weights is the number of observations.

    Args:
        keep: `[n, K]`.
        answers: `[n]`.
        sample_weights: `[n]`, not negative.

    Returns:
        The fit with the posterior mean of the weights, and their posterior covariance `[K, K]`.
    """
    x, y = keep.astype(np.float64), np.asarray(answers, dtype=np.float64)
    total = float(sample_weights.sum())
    x_mean, y_mean = sample_weights @ x / total, float(sample_weights @ y / total)
    centred, target = x - x_mean, y - y_mean
    gram = centred.T @ (centred * sample_weights[:, None])
    eigen, axes = np.linalg.eigh(gram)
    eigen = np.maximum(eigen, 0.0)
    eigen[eigen < 1e-12 * max(eigen.max(initial=0.0), 1e-300)] = 0.0
    pull = axes.T @ (centred.T @ (sample_weights * target))
    pull[eigen == 0] = 0.0
    best = np.divide(pull, eigen, out=np.zeros_like(pull), where=eigen > 0)
    spread = float(sample_weights @ target**2)
    unexplained = float(sample_weights @ (target - centred @ (axes @ best)) ** 2)
    noise, prior = _precisions(eigen, pull, best, unexplained, spread / total, total)
    turned = pull / (eigen + prior / noise)
    error = unexplained + float(eigen @ (turned - best) ** 2)
    weights = axes @ turned
    covariance = (axes / (noise * eigen + prior)) @ axes.T
    r2 = 1.0 - error / spread if spread > 0 else 1.0
    return Fit(weights, y_mean - float(x_mean @ weights), r2), covariance


def _precisions(
    eigen: Floats, pull: Floats, best: Floats, unexplained: float, variance: float, total: float
) -> tuple[float, float]:
    """Precisions of the noise and of the weights, in the axes of the Gram matrix."""
    noise, prior = 1.0 / (variance + float(np.finfo(np.float64).eps)), 1.0
    before = np.zeros_like(pull)
    for _ in range(300):
        turned = pull / (eigen + prior / noise)
        determined = float((noise * eigen / (prior + noise * eigen)).sum())
        prior = (determined + 2e-6) / (float(turned @ turned) + 2e-6)
        error = unexplained + float(eigen @ (turned - best) ** 2)
        # With fewer observations than superpixels rounding could leave the noise no freedom.
        noise = (max(total - determined, 1.0) + 2e-6) / (error + 2e-6)
        if np.abs(turned - before).sum() <= 1e-8 * np.abs(turned).sum():
            break
        before = turned
    return noise, prior


def shapley_values(
    keep: Keep,
    answers: NDArray[np.floating],
    sample_weights: Floats,
    everything: float,
    nothing: float,
    group_size: int,
) -> tuple[Fit, Floats]:
    """Weights that add up to the answer, fitted to coalitions (KernelSHAP's regression).

    The intercept is `nothing` and the weights sum to `everything - nothing`; among these the
    weighted least squares, without penalty. With sample weights by the Shapley kernel over all
    patterns but the two at the ends these are the Shapley values. Where the coalitions leave
    weights open, the values nearest to equal shares.

    Args:
        keep: bool `[n, k]`.
        answers: `[n]`.
        sample_weights: `[n]`, not negative.
        everything, nothing: the answers with all superpixels kept, and with none.
        group_size: rows left out together in the jackknife; 0: no deltas.

    Returns:
        The fit, and the deltas of the jackknife, `[G, k]`, each of which sums to 0.
    """
    k = keep.shape[1]
    share = (everything - nothing) / k
    free = helmert(k)  # rows are orthonormal and sum to 0: all that the constraint leaves free
    target = np.asarray(answers, dtype=np.float64) - nothing - keep.sum(axis=1) * share
    x = keep @ free.T
    gram = x.T @ (x * sample_weights[:, None])
    theta = np.linalg.lstsq(gram, x.T @ (sample_weights * target), rcond=1e-12)[0]
    residual = target - x @ theta
    y = np.asarray(answers, dtype=np.float64)
    total = sample_weights.sum()
    spread = float(sample_weights @ (y - sample_weights @ y / total) ** 2) if total else 0.0
    r2 = 1.0 - float(sample_weights @ residual**2) / spread if spread > 0 else 1.0
    deltas = np.zeros((0, k))
    if group_size and k > 1:
        alpha = 1e-9 * max(float(gram.trace()), 1.0)
        deltas = left_out(x, residual, sample_weights, alpha, group_size) @ free
    return Fit(share + free.T @ theta, nothing, r2), deltas
