"""Labels of the figures do not cover one another."""

from __future__ import annotations

import itertools

import pandas as pd
from matplotlib.text import Annotation

from raybench.report.distributions import cost


def test_explainers_that_cost_and_score_alike_have_labels_that_can_be_read() -> None:
    rows = [
        {"backbone": "net", "explainer": f"explainer_{i}", "iou": 0.2 + 0.001 * i, "n_forward": 100}
        | {"iou_low": 0.1, "iou_high": 0.3, "seconds": 1.0 + 0.1 * i}
        for i in range(6)
    ]
    rows.append(rows[0] | {"explainer": "far", "iou": 0.6})
    figure = cost(pd.DataFrame(rows), [], "val")
    figure.draw_without_rendering()
    labels = [a for a in figure.axes[0].get_children() if isinstance(a, Annotation)]
    assert len(labels) == 7
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert labels[-1].get_position() == (5, 3), "one that stands alone stays beside its point"
