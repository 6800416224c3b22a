"""Who wins a search, and what the choice is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raybench.scoring.binarise import CANDIDATES
from raybench.scoring.selection import left_out_score, on_front, winner
from raybench.studies.tried import Tried


def _curves(*rows: list[float]) -> np.ndarray:
    """Settings with a fixed threshold, an IoU an image."""
    return np.repeat(np.array(rows)[:, :, None], len(CANDIDATES), axis=2)


def test_who_wins_and_what_the_choice_is_worth_by_hand() -> None:
    assert winner(np.array([0.3, 0.5, 0.5 + 1e-10, 0.5]), np.array([1, 9, 2, 2])) == 2
    assert winner(np.array([0.5, 0.5 + 1e-8]), np.array([1, 9])) == 1
    # The lucky setting (0.8, 0.8, 0.2) wins with 0.6 on all. Without the first image it has 0.5,
    # and so without the second; the steady one has 0.55 and is scored there: 0.55. Without the
    # third the lucky one wins, and gets 0.2 there.
    curves, passes = _curves([0.8, 0.8, 0.2], [0.55, 0.55, 0.55]), np.array([1.0, 1.0])
    assert winner(curves[:, :, 0].mean(axis=1), passes) == 0
    assert left_out_score(curves, passes, ["a", "b", "c"]) == pytest.approx((0.55 + 0.55 + 0.2) / 3)
    # Two images of one patient are left out together: without (a, a) the steady one wins.
    assert left_out_score(curves, passes, ["a", "a", "c"]) == pytest.approx((1.1 + 0.2) / 3)
    assert np.isnan(left_out_score(curves, passes, ["a", "a", "a"]))
    # A threshold chosen on Val is chosen anew without the image.
    rule = np.zeros((1, 3, len(CANDIDATES)))
    rule[0, :, 3], rule[0, :, 9] = [0.9, 0.9, 0.0], [0.5, 0.5, 0.5]
    assert left_out_score(rule, np.array([1.0]), [0, 1, 2]) == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    front = on_front(np.array([0.5, 0.4, 0.6, 0.5, np.nan]), np.array([4.0, 2.0, 8.0, 5.0, 0.0]))
    assert front.tolist() == [True, True, True, False, False]


def test_settings_that_fail_where_the_own_ones_do_not_have_failed() -> None:
    def row(ious: list[float], n_forward: float) -> dict[str, Any]:
        curves = _curves(ious)[0].astype("<f8").tobytes() if ious else b""
        return {"curves": curves, "n_forward": n_forward, "seconds": 0.0, "error": None}

    nan = float("nan")
    tried = Tried([row([0.2, 0.4, nan], 5), row([0.9, nan, 0.9], 5), row([], nan)])
    tried.add(row([0.3, 0.5, 0.1], 7))
    np.testing.assert_allclose(tried.scores, [0.3, nan, nan, 0.4])
    assert (tried.winner, tried.values(1), tried.values(3)) == (3, None, (pytest.approx(0.4), 7.0))
    assert tried.left_out(["a", "b", "c"]) == pytest.approx(0.4)
    nothing = Tried([row([nan, nan], nan), row([0.5, 0.5], 1)])
    assert nothing.winner is None
    assert np.isnan(nothing.left_out(["a", "b"]))
