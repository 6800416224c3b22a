"""Designs: what every one promises, and what makes each worth its name."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from raybench.explain.designs import Design, keep_vectors, orthogonal, paired
from raybench.explain.perturbation import coin_flips, distinct

DESIGNS: tuple[Any, ...] = get_args(Design)
SMART = [d for d in DESIGNS if d != "independent"]
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


@pytest.mark.parametrize("k", [1, 3, 8])
def test_few_superpixels_are_asked_in_every_pattern(k: int) -> None:
    block = orthogonal(2**k, k, np.random.default_rng(0))
    assert len({tuple(row) for row in block}) == 2**k


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
