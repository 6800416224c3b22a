import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from raybench.scoring.boundary import hausdorff
from raybench.scoring.surface import NSD_TOLERANCE, assd, hausdorff_outline, hd95, nsd, outline

SHAPES = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Noise, single pixels, rings, boxes at the edge, full masks; never empty."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    rows, columns = np.indices(shape)
    pair = []
    for _ in range(2):
        kind = draw(st.sampled_from(["any", "pixel", "ring", "box", "full"]))
        centre = [rng.integers(0, side) for side in shape]
        mask = np.zeros(shape, bool)
        if kind == "any":
            mask = draw(arrays(bool, shape))
        elif kind == "ring":
            away = np.hypot(rows - centre[0], columns - centre[1])
            mask = (away > 3) & (away < rng.integers(4, 12))
        elif kind == "box":
            mask[: centre[0] + 1, centre[1] :] = True
        elif kind == "full":
            mask[:] = True
        mask[tuple(centre)] = True
        pair.append(mask)
    return pair[0], pair[1]


def slow_outline(mask: np.ndarray) -> np.ndarray:
    """Coordinates of pixels with a 4-neighbour outside the mask or the image, one by one."""

    def there(row: int, column: int) -> bool:
        inside = 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1]
        return inside and bool(mask[row, column])

    around = ((-1, 0), (1, 0), (0, -1), (0, 1))
    return np.array(
        [
            (r, c)
            for r, c in np.argwhere(mask)
            if not all(there(r + down, c + right) for down, right in around)
        ]
    )


def slow_distances(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = slow_outline(one), slow_outline(other)
    squared = ((ours[:, None] - theirs[None]) ** 2).sum(axis=2)
    return np.sqrt(squared.min(axis=1)), np.sqrt(squared.min(axis=0))


@settings(deadline=None, max_examples=150)
@given(mask_pairs())
def test_distances_are_those_of_all_pairs(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert [tuple(p) for p in np.argwhere(outline(pair[0]))] == [
        tuple(p) for p in slow_outline(pair[0])
    ]
    there, back = slow_distances(*pair)
    pooled = np.concatenate([there, back])
    expected = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hd95(*pair) == pytest.approx(expected, abs=1e-9)
    assert hausdorff_outline(*pair) == pytest.approx(pooled.max(), abs=1e-9)
    assert assd(*pair) == pytest.approx(pooled.mean(), abs=1e-9)
    assert nsd(*pair) == pytest.approx((pooled <= NSD_TOLERANCE + 1e-9).mean(), abs=1e-12)


def test_the_outline_of_a_full_image_is_its_edge() -> None:
    expected = np.ones((6, 7), bool)
    expected[1:-1, 1:-1] = False
    assert (outline(np.ones((6, 7), bool)) == expected).all()


def test_squares_moved_apart() -> None:
    one, moved = np.zeros((2, 40, 60), bool)
    one[10:20, 5:15] = True
    for by in (1, 2, 3, 30):
        moved[:] = False
        moved[10:20, 5 + by : 15 + by] = True
        # The far side is the farthest from the other's near side or its own place's rows.
        assert 0 < assd(one, moved) <= by
        assert hd95(one, moved) <= by
        assert nsd(one, moved) == 1.0 if by <= NSD_TOLERANCE else nsd(one, moved) < 1.0
    assert nsd(one, moved) == 0.0
    assert hd95(one, moved) == 30


def test_hd95_takes_the_worse_direction() -> None:
    few, many = np.zeros((2, 1, 101), bool)
    few[0, 0] = True
    many[0, :] = True
    # From the pixel 0; from the line 0 to 100, whose 95th percentile is 95.
    assert hd95(few, many) == hd95(many, few) == pytest.approx(95)
    assert assd(few, many) == pytest.approx(sum(range(101)) / 102)
    assert nsd(few, many) == pytest.approx((1 + 3) / 102)


def test_a_hole_is_near_over_all_pixels_and_far_over_outlines() -> None:
    full = np.ones((9, 9), bool)
    holed = full.copy()
    holed[4, 4] = False
    # The hole's pixel has a neighbour in the mask; the hole's rim is 3 from the image's edge.
    assert (hausdorff(full, holed), hausdorff_outline(full, holed)) == (1.0, 3.0)


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    for pair in ((empty, empty), (full, empty), (empty, full)):
        assert math.isnan(hd95(*pair))
        assert math.isnan(assd(*pair))
        assert math.isnan(hausdorff_outline(*pair))
    assert (nsd(empty, empty), nsd(full, empty), nsd(empty, full)) == (1.0, 0.0, 0.0)
