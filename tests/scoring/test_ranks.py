"""Intervals of means and ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raybench.scoring.bootstrap import weights
from raybench.scoring.ranks import mean_intervals, rank_intervals


def test_means_and_ranks_are_those_of_images_drawn_one_by_one() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), [1, 2] * 4)
    values = rng.random((12, 3))
    values[2, 1] = math.nan
    drawn_means, drawn_ranks = [], []
    for draw in np.concatenate(list(weights(groups, 400, seed=2))):
        images = np.repeat(np.arange(12), draw.astype(int))
        means = np.nanmean(values[images], axis=0)
        drawn_means.append(means)
        drawn_ranks.append([(means > m).sum() + 1 for m in means])
    found = mean_intervals(values, groups, 400, seed=2)
    low, high = np.quantile(drawn_means, [0.025, 0.975], axis=0)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    ranks = rank_intervals(values, groups, n_draws=400, seed=2)
    means = np.nanmean(values, axis=0)
    assert ranks.rank.tolist() == [(means > m).sum() + 1 for m in means]
    ordered = np.sort(drawn_ranks, axis=0)
    assert ranks.low.tolist() == ordered[int(0.025 * 399)].tolist()
    assert ranks.high.tolist() == ordered[math.ceil(0.975 * 399)].tolist()


def test_a_clear_winner_is_always_first_and_equals_share_their_rank() -> None:
    scores = np.random.default_rng(1).random(20)
    values = np.column_stack([scores, scores + 0.5, scores])
    found = rank_intervals(values, np.arange(20), n_draws=200)
    assert found.rank.tolist() == found.low.tolist() == found.high.tolist() == [2.5, 1.0, 2.5]
    turned = rank_intervals(values, np.arange(20), higher_is_better=False, n_draws=200)
    assert turned.rank.tolist() == [1.5, 3.0, 1.5]


def test_no_interval_where_there_is_none() -> None:
    values = np.array([[0.1, 0.2, math.nan], [0.3, 0.1, math.nan]])
    found = rank_intervals(values, np.array([4, 4]), n_draws=20)
    assert found.rank[:2].tolist() == [1.0, 2.0]
    assert math.isnan(found.rank[2])
    assert np.isnan([*found.low, *found.high]).all()
    apart = rank_intervals(values, np.array([4, 5]), n_draws=200)
    assert (apart.low[0], apart.high[0], apart.low[1], apart.high[1]) == (1, 2, 1, 2)
    assert math.isnan(apart.low[2])
    means = mean_intervals(values, np.array([4, 5]), 200)
    assert means.low[:2].tolist() == [0.1, 0.1]
    assert math.isnan(means.low[2])
    with pytest.raises(ValueError, match="a group each"):
        mean_intervals(values, np.arange(3))
    with pytest.raises(ValueError, match="n > 0"):
        rank_intervals(np.zeros((0, 2)), np.zeros(0, int))
