"""Keep-vectors and perturbed images, against naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from raybench.explain.perturbation import (
    Keep,
    active_superpixels,
    coin_flips,
    distinct,
    render,
)
from raybench.types import Gray


@st.composite
def designs(draw: st.DrawFn) -> tuple[Keep, NDArray[np.bool_]]:
    """A keep matrix with repeats, its first row all True, and which columns are active."""
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    keep = draw(hnp.arrays(np.bool_, (n, k)))
    keep = keep[draw(hnp.arrays(np.intp, n, elements=st.integers(0, n - 1)))]
    keep[0] = True
    return keep, draw(hnp.arrays(np.bool_, k))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Gray, NDArray[np.int32]]:
    """An image and labels 0 to K - 1 that all occur."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    raw = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 6)))
    labels = np.unique(raw, return_inverse=True)[1].reshape(shape).astype(np.int32)
    return draw(hnp.arrays(np.uint8, shape)), labels


@given(designs())
@settings(max_examples=150, deadline=None)
def test_distinct_rows_stand_for_all_rows(design: tuple[Keep, NDArray[np.bool_]]) -> None:
    keep, active = design
    first, same_as = distinct(keep, active)
    rows = [tuple(row) for row in keep[:, active]]
    np.testing.assert_array_equal(keep[first][same_as][:, active], keep[:, active])
    assert len({rows[i] for i in first}) == len(first) == len(set(rows))
    assert [rows.index(rows[i]) for i in first] == list(first)
    assert first[0] == 0
    assert (np.diff(first) > 0).all()
    assert same_as.shape == (len(keep),)


@given(scenes(), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_render_and_active_against_a_naive_loop(
    scene: tuple[Gray, NDArray[np.int32]], n_fills: int, seed: int
) -> None:
    image, labels = scene
    keep = coin_flips(5, int(labels.max()) + 1, seed)
    rng = np.random.default_rng(seed)
    fills = rng.choice(np.unique(image), (n_fills, *image.shape))
    which = rng.integers(0, n_fills, 5)
    shown = render(image, fills, labels, keep, which)
    assert (shown.dtype, shown.shape) == (np.uint8, (5, *image.shape))
    for row, number, picture in zip(keep, which, shown, strict=True):
        for at in np.ndindex(image.shape):
            assert picture[at] == (image if row[labels[at]] else fills[number])[at]
    changes = [
        any((image[labels == k] != fill[labels == k]).any() for fill in fills)
        for k in range(labels.max() + 1)
    ]
    active = active_superpixels(image, fills, labels)
    np.testing.assert_array_equal(active, changes)
    first, same_as = distinct(keep, active, which)
    np.testing.assert_array_equal(shown[first][same_as], shown)


def test_coins_are_fair_and_the_first_row_keeps_everything() -> None:
    keep = coin_flips(2000, 30, 1)
    assert keep[0].all()
    assert keep[1:].mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(keep, coin_flips(2000, 30, 1))
    assert (keep[1:] != coin_flips(2000, 30, 2)[1:]).mean() == pytest.approx(0.5, abs=0.01)
