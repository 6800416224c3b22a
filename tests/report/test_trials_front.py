"""The picture of accuracy beside localisation. About a second."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raybench.report.style import png
from raybench.report.trials_front import trials_front

NAN = float("nan")


def trials() -> pd.DataFrame:
    rows = [
        ("t0", "vgg16", 0.90, 0.10, False),
        ("t1", "vgg16", 0.88, 0.20, True),
        ("t2", "vgg16", 0.80, 0.30, False),
        ("t3", "vgg16", 0.79, 0.15, False),
        ("t4", "vgg16", 0.91, NAN, False),
        ("t5", "dense", NAN, NAN, False),
    ]
    columns = ["trial_id", "backbone", "val_accuracy", "val_localisation", "best"]
    return pd.DataFrame(rows, columns=columns)


def test_points_front_band_and_the_chosen_one() -> None:
    figure = trials_front(trials(), 100, "mean iou of grad_cam on Val")
    full, empty = figure.axes
    assert (full.get_title(), empty.get_title()) == ("vgg16", "dense")
    assert full.get_ylabel() == "mean iou of grad_cam on Val"
    points, ring = full.collections
    assert np.asarray(points.get_offsets()).tolist() == [
        *([0.90, 0.10], [0.88, 0.20], [0.80, 0.30], [0.79, 0.15])
    ]
    assert np.asarray(ring.get_offsets()).tolist() == [[0.88, 0.20]]
    (front,) = full.lines
    assert front.get_xydata().tolist() == [[0.80, 0.30], [0.88, 0.20], [0.90, 0.10]]
    (band,) = full.patches
    # t4 has no localisation and is not drawn, but its accuracy is what others are held against.
    left = 0.91 - (0.91 * 0.09 / 100) ** 0.5
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((left, 0.91))
    assert [t.get_text() for t in full.texts] == ["t0", "t1", "t2"]
    assert not empty.collections
    (legend,) = figure.legends
    said = [t.get_text() for t in legend.get_texts()]
    assert said == ["Pareto front", "within one standard error of the highest accuracy", "chosen"]
    assert png(figure, 40).startswith(b"\x89PNG")


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="best are missing"):
        trials_front(trials().drop(columns="best"), 100, "y")
    with pytest.raises(ValueError, match="no rows"):
        trials_front(trials()[:0], 100, "y")
