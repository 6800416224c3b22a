"""Laws: how likely a pattern of kept superpixels is, by how many of them it keeps.

A law is `[k + 1]`: the logarithm of the probability of one pattern of k superpixels that keeps 0,
1, ... k of them; minus infinity where it never comes. All patterns of one size are equally likely
under every law here, so `comb(k, s) * exp(law[s])` is the probability of the size s, and what is
drawn by one law stands for another when each pattern is weighted by the ratio of the two.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from raybench.explain.surrogate import Floats

ALL_PATTERNS = 8
"""With so many superpixels at most, every pattern is asked."""


def bernoulli_law(k: int, keep_share: float) -> Floats:
    """Independent coins that keep with probability `keep_share`, above 0 and below 1."""
    size = np.arange(k + 1)
    return np.asarray(size * np.log(keep_share) + (k - size) * np.log1p(-keep_share))


def shapley_law(k: int) -> Floats:
    """The Shapley kernel (Lundberg and Lee 2017, theorem 2), scaled to a probability.

    A size s has the probability `1 / (s (k - s))`, scaled to a sum of 1; all and none, where the
    kernel is infinite, are left out: what is fitted by it goes through them.
    """
    size = np.arange(1, k)
    law = np.full(k + 1, -np.inf)
    by_size = 1.0 / (size * (k - size))
    law[1:k] = np.log(by_size / by_size.sum()) - log_comb(k)[1:k]
    return law


def proper_law(k: int) -> Floats:
    """All patterns but all and none, equally likely."""
    law = np.full(k + 1, -np.inf)
    law[1:k] = -np.log(max(2.0**k - 2.0, 1.0))
    return law


def log_comb(k: int) -> Floats:
    """Logarithms of the numbers of patterns of each size, `[k + 1]`."""
    size = np.arange(k + 1)
    return np.asarray(gammaln(k + 1) - gammaln(size + 1) - gammaln(k - size + 1))


def log_ratio(wanted: Floats, drawn: Floats, size: NDArray[np.integer], fixed: int) -> Floats:
    """Logarithms of the weights with which drawn patterns stand for another law, `[n]`.

    Patterns that no draw made (the first `fixed`) do not enter, but where their size is never
    drawn: then each stands for all of its size, as the only one of it. That is right for the two
    sizes of which there is but one pattern, all and none.

    Args:
        wanted, drawn: laws.
        size: `[n]`, superpixels that each pattern keeps.
    """
    target, by_design = wanted[size], drawn[size]
    never = np.isneginf(by_design)
    by_chance = ~never & (np.arange(len(size)) >= fixed)
    found = np.full(len(size), -np.inf)
    found[by_chance] = target[by_chance] - by_design[by_chance]
    found[never] = target[never] + np.log(max(int(by_chance.sum()), 1))
    return found


def worth(wanted: Floats, drawn: Floats) -> float:
    """What a sample by one law is worth to another: `1 / (1 + variance of the weights)`, 0 to 1.

    From the laws, not from the weights of a sample: one that missed all that counts most would
    not know.
    """
    there = np.isfinite(wanted) & np.isfinite(drawn)
    if not there.any():
        return 0.0
    by_size = log_comb(len(wanted) - 1)[there]
    share = np.exp(by_size + wanted[there]).sum()
    return float(share**2 / np.exp(by_size + 2 * wanted[there] - drawn[there]).sum())
