"""Bootstrap intervals: closed forms, the exact distribution of small cases, scipy's."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from raybench.scoring import bootstrap
from raybench.scoring.bootstrap import intervals, weights


def mean_of(values: np.ndarray) -> bootstrap.Statistic:
    return lambda w: (w @ values / w.sum(axis=1))[:, None]


def test_the_mean_of_many_images_follows_normal_theory() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = intervals(mean_of(values), np.arange(400), n_draws=20_000)
    half = stats.norm.ppf(0.975) * values.std() / 20
    assert found.low[0] == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert found.high[0] == pytest.approx(values.mean() + half, abs=0.04 * half)
    narrow = intervals(mean_of(values), np.arange(400), n_draws=20_000, level=0.5)
    ratio = (narrow.high - narrow.low) / (found.high - found.low)
    assert ratio[0] == pytest.approx(stats.norm.ppf(0.75) / stats.norm.ppf(0.975), rel=0.04)


def test_whole_patients_are_drawn() -> None:
    """Eight equal images of each patient say no more than one: the interval is that of patients."""
    each = np.random.default_rng(1).normal(size=60)
    patients = np.repeat(np.arange(60), 8)
    whole = intervals(mean_of(np.repeat(each, 8)), patients + 7, n_draws=20_000, seed=3)
    half = stats.norm.ppf(0.975) * each.std() / np.sqrt(60)
    assert whole.high[0] - whole.low[0] == pytest.approx(2 * half, rel=0.05)
    images = intervals(mean_of(np.repeat(each, 8)), np.arange(480), n_draws=2000)
    assert images.high[0] - images.low[0] < 0.45 * (whole.high[0] - whole.low[0])
    for drawn in weights(patients, 50):
        by_patient = drawn.reshape(len(drawn), 60, 8)
        assert (by_patient == by_patient[:, :, :1]).all()
        assert (drawn.sum(axis=1) == 480).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_exact_distribution_of_five_images(seed: int) -> None:
    values = np.array([0.0, 2.0, 5.0, 8.0, 18.0])
    every = [sum(draw) for draw in product(values, repeat=5)]
    for level in (0.5, 0.8, 0.95):
        found = intervals(lambda w: (w @ values)[:, None], np.arange(5), 40_000, level, seed)
        for end, place in ((found.low[0], (1 - level) / 2), (found.high[0], (1 + level) / 2)):
            below, above = np.quantile(every, [place - 0.008, place + 0.008])
            assert below <= end <= above


@pytest.mark.parametrize("n", [8, 30])
def test_scipy_agrees(n: int) -> None:
    values = np.random.default_rng(n).exponential(size=n)
    peer = stats.bootstrap(
        (values,), np.mean, n_resamples=30_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    found = intervals(mean_of(values), np.arange(n), n_draws=30_000)
    width = peer.high - peer.low
    assert found.low[0] == pytest.approx(peer.low, abs=0.03 * width)
    assert found.high[0] == pytest.approx(peer.high, abs=0.03 * width)


def test_a_seed_fixes_the_draws_and_chunks_do_not_change_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = np.array([4, 4, 9, 1, 1, 1, 2])
    whole = np.concatenate(list(weights(groups, 101, seed=5)))
    assert whole.shape == (101, 7)
    monkeypatch.setattr(bootstrap, "_CHUNK", 30)
    parts = list(weights(groups, 101, seed=5))
    assert len(parts) > 10
    assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(np.concatenate(list(weights(groups, 101, seed=6))), whole)
    assert whole.mean(axis=0) == pytest.approx(np.ones(7), abs=0.35)


def test_undefined_draws_are_left_out_of_their_figure_alone() -> None:
    def statistic(w: np.ndarray) -> np.ndarray:
        rare, common = w[:, 0] > 0, w[:, :4].sum(axis=1) > 0
        share = w[:, 1] / w.sum(axis=1)
        return np.column_stack([share, np.where(common, share, np.nan), np.where(rare, share, 0)])

    found = intervals(statistic, np.arange(10), n_draws=5000)
    assert found.n_undefined[0] == 0
    assert 10 < found.n_undefined[1] < 60
    assert np.isfinite([found.low[1], found.high[1]]).all()
    often = intervals(
        lambda w: np.where(w[:, :1] > 0, w[:, 1:2], np.nan), np.arange(10), n_draws=5000
    )
    assert often.n_undefined[0] / 5000 == pytest.approx(0.9**10, abs=0.03)
    assert np.isnan([often.low[0], often.high[0]]).all(), "undefined in a third of the draws"


def test_one_patient_has_no_interval() -> None:
    found = intervals(mean_of(np.array([1.0, 2.0])), np.array([3, 3]), n_draws=10)
    assert np.isnan([found.low[0], found.high[0]]).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"groups": np.zeros(0, int)}, "n > 0"),
        ({"groups": np.zeros(3)}, "whole numbers"),
        ({"n_draws": 0}, "n_draws: expected at least 1"),
        ({"level": 1.0}, "level: expected above 0 and below 1"),
    ],
)
def test_what_is_refused(asked: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        intervals(mean_of(np.ones(3)), **{"groups": np.arange(3), **asked})  # type: ignore[arg-type]
