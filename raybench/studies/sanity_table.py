"""How alike maps stay as models are randomised: means, intervals, and who is unmoved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raybench.config_sanity import Sanity
from raybench.data.patients import patient_groups
from raybench.scoring.ranks import mean_intervals
from raybench.types import XrayRecord

KEY = ("backbone", "trial_id", "explainer")
FIGURES = ("rank", "rank_of_sizes", "ssim")
LABELS = "labels"
"""Stands for a depth where the model was trained on permuted labels."""
COLUMNS = (
    *(*KEY, "depth"),
    *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")),
    *("n", "n_errors", "unmoved", "by_construction", "learned"),
)


def summary(
    rows: pd.DataFrame,
    settings: Sanity,
    blind: Mapping[tuple[str, str], Sequence[str]],
    records: Sequence[XrayRecord],
    seed: int,
    learned: Mapping[str, float],
) -> pd.DataFrame:
    """Means with 95% bootstrap intervals over patients, a row a model, explainer and depth.

    `unmoved` stands in the row of the depth `full`: whether the lower end of the interval of `rank`
    lies above `settings.unmoved_above`; empty where there is no interval (fewer than two patients).
    An explainer that asks no model is unmoved by construction, with 1 throughout.

    Args:
        rows: of `sanity.parquet`.
        blind: by backbone and trial, the explainers that ask no model.
        records: the explained images of Test.
        seed: of the intervals.
        learned: by trial, the share of permuted labels that its counterpart learned: in the rows
            of `labels`.

    Returns:
        Columns as in `COLUMNS`.
    """
    found = []
    for (backbone, trial_id), titles in blind.items():
        own = rows[rows.trial_id == trial_id]
        for (title, depth), part in own.groupby(["explainer", "depth"], sort=False):
            row = dict(zip((*KEY, "depth"), (backbone, trial_id, title, depth), strict=True))
            of = means(part, FIGURES, records, seed)
            low = float(of.get("rank_low", math.nan))
            known = depth == "full" and not math.isnan(low)
            flag = {"unmoved": low > settings.unmoved_above if known else None}
            fit = learned.get(trial_id) if depth == LABELS else None
            found.append(row | of | flag | {"by_construction": False, "learned": fit})
        for title in titles:
            depths = [*map(str, settings.depths), *([LABELS] if trial_id in learned else [])]
            for depth in depths:
                one = {"backbone": backbone, "trial_id": trial_id, "explainer": title}
                alike = {f"{name}{end}": 1.0 for name in FIGURES for end in ("", "_low", "_high")}
                flag = {"unmoved": True if depth == "full" else None, "by_construction": True}
                found.append(one | {"depth": depth, "n": 0, "n_errors": 0} | alike | flag)
    return pd.DataFrame(found, columns=list(COLUMNS))


def means(
    part: pd.DataFrame, figures: Sequence[str], records: Sequence[XrayRecord], seed: int
) -> dict[str, Any]:
    """Means of columns over rows without error, their intervals by patient, and what is counted.

    Args:
        part: `image_id`, `error` and the figures, several rows an image maybe.
        figures: columns that are defined in every row without error.
        records: the explained images, which say whose each is.

    Returns:
        `<figure>`, `<figure>_low`, `<figure>_high` (none of them without a good row), `n` rows and
        `n_errors`.
    """
    good = part[part.error.isna()]
    row: dict[str, Any] = {"n": len(good), "n_errors": len(part) - len(good)}
    if good.empty:
        return row
    numbers = patient_groups(records).tolist()
    patients = {r.image_id: number for r, number in zip(records, numbers, strict=True)}
    groups = np.array([patients[i] for i in good.image_id], np.int64)
    ends = mean_intervals(good[list(figures)].to_numpy(np.float64), groups, seed=seed)
    for k, name in enumerate(figures):
        row |= {name: float(good[name].mean())}
        row |= {f"{name}_low": ends.low[k], f"{name}_high": ends.high[k]}
    return row


def with_sanity(board: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard with `unmoved` and the mean rank correlation at full depth (`sanity_rank`).

    What was not asked (the ensemble, the supervised U-Net) has neither.
    """
    if board.empty or found.empty:
        return board
    full = found[found.depth == "full"]
    named = {f"rank{end}": f"sanity_rank{end}" for end in ("", "_low", "_high")}
    kept = full[[*KEY, "unmoved", *named]].rename(columns=named)
    return board.merge(kept, on=list(KEY), how="left")
