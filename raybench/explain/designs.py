"""Designs: which superpixels are kept in each perturbation.

lime flips a fair coin for each superpixel of each sample. The surrogate is linear, so what its
weights suffer from is whatever the model's answer has beside a linear part; a design chooses the
samples so that this cancels instead of averaging out.

Superpixels that change nothing when switched off (on a lung-masked X-ray up to a half and more) are
no part of the question: every design but lime's own first draws the *patterns* of the others, which
the model is asked about. `completed` then lets each asked image stand for several keep-vectors that
differ in the rest, which costs no forward pass and takes the rest's coins out of the noise.

`bernoulli` and `shapley` are drawn by laws of their own, those of the surrogates GLIME and
KernelSHAP (docs/engine.md).

Every design is a sequence: with more samples it begins with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from raybench.explain.laws import (
    ALL_PATTERNS,
    bernoulli_law,
    log_comb,
    proper_law,
    shapley_law,
)
from raybench.explain.perturbation import Keep, coin_flips
from raybench.explain.surrogate import Floats

Design = Literal["independent", "paired", "orthogonal", "completed", "bernoulli", "shapley"]

KEEP_SHARE = float(1 / (1 + np.exp(-1)))
"""Of `bernoulli`, where nobody says otherwise: that of GLIME with sigma 1."""

Patterns = Callable[[int, int, np.random.Generator], Keep]


def paired(n: int, k: int, rng: np.random.Generator) -> Keep:
    """Independent coins, each vector followed by its complement: `[n, k]`.

    What the answer owes to pairs of superpixels, or to any even number of them, is the same in a
    vector and its complement, and drops out of the main effects.
    """
    half = rng.integers(0, 2, (-(-n // 2), k)) > 0
    return np.stack([half, ~half], axis=1).reshape(-1, k)[:n]


def orthogonal(n: int, k: int, rng: np.random.Generator) -> Keep:
    """Blocks of a two-level orthogonal array with fold-over (Plackett and Burman 1946): `[n, k]`.

    A block is a Sylvester-Hadamard matrix with more than k rows, of which k random columns with
    random signs are taken; its rows come in random order, each followed by its complement. In a
    whole block every pair of superpixels is kept both, one or none equally often, so that a main
    effect owes nothing to the others, and the fold-over frees it from all effects of pairs. Up to
    8 superpixels a block is simply all 2^k patterns.
    """
    blocks: list[Keep] = []
    while sum(map(len, blocks)) < n:
        half = _half_block(k, rng)
        blocks.append(np.stack([half, ~half], axis=1).reshape(-1, k))
    return np.concatenate(blocks)[:n]


def _half_block(k: int, rng: np.random.Generator) -> Keep:
    if k <= ALL_PATTERNS:
        numbers = rng.permutation(1 << (k - 1))
        return np.asarray((numbers[:, None] >> np.arange(k) & 1) > 0)
    order = 1 << int(k).bit_length()
    columns = hadamard(order)[:, 1:] > 0
    signs = rng.integers(0, 2, k) > 0
    return np.asarray((columns[:, rng.permutation(order - 1)[:k]] ^ signs)[rng.permutation(order)])


def bernoulli(n: int, k: int, rng: np.random.Generator, keep_share: float) -> Keep:
    """Independent coins that keep with probability `keep_share`: `[n, k]`.

    Up to 8 superpixels it is all patterns, as `orthogonal` has them.
    """
    if k <= ALL_PATTERNS:
        return orthogonal(n, k, rng)
    return np.asarray(rng.random((n, k)) < keep_share)


def shapley(n: int, k: int, rng: np.random.Generator) -> Keep:
    """Coalitions by the Shapley kernel, each followed by its complement: `[n, k]`.

    The first keeps none; all are kept by the row before, which every design has. Then a size is
    drawn by the kernel and as many superpixels at random; the complement's size is as likely. Up
    to 8 superpixels it is all patterns in random order, those two but once.
    """
    none = np.zeros((1, k), bool)
    if k == 1:
        return np.asarray(np.arange(n)[:, None] % 2 > 0)
    if k <= ALL_PATTERNS:
        blocks = [none]
        while sum(map(len, blocks)) < n:
            half = _half_block(k, rng)
            half = half[(half != half[:, :1]).any(axis=1)]
            blocks.append(_with_complements(half))
        return np.concatenate(blocks)[:n]
    up_to = np.cumsum(np.exp(shapley_law(k) + log_comb(k)))
    draws = rng.random((n // 2, k + 1))  # row by row: more samples begin with the same ones
    size = np.clip(np.searchsorted(up_to, draws[:, 0], side="right"), 1, k - 1)
    rank = draws[:, 1:].argsort(axis=1).argsort(axis=1)
    return np.concatenate([none, _with_complements(rank < size[:, None])])[:n]


def _with_complements(half: Keep) -> Keep:
    return np.stack([half, ~half], axis=1).reshape(-1, half.shape[1])


_PATTERNS: Mapping[str, Patterns] = {
    "paired": paired,
    "orthogonal": orthogonal,
    "completed": orthogonal,
    "shapley": shapley,
}


def asked_like(design: Design, keep_share: float = KEEP_SHARE) -> str:
    """The design that asks the model the same patterns: the answers of one serve the other."""
    if design == "bernoulli":
        return f"bernoulli {keep_share!r}"
    return "orthogonal" if design == "completed" else design


def n_completions(design: Design, completions: int) -> int:
    """How many keep-vectors each perturbed image of a design stands for."""
    return completions if design == "completed" else 1


def n_fixed(design: Design) -> int:
    """How many images lead a design that were not drawn: all kept, and in `shapley` none."""
    return 2 if design == "shapley" else 1


def n_together(design: Design) -> int:
    """How many images are drawn together: a pattern, or one with its complement."""
    return 1 if design in ("independent", "bernoulli") else 2


def law_of(design: Design, n_active: int, keep_share: float = KEEP_SHARE) -> Floats:
    """The law by which a design draws the patterns of the active superpixels (see `laws`)."""
    few = n_active <= ALL_PATTERNS
    if design == "shapley":
        return proper_law(n_active) if few else shapley_law(n_active)
    if design == "bernoulli" and not few:
        return bernoulli_law(n_active, keep_share)
    return bernoulli_law(n_active, 0.5)


def keep_vectors(
    design: Design,
    n_samples: int,
    active: NDArray[np.bool_],
    seed: int,
    completions: int = 1,
    keep_share: float = KEEP_SHARE,
) -> Keep:
    """The keep-vectors of a design, bool `[n_samples * completions, K]`; the first keeps all.

    Args:
        n_samples: perturbed images, before equal ones are merged.
        active: bool `[K]`, superpixels that change something when switched off.
        completions: keep-vectors for each perturbed image of `completed`; others have one.
        keep_share: of `bernoulli`.
    """
    if design == "independent":
        return coin_flips(n_samples, len(active), seed)
    completions = n_completions(design, completions)
    n_active = int(active.sum())
    keep = np.ones((n_samples, completions, len(active)), bool)
    if n_active and n_samples > 1:
        rng = np.random.default_rng([seed, 0])
        if design == "bernoulli":
            drawn = bernoulli(n_samples - 1, n_active, rng, keep_share)
        else:
            drawn = _PATTERNS[design](n_samples - 1, n_active, rng)
        keep[1:, :, active] = drawn[:, None]
    # Row by row, so that neither more samples nor more completions change what was drawn before.
    rest = [
        np.random.default_rng([seed, 1 + c]).integers(0, 2, (n_samples, len(active) - n_active)) > 0
        for c in range(-(-completions // 2))
    ]
    for c in range(completions):
        keep[:, c, ~active] = rest[c // 2] ^ bool(c % 2)
    keep[0, 0] = True
    return keep.reshape(-1, len(active))
