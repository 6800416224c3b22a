"""The picture of stability: a point where the mean is, and nothing asked looks like something."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raybench.report.stability_dots import stability_dots


def table() -> pd.DataFrame:
    rows = []
    for explainer, seeds, noise in (("lime", 0.8, -0.4), ("grad_cam", 1.0, 0.9)):
        for over, mean in (("seeds", seeds), ("noise", noise)):
            for rule in ("fixed", "val"):
                jaccard = abs(mean) if rule == "val" else 0.123
                row = {"backbone": "b", "trial_id": "t0", "explainer": explainer, "over": over}
                row |= {"threshold_rule": rule, "rank": mean, "jaccard": jaccard}
                row |= {f"{k}_low": row[k] - 0.05 for k in ("rank", "jaccard")}
                row |= {f"{k}_high": row[k] + 0.05 for k in ("rank", "jaccard")}
                row |= {"by_construction": explainer == "grad_cam" and over == "seeds"}
                rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("panel", "means"), [(0, [0.8, -0.4, 0.9]), (1, [0.8, 0.4, 0.9])])
def test_points_lie_at_the_means_of_the_rule_and_what_was_not_asked_is_hollow(
    panel: int, means: list[float]
) -> None:
    ax = stability_dots(table(), "val").axes[panel]
    lines = [line for line in ax.get_lines() if line.get_marker() not in ("None", None, "")]
    full = [line.get_xdata()[0] for line in lines if line.get_markerfacecolor() != "none"]
    assert full == means
    hollow = [line for line in lines if line.get_markerfacecolor() == "none"]
    assert [line.get_xdata()[0] for line in hollow] == [1.0]
    names = stability_dots(table(), "val").axes[0].get_yticklabels()
    assert [label.get_text() for label in names] == ["lime", "grad_cam"]
    low, high = ax.get_xlim()
    drawn = np.concatenate([np.atleast_1d(line.get_xdata()) for line in ax.get_lines()])
    assert low <= drawn.min()
    assert drawn.max() <= high


def test_a_rule_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        stability_dots(table(), "otsu")
