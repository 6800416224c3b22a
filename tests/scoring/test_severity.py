"""The infected share of the lungs, and how far off a predicted one is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raybench.scoring.severity import severity, severity_scores, severity_summary


def mask(*pixels: int) -> np.ndarray:
    found = np.zeros(10, bool)
    found[list(pixels)] = True
    return found.reshape(2, 5)


def test_it_is_the_share_of_the_lungs_and_nothing_outside_counts() -> None:
    assert severity(mask(0, 1, 2, 8, 9), mask(0, 1, 2, 3, 4)) == pytest.approx(3 / 5)
    assert severity(mask(8), mask(0, 1)) == 0
    assert severity(mask(*range(10)), mask(0, 1)) == 1


def test_without_lungs_there_is_none() -> None:
    assert math.isnan(severity(mask(1), None))
    assert math.isnan(severity(mask(1), mask()))
    assert all(math.isnan(v) for v in severity_scores(mask(1), mask(2), None).values())
    with pytest.raises(ValueError, match="one shape"):
        severity(mask(1), np.ones((3, 3), bool))


def test_an_images_columns_are_both_shares_and_their_distance() -> None:
    found = severity_scores(mask(0, 1), mask(0, 1, 2, 3, 7), mask(0, 1, 2, 3, 4))
    assert found == pytest.approx({"severity": 0.4, "severity_truth": 0.8, "severity_error": 0.4})


def test_the_summary_has_error_and_bias_and_leaves_out_what_has_no_lungs() -> None:
    found = severity_summary(
        [0.5, 0.2, math.nan, 0.9], [0.3, 0.3, 0.1, 0.9], np.array([0, 1, 2, 3]), seed=1
    )
    assert found["severity_mae"] == pytest.approx(0.1)
    assert found["severity_bias"] == pytest.approx(0.1 / 3)
    assert found["severity_n"] == 3
    assert 0 <= found["severity_mae_low"] < 0.1 < found["severity_mae_high"] < 0.21


def test_patients_are_drawn_whole() -> None:
    truth = np.zeros(6)
    off = np.array([0.1, 0.1, 0.1, 0.3, 0.3, 0.3])
    two = severity_summary(off, truth, np.array([0, 0, 0, 1, 1, 1]))
    assert (two["severity_mae_low"], two["severity_mae_high"]) == pytest.approx((0.1, 0.3))
    six = severity_summary(off, truth, np.arange(6))
    assert six["severity_mae_low"] > 0.1
    one = severity_summary(off, truth, np.zeros(6, int))
    assert math.isnan(one["severity_mae_low"])
    none = severity_summary([math.nan], [0.5], np.array([0]))
    assert math.isnan(none["severity_mae"])
    assert none["severity_n"] == 0
