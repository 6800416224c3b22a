"""The means of faithfulness figures with their intervals, and their place in the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from raybench.data.patients import patient_groups
from raybench.scoring.ranks import mean_intervals
from raybench.types import XrayRecord

KEY = ("backbone", "trial_id", "explainer")
FIGURES = ("deletion_auc", "insertion_auc", "morf_auc", "lerf_auc", "road_gap")
COLUMNS = (
    *KEY,
    *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")),
    *("n", "n_errors"),
)


def beside(board: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard with the figures behind its own columns, the same under every rule."""
    if board.empty or found.empty:
        return board
    return board.merge(found.drop(columns=["n", "n_errors"]), on=list(KEY), how="left")


def summary(per_image: pd.DataFrame, records: Sequence[XrayRecord], seed: int) -> pd.DataFrame:
    """Means with bootstrap intervals over patients, a row a model and explainer.

    Args:
        per_image: rows of `faithfulness.parquet`.
        records: the explained images of Test.

    Returns:
        Columns as in `COLUMNS`; without a good map the figures are NaN.
    """
    numbers = patient_groups(records).tolist()
    patients = {r.image_id: number for r, number in zip(records, numbers, strict=True)}
    rows = []
    for key, part in per_image.groupby(list(KEY), sort=False):
        good = part[part.error.isna()]
        row: dict[str, Any] = dict(zip(KEY, key, strict=True))
        row |= {"n": len(good), "n_errors": len(part) - len(good)}
        if len(good):
            values = good[list(FIGURES)].to_numpy(np.float64)
            groups = np.array([patients[i] for i in good.image_id], np.int64)
            ends = mean_intervals(values, groups, seed=seed)
            for k, name in enumerate(FIGURES):
                row |= {
                    name: float(values[:, k].mean()),
                    f"{name}_low": ends.low[k],
                    f"{name}_high": ends.high[k],
                }
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))
