"""What surrogates are fitted to: the rows of a neighbourhood, and these as draws by another law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.explain.laws import ALL_PATTERNS, log_comb, log_ratio, worth
from raybench.explain.perturbation import Keep
from raybench.explain.surrogate import Floats


@dataclass(frozen=True, slots=True)
class Rows:
    """What a surrogate is fitted to.

    Attributes:
        keep: `[n, K]`; the first keeps all.
        answers: `[n]`, of the class explained.
        active: `[K]`, superpixels that change anything when switched off.
        law: of the design, over patterns of the active superpixels (see `laws`).
        n_fixed: images at the beginning that were not drawn.
        completions: rows that show the same image, one after the other.
        n_together: images drawn together.
        n_fills: fills that take turns to stand in.
        nothing: the answer with all switched off, where it was asked for by itself.
    """

    keep: Keep
    answers: NDArray[np.floating]
    active: NDArray[np.bool_]
    law: Floats
    n_fixed: int
    completions: int
    n_together: int
    n_fills: int
    nothing: float | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """Patterns of the active superpixels, weighted to stand for a law.

    Attributes:
        keep: `[m, k]`, in the order drawn; what was not drawn comes last.
        answers: `[m]`.
        weights: `[m]`, above 0, of mean 1.
        complete: every pattern that the law has is there, weighted by what the law gives it, and
            nothing but patterns was drawn. Where fills take turns, which of them a pattern is seen
            with is left to chance as well.
        n_effective: see `LocalFit`.
    """

    keep: Keep
    answers: Floats
    weights: Floats
    complete: bool
    n_effective: float

    @classmethod
    def none(cls) -> Drawn:
        """Where there are no superpixels to draw."""
        return cls(np.zeros((0, 0), bool), np.zeros(0), np.zeros(0), True, np.inf)

    def tells(self, n_together: int) -> bool:
        """Whether a jackknife over the draws says anything."""
        n, k = self.keep.shape
        enough = n > k + n_together and -(-n // n_together) > 2
        return enough and not self.complete and bool((self.keep != self.keep[:1]).any(axis=0).all())


def reweighted(rows: Rows, wanted: Floats) -> Drawn:
    """The rows as draws by another law.

    Args:
        wanted: over patterns of the active superpixels.
    """
    keep = rows.keep[:: rows.completions, rows.active]
    answers = np.asarray(rows.answers[:: rows.completions], dtype=np.float64)
    size = keep.sum(axis=1)
    complete, log_weights = _each_once(keep, size, wanted, rows.n_fills)
    if not complete:
        log_weights = log_ratio(wanted, rows.law, size, rows.n_fixed)
    used = np.isfinite(log_weights)
    order = np.roll(np.arange(len(keep)), -rows.n_fixed)
    order = order[used[order]]
    weights = np.exp(log_weights[order] - log_weights[order].max(initial=-np.inf))
    scale = len(weights) / weights.sum() if len(weights) else 1.0
    n_effective = np.inf
    if not complete:
        n_drawn = len(keep) - rows.n_fixed
        n_effective = min(effective_size(weights), n_drawn * worth(wanted, rows.law))
    return Drawn(keep[order], answers[order], weights * scale, complete, n_effective)


def _each_once(
    keep: Keep, size: NDArray[np.integer], wanted: Floats, n_fills: int
) -> tuple[bool, Floats]:
    """Whether all that a law can draw is there, and by it the weights of all rows, `[n]`."""
    k = keep.shape[1]
    if k > ALL_PATTERNS:
        return False, np.zeros(0)
    n_wanted = round(float(np.exp(log_comb(k)[np.isfinite(wanted)]).sum()))
    if n_fills > 1 and n_wanted:
        return False, np.zeros(0)
    there = np.isfinite(wanted[size])
    numbers = keep @ (1 << np.arange(k))
    _, same_as, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    found = len(np.unique(numbers[there]))
    return found == n_wanted, wanted[size] - np.log(counts[same_as])


def effective_size(weights: Floats) -> float:
    """How many samples of equal weight are worth these (Kish 1965); 0 where there are none."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0
