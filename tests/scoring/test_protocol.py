"""The study's figures against its formulas, written out with sets of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raybench.scoring.protocol import study_scores

MASKS = st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda shape: st.lists(st.tuples(arrays(bool, shape), arrays(bool, shape)), min_size=1)
)


def directed(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> float:
    return max(min(math.dist(p, q) for q in b) for p in a)


@settings(deadline=None, max_examples=60)
@given(MASKS)
def test_it_replays_the_formulas(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    ious, dices, distances = [], [], []
    for salient, truth in pairs:
        a, b = ({(int(i), int(j)) for i, j in np.argwhere(m)} for m in (salient, truth))
        ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        dices.append(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
        if a and b:
            distances.append(max(directed(a, b), directed(b, a)))
    found = study_scores(pairs)
    assert found.iou == pytest.approx(sum(ious) / len(ious))
    assert found.dice == pytest.approx(sum(dices) / len(dices))
    expected = sum(distances) / len(distances) if distances else math.nan
    assert found.hausdorff == pytest.approx(expected, nan_ok=True)
    assert (found.n, found.n_hausdorff) == (len(pairs), len(distances))


def test_pixels_inside_an_outline_count_for_the_hausdorff_distance() -> None:
    """Inside the ring the truth is far from any ring pixel, which outlines alone would not tell."""
    truth = np.ones((9, 9), bool)
    ring = truth.copy()
    ring[1:-1, 1:-1] = False
    assert study_scores([(ring, truth)]).hausdorff == 4.0


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        study_scores([])
