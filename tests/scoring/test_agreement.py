"""How alike two maps are, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from raybench.scoring.agreement import rank_agreement, ssim


def test_rank_agreement_is_spearmans_with_ties() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 5, (12, 9)).astype(np.float32)
    other = (one + rng.normal(0, 2, one.shape)).astype(np.float32)
    expected = spearmanr(one.ravel(), other.ravel()).statistic
    assert rank_agreement(one, other) == pytest.approx(expected, abs=1e-12)
    assert rank_agreement(one, 3 * one + 2) == 1.0, "exactly"
    assert rank_agreement(one, -one) == pytest.approx(-1.0)


def test_a_constant_map_ranks_nothing() -> None:
    flat, other = np.zeros((8, 8), np.float32), np.arange(64, dtype=np.float32).reshape(8, 8)
    assert rank_agreement(flat, other) == rank_agreement(other, flat) == 0.0
    assert rank_agreement(flat, flat + 1) == 1.0


def test_ssim_is_one_for_a_map_at_another_scale_and_falls_with_noise() -> None:
    rng = np.random.default_rng(1)
    one = rng.random((20, 20)).astype(np.float32)
    assert ssim(one, 5 * one - 3) == pytest.approx(1.0, abs=1e-5)
    a, b = (ssim(one, one + rng.normal(0, s, one.shape).astype(np.float32)) for s in (0.1, 1.0))
    assert 1 > a > b
    assert ssim(one[:4, :4], one[:4, :4]) == 1.0


def test_maps_that_do_not_belong_together_are_refused() -> None:
    flat = np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="one shape"):
        rank_agreement(flat, flat[:4])
    with pytest.raises(ValueError, match="finite"):
        ssim(flat, np.full((8, 8), np.nan, np.float32))
    with pytest.raises(ValueError, match="3 pixels"):
        ssim(flat[:2], flat[:2])
