"""An image's neighbourhood: all its perturbations, which of them are asked, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from raybench.errors import ExplainError
from raybench.explain.designs import Design, keep_vectors
from raybench.explain.perturbation import Keep, active_superpixels, distinct
from raybench.explain.surrogate import (
    Floats,
    cosine_distance,
    jackknife,
    kernel,
    ridge,
    standard_error,
)
from raybench.types import Gray

_N_DRAWS = 100


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The perturbations of one image.

    Attributes:
        keep: bool `[N, K]`, what the surrogate is fitted to.
        first: `[m]`, rows that show the model different images, in the order they are asked in.
        same_as: `[N]`, for each row the place in `first` of the image it shows.
        which: `[N]`, for each row the number of the fill that stands in; they take turns, what was
            drawn together sharing one.
        completions: rows that each image stands for.
        group_size: rows drawn together, which stay together in the jackknife.
    """

    keep: Keep
    first: NDArray[np.intp]
    same_as: NDArray[np.intp]
    which: NDArray[np.intp]
    completions: int
    group_size: int

    @classmethod
    def draw(
        cls,
        design: Design,
        n_samples: int,
        image: Gray,
        fills: NDArray[np.uint8],
        superpixels: NDArray[np.int32],
        seed: int,
        completions: int,
        deduplicate: bool,
    ) -> Neighbourhood:
        """Draw a design for an image.

        Args:
            image: uint8 `[h, w]`, with its superpixels, int32 `[h, w]`.
            fills: uint8 `[F, h, w]`.
        """
        active = active_superpixels(image, fills, superpixels)
        return _drawn(
            design,
            n_samples,
            tuple(active.tolist()),
            seed,
            completions,
            deduplicate,
            len(fills),
        )

    @property
    def n_distinct(self) -> int:
        """Forward passes that all of it costs."""
        return len(self.first)

    def expect(self, image_id: str, n_answers: int) -> None:
        """Refuse answers that are not one for each image asked.

        Raises:
            ExplainError: there are more or fewer.
        """
        if n_answers != self.n_distinct:
            raise ExplainError(
                f"{image_id}: {n_answers} answers for {self.n_distinct} perturbed images"
            )

    def n_rows(self, n_answers: int) -> int:
        """How many rows, from the first on, the first `n_answers` answers cover."""
        missing = self.same_as >= n_answers
        return int(missing.argmax()) if missing.any() else len(self.keep)


@lru_cache(maxsize=32)
def _drawn(
    design: Design,
    n_samples: int,
    active: tuple[bool, ...],
    seed: int,
    completions: int,
    deduplicate: bool,
    n_fills: int,
) -> Neighbourhood:
    """Kept for a while: an image's rounds, and every setting fitted to it, look at the same one."""
    mask = np.array(active, dtype=bool)
    keep = keep_vectors(design, n_samples, mask, seed, completions)
    together = 1 if design == "independent" else 2
    # The unperturbed image leads the design and belongs to no pair.
    shown = np.arange(len(keep)) // completions
    which = np.maximum(shown - 1, 0) // together % n_fills
    if deduplicate:
        first, same_as = distinct(keep, mask, which if n_fills > 1 else None)
    else:
        first = np.arange(0, len(keep), completions)
        same_as = np.arange(len(keep)) // completions
    for array in (keep, first, same_as, which):
        array.flags.writeable = False
    return Neighbourhood(keep, first, same_as, which, completions, together * completions)


@dataclass(frozen=True, slots=True)
class LocalFit:
    """A surrogate with its uncertainty.

    Attributes:
        weights: `[K]`.
        r2: weighted coefficient of determination.
        uncertainty: `[K]`, standard errors of the weights; infinite where they cannot be told.
        deltas: `[G, K]`, see `surrogate.jackknife`; empty where they cannot be told.
    """

    weights: Floats
    r2: float
    uncertainty: Floats
    deltas: Floats


def fit_of(
    seen: Neighbourhood,
    answers: NDArray[np.floating],
    target: int,
    kernel_width: float,
    alpha: float,
) -> LocalFit:
    """Fit the surrogate of one class to the answers so far, `[m, C]`."""
    n_rows = seen.n_rows(len(answers))
    keep, y = seen.keep[:n_rows], answers[seen.same_as[:n_rows], target]
    sample_weights = kernel(cosine_distance(keep), kernel_width)
    fit = ridge(keep, y, sample_weights, alpha)
    n_groups = -(-n_rows // seen.group_size)
    if n_groups <= 2 or n_rows <= keep.shape[1] + seen.group_size:
        unknown = np.full(keep.shape[1], np.inf)
        return LocalFit(fit.weights, fit.r2, unknown, np.zeros((0, keep.shape[1])))
    # The unperturbed image leads the design and belongs to no pair.
    order = np.roll(np.arange(n_rows), -seen.completions)
    deltas = jackknife(keep[order], y[order], sample_weights[order], alpha, fit, seen.group_size)
    return LocalFit(fit.weights, fit.r2, standard_error(deltas), deltas)


def expected_iou(
    fit: LocalFit, areas: NDArray[np.integer], threshold: float, seed: int = 0
) -> float:
    """Expected IoU of the salient mask with that of another draw of the same size, 0 to 1.

    The mask is that of the weights scaled to [0, 1] and cut at `threshold`; other draws are those
    of the wild bootstrap.

    Args:
        areas: pixels of each superpixel, `[K]`.
    """
    if not len(fit.deltas):
        return 0.0
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (_N_DRAWS, len(fit.deltas))) * 2.0 - 1.0
    drawn = _salient(fit.weights + signs @ fit.deltas, threshold)
    found = _salient(fit.weights[None], threshold)
    both = ((drawn & found) * areas).sum(axis=1)
    either = ((drawn | found) * areas).sum(axis=1)
    return float((both / np.maximum(either, 1)).mean())


def _salient(weights: Floats, threshold: float) -> NDArray[np.bool_]:
    low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    return np.asarray(weights - low > threshold * (high - low))


def is_settled(
    fit: LocalFit, areas: NDArray[np.integer], threshold: float, tolerance: float, seed: int
) -> bool:
    """Whether more samples would move the salient mask by less than the tolerance (in IoU)."""
    return expected_iou(fit, areas, threshold, seed) >= 1.0 - tolerance
