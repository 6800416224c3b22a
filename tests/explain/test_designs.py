"""Designs: what every one promises, and what makes each worth its name."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from raybench.explain.designs import (
    Design,
    asked_like,
    keep_vectors,
    law_of,
    n_fixed,
    orthogonal,
    paired,
)
from raybench.explain.laws import (
    bernoulli_law,
    log_comb,
    log_ratio,
    proper_law,
    shapley_law,
    worth,
)
from raybench.explain.perturbation import coin_flips, distinct

DESIGNS: tuple[Any, ...] = get_args(Design)
SMART = ["paired", "orthogonal", "completed"]
ACTIVE = hnp.arrays(np.bool_, st.integers(1, 45))

each_design = pytest.mark.parametrize("design", DESIGNS)


@each_design
@given(ACTIVE, st.integers(2, 90), st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_design(
    design: Design, active: NDArray[np.bool_], n: int, seed: int, completions: int
) -> None:
    keep = keep_vectors(design, n, active, seed, completions)
    each = completions if design == "completed" else 1
    assert keep.dtype == bool
    assert keep.shape == (n * each, len(active))
    assert keep[0].all()
    np.testing.assert_array_equal(keep, keep_vectors(design, n, active, seed, completions))
    longer = keep_vectors(design, n + 17, active, seed, completions)
    np.testing.assert_array_equal(longer[: len(keep)], keep)
    patterns = keep[:, active].reshape(n, each, -1)
    assert (patterns == patterns[:, :1]).all()
    assert len(distinct(keep, active)[0]) <= n


def test_completions_ask_nothing_more_and_keep_what_was_drawn() -> None:
    active = np.arange(40) % 3 == 0
    one, four = (keep_vectors("completed", 60, active, 3, c) for c in (1, 4))
    np.testing.assert_array_equal(one, keep_vectors("orthogonal", 60, active, 3))
    np.testing.assert_array_equal(four.reshape(60, 4, 40)[:, 0], one)
    assert len(distinct(one, active)[0]) == len(distinct(four, active)[0])
    rest = four.reshape(60, 4, 40)[1:, :, ~active]
    np.testing.assert_array_equal(rest[:, 0], ~rest[:, 1])
    assert (rest[:, 0] != rest[:, 2]).any(axis=1).all()


def test_independent_is_limes_own() -> None:
    active = np.arange(30) < 9
    np.testing.assert_array_equal(
        keep_vectors("independent", 200, active, 5), coin_flips(200, 30, 5)
    )


@each_design
def test_another_seed_is_another_draw(design: Design) -> None:
    active = np.ones(20, bool)
    first, other = (keep_vectors(design, 50, active, seed, 1) for seed in (0, 1))
    assert (first != other).any()


@pytest.mark.parametrize("draw", [paired, orthogonal])
@pytest.mark.parametrize("k", [1, 2, 5, 8, 9, 23, 40])
def test_vectors_come_with_their_complements(draw: Any, k: int) -> None:
    rows = draw(64, k, np.random.default_rng(0))
    np.testing.assert_array_equal(rows[0::2], ~rows[1::2])


@pytest.mark.parametrize("k", [9, 15, 16, 23, 31, 32, 40])
def test_a_block_is_an_orthogonal_array_of_strength_three(k: int) -> None:
    order = 1 << k.bit_length()
    block = orthogonal(2 * order, k, np.random.default_rng(k)) * 2 - 1
    np.testing.assert_array_equal(block.T @ block, 2 * order * np.eye(k, dtype=int))
    triples = np.einsum("ni,nj,nk->ijk", block, block, block)
    assert (triples == 0).all()
    second = orthogonal(4 * order, k, np.random.default_rng(k))[2 * order :]
    assert (second * 2 - 1 != block).any()


@pytest.mark.parametrize("design", [d for d in DESIGNS if d not in ("independent", "paired")])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_few_superpixels_are_asked_in_every_pattern(k: int, design: Design) -> None:
    keep = keep_vectors(design, 1 + 2**k, np.ones(k, bool), 0)
    assert len({tuple(row) for row in keep}) == 2**k


@pytest.mark.parametrize("k", [2, 5, 9, 30])
def test_shapley_asks_all_then_none_then_coalitions_with_their_complements(k: int) -> None:
    keep = keep_vectors("shapley", 200, np.ones(k, bool), 4)
    assert keep[0].all()
    assert not keep[1].any()
    np.testing.assert_array_equal(keep[2::2], ~keep[3::2])
    kept = keep[2:].sum(axis=1)
    assert kept.min() > 0
    assert kept.max() < k


@pytest.mark.parametrize("keep_share", [0.3, 0.9])
def test_bernoulli_keeps_its_share_of_the_active_superpixels(keep_share: float) -> None:
    active = np.arange(60) % 3 > 0
    keep = keep_vectors("bernoulli", 800, active, 2, keep_share=keep_share)[1:]
    assert keep[:, active].mean() == pytest.approx(keep_share, abs=0.01)
    assert keep[:, ~active].mean() == pytest.approx(0.5, abs=0.02)
    together = np.cov(keep[:, active].T)
    assert np.abs(together - np.diag(np.diag(together))).max() < 0.05
    assert asked_like("bernoulli", keep_share) != asked_like("bernoulli", 0.5)


# Laws

SHARES = st.floats(0.02, 0.98)


@given(st.integers(1, 60), SHARES)
@settings(max_examples=60, deadline=None)
def test_laws_are_probabilities(k: int, keep_share: float) -> None:
    laws = [bernoulli_law(k, keep_share)]
    if k > 1:
        laws += [shapley_law(k), proper_law(k)]
    for law in laws:
        assert law.shape == (k + 1,)
        assert np.exp(log_comb(k) + law).sum() == pytest.approx(1, rel=1e-9)
    if k > 1:  # as the paper has the kernel
        size = np.arange(1, k)
        kernel = (k - 1) / (np.exp(log_comb(k))[1:k] * size * (k - size))
        np.testing.assert_allclose(
            np.exp(shapley_law(k))[1:k] / kernel * kernel[0], np.exp(shapley_law(k))[1], rtol=1e-8
        )


@given(st.integers(2, 40), SHARES, SHARES)
@settings(max_examples=60, deadline=None)
def test_weights_of_another_law_are_one_on_average(k: int, one: float, other: float) -> None:
    size = np.arange(k + 1)
    everywhere = (bernoulli_law(k, one), bernoulli_law(k, other), shapley_law(k))
    for wanted in everywhere:
        for drawn in everywhere[:2]:
            ratio = np.exp(log_ratio(wanted, drawn, size, 0))
            by_chance = np.exp(log_comb(k) + drawn)
            assert by_chance @ ratio == pytest.approx(1, rel=1e-8)
            assert worth(wanted, drawn) == pytest.approx(1 / (by_chance @ ratio**2), rel=1e-8)
            assert worth(drawn, drawn) == pytest.approx(1)


def test_what_a_law_never_draws_stands_for_itself() -> None:
    """Coins by coalitions of the Shapley kernel: all and none come from the rows before them."""
    wanted, drawn = bernoulli_law(12, 0.8), shapley_law(12)
    size = np.r_[12, 0, np.full(50, 6), np.full(30, 9)]
    found = np.exp(log_ratio(wanted, drawn, size, 2))
    assert found[0] / 80 == pytest.approx(0.8**12)
    assert found[1] / 80 == pytest.approx(0.2**12)
    assert found[2] == pytest.approx(np.exp(wanted[6] - drawn[6]))
    covered = np.exp(log_comb(12) + wanted)[1:12].sum()
    assert covered + found[:2].sum() / 80 == pytest.approx(1)
    assert (log_ratio(wanted, wanted, size, 2)[:2] == -np.inf).all()  # nobody drew these


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("k", [5, 13])
def test_every_design_draws_by_its_law(design: Design, k: int) -> None:
    """Frequencies of the sizes over many seeds, and weights with a mean of 1 by them."""
    active = np.arange(k + 4) >= 4
    share, law = 0.65, law_of(design, k, 0.65)
    first = n_fixed(design)
    kept = np.concatenate(
        [
            keep_vectors(design, 60, active, seed, 1, share)[first:, active].sum(axis=1)
            for seed in range(150)
        ]
    )
    seen = np.bincount(kept, minlength=k + 1) / len(kept)
    np.testing.assert_allclose(seen, np.exp(log_comb(k) + law), atol=0.02)
    wanted = bernoulli_law(k, 0.6)
    told = np.exp(log_ratio(wanted, law, kept, 0)).mean()
    left = np.exp(wanted[[0, k]]).sum() if design == "shapley" else 0.0
    assert told + left == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("design", SMART)
def test_effects_of_pairs_drop_out(design: Design) -> None:
    """An answer made of a linear part and of pairs: coins leave noise in it, these designs none."""
    rng = np.random.default_rng(0)
    k = 12
    linear, pairs = rng.normal(size=k), rng.normal(size=(k, k))

    def slope(chosen: Design) -> NDArray[np.float64]:
        keep = keep_vectors(chosen, 1 + 64, np.ones(k, bool), 1)[1:]
        x = keep * 2.0 - 1
        y = x @ linear + np.einsum("ni,ij,nj->n", x, pairs, x)
        return np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), y, rcond=None)[0][1:]

    np.testing.assert_allclose(slope(design), linear, atol=1e-9)
    assert np.abs(slope("independent") - linear).max() > 0.3
