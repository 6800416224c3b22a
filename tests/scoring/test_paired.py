"""Paired comparisons against closed forms, enumeration and scipy; and what a true null gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, wilcoxon

from raybench.scoring.bootstrap import intervals
from raybench.scoring.paired import (
    ALPHA,
    all_pairs,
    cohens_dz,
    group_means,
    groups_needed,
    holm,
    paired,
    signed_rank,
)

FEW = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@settings(deadline=None, max_examples=80)
@given(FEW)
def test_the_exact_test_is_the_share_of_all_signs(differences: list[int]) -> None:
    """With ties and zeros, by going through every way to set the signs."""
    p, effect = signed_rank(np.array(differences, float))
    sizes = np.abs([d for d in differences if d])
    if not len(sizes):
        assert (p, effect) == (1.0, 0.0)
        return
    ranks = np.array([(sizes < s).sum() + ((sizes == s).sum() + 1) / 2 for s in sizes])
    up = sum(r for r, d in zip(ranks, [d for d in differences if d], strict=True) if d > 0)
    assert effect == pytest.approx((2 * up - ranks.sum()) / ranks.sum())
    lower = min(up, ranks.sum() - up)
    sums = [np.dot(ranks, signs) for signs in itertools.product([0, 1], repeat=len(ranks))]
    assert p == pytest.approx(min(1, 2 * np.mean([s <= lower for s in sums])))


@pytest.mark.parametrize("n", [3, 20, 50, 80, 300])
def test_the_test_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(0.2, 1, n)
    method = "exact" if n <= 50 else "asymptotic"
    assert signed_rank(values)[0] == pytest.approx(wilcoxon(values, method=method).pvalue)
    tied = np.round(values, 1)
    if n > 50:
        expected = wilcoxon(tied, method="asymptotic").pvalue
        assert signed_rank(tied)[0] == pytest.approx(expected)


def test_a_comparison_adds_up() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), [1, 2, 3] * 4)
    a, b = rng.random(24), rng.random(24)
    a[3], b[7], a[9], b[9] = math.nan, math.nan, math.nan, math.nan
    found = paired(a, b, groups, seed=5)
    there = ~np.isnan(a - b)
    off = (a - b)[there]
    assert found.difference == pytest.approx(off.mean())
    assert (found.n, found.n_left_out, found.n_groups) == (21, 3, len(set(groups[there])))
    means = [off[groups[there] == g].mean() for g in sorted(set(groups[there]))]
    assert group_means(off, groups[there]) == pytest.approx(means)
    assert found.dz == pytest.approx(np.mean(means) / np.std(means, ddof=1))
    assert found.p == pytest.approx(wilcoxon(means, method="exact").pvalue)
    assert found.low < found.difference < found.high
    turned = paired(b, a, groups, seed=5)
    assert (turned.difference, turned.low) == pytest.approx((-found.difference, -found.high))
    assert (turned.p, turned.rank_biserial) == pytest.approx((found.p, -found.rank_biserial))


def test_the_interval_is_the_bootstraps_by_patient() -> None:
    rng = np.random.default_rng(1)
    groups, scores = np.arange(40) // 2, rng.random((40, 3))
    pairs = all_pairs(scores, groups, seed=3)
    assert [(i, j) for i, j, _ in pairs] == [(0, 1), (0, 2), (1, 2)]
    for i, j, found in pairs:
        off = (scores[:, i] - scores[:, j])[:, None]
        ends = intervals(lambda w, off=off: w @ off / w.sum(axis=1)[:, None], groups, seed=3)
        assert (found.low, found.high) == pytest.approx((ends.low[0], ends.high[0]))


def test_what_cannot_be_told() -> None:
    one = paired(np.array([0.4, 0.6]), np.array([0.1, 0.3]), np.array([7, 7]))
    assert one.difference == pytest.approx(0.3)
    assert one.p == 1.0
    assert all(math.isnan(v) for v in (one.low, one.high, one.dz, one.n_needed))
    none = paired(np.array([math.nan]), np.array([0.1]), np.array([0]))
    assert (none.n, none.n_left_out, none.n_groups) == (0, 1, 0)
    assert math.isnan(none.p)
    same = paired(np.full(5, 0.3), np.full(5, 0.1 + 0.2), np.arange(5))
    assert (same.difference, same.p, same.rank_biserial) == (0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="infinite"):
        paired(np.array([math.inf]), np.zeros(1), np.zeros(1, int))
    with pytest.raises(ValueError, match="equal lengths, but got 2 and 1"):
        paired(np.zeros(2), np.zeros(1), np.zeros(2, int))
    with pytest.raises(ValueError, match="3 groups"):
        paired(np.zeros(2), np.zeros(2), np.zeros(3, int))


def test_cohens_dz_and_the_number_that_a_difference_takes() -> None:
    assert cohens_dz(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert math.isnan(cohens_dz(np.full(6, 0.1)))
    # The textbook's (1.96 + 0.84)^2 / 0.5^2 = 31.4 for a t test; 5% more for the Wilcoxon's.
    assert groups_needed(0.5) == math.ceil((1.959964 + 0.841621) ** 2 / 0.25 * math.pi / 3) == 33
    assert groups_needed(-0.5) == 33
    assert (groups_needed(0.0), groups_needed(50.0)) == (math.inf, 2)
    assert math.isnan(groups_needed(math.nan))


def test_that_number_gives_the_power_it_promises() -> None:
    rng, n = np.random.default_rng(0), int(groups_needed(0.5))
    hits = sum(signed_rank(rng.normal(0.5, 1, n))[0] < ALPHA for _ in range(1000))
    assert 0.77 <= hits / 1000 <= 0.85, "0.8, within the approximation and 1,000 draws"


def test_holm_against_its_steps() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9]) == pytest.approx([1.0, math.nan, 1.0], nan_ok=True)
    assert len(holm([])) == 0


@settings(deadline=None, max_examples=80)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_refuses_what_the_step_down_procedure_refuses(p_values: list[float]) -> None:
    """By the procedure itself, one hypothesis after the other."""
    for alpha in (0.05, 0.3):
        rejected = set()
        order = sorted(range(len(p_values)), key=p_values.__getitem__)
        for step, index in enumerate(order):
            if p_values[index] * (len(order) - step) > alpha:
                break
            rejected.add(index)
        assert set(np.flatnonzero(holm(p_values) <= alpha)) == rejected


def _blobs(rng: np.random.Generator, n: int, side: int = 16) -> np.ndarray:
    """Discs of random place and size, bool `[n, side * side]`."""
    rows, columns = np.mgrid[:side, :side]
    centre, radius = rng.uniform(3, side - 3, (n, 2, 1, 1)), rng.uniform(2, 5, (n, 1, 1))
    inside = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2
    return inside.reshape(n, -1)


def test_maps_scored_on_other_images_masks_have_winners_as_often_as_promised() -> None:
    """1,000 leaderboards of explainers whose maps belong to other images: there is none better.

    Both images of a patient are alike, so counting them as two finds winners too often.
    """
    rng, n_patients, n_boards = np.random.default_rng(3), 24, 1000
    masks, maps = (_blobs(rng, 150).astype(np.float64) for _ in range(2))
    both = maps @ masks.T
    iou = both / (maps.sum(1)[:, None] + masks.sum(1) - both)
    patients = np.repeat(np.arange(n_patients), 2)
    winners = {"a pair": 0, "four": 0, "by image": 0}
    for _ in range(n_boards):
        of = rng.choice(150, n_patients, replace=False)
        shuffled = np.column_stack([iou[rng.permutation(150)[:n_patients], of] for _ in range(4)])
        scores = shuffled[patients]
        found = all_pairs(scores, patients, n_draws=1)
        p = np.array([one.p for _, _, one in found])
        winners["a pair"] += p[0] < ALPHA
        winners["four"] += (holm(p) < ALPHA).any()
        winners["by image"] += signed_rank(scores[:, 0] - scores[:, 1])[0] < ALPHA
    low, high = binom.ppf([0.001, 0.999], n_boards, ALPHA)
    assert low <= winners["a pair"] <= high
    # Holm's promise is an upper bound: pairs that share an explainer go together.
    assert 0 < winners["four"] <= high
    assert winners["by image"] > high
