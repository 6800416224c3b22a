"""How alike maps stay as models are randomised: means, intervals, and who is unmoved."""

from __future__ import annotations

import itertools
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
    explainers: Mapping[tuple[str, str], Mapping[str, bool]],
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
        explainers: by backbone and trial, their titles, and whether each asks the model.
        records: the explained images of Test.
        seed: of the intervals.
        learned: by trial, the share of permuted labels that its counterpart learned: in the rows
            of `labels`.

    Returns:
        Columns as in `COLUMNS`.
    """
    found: list[dict[str, Any]] = []
    for (backbone, trial_id), titles in explainers.items():
        own = rows[rows.trial_id == trial_id]
        depths = [*map(str, settings.depths), *([LABELS] if trial_id in learned else [])]
        for title, depth in itertools.product(titles, depths):
            row: dict[str, Any] = {"backbone": backbone, "trial_id": trial_id, "explainer": title}
            row |= {"depth": depth, "by_construction": not titles[title]}
            row |= {"learned": learned[trial_id] if depth == LABELS else None}
            part = own[(own.explainer == title) & (own.depth == depth)]
            row |= means(part, FIGURES, records, seed) if titles[title] else _ALIKE
            low = float(row.get("rank_low", math.nan))
            told = depth == "full" and not math.isnan(low)
            found.append(row | {"unmoved": low > settings.unmoved_above if told else None})
    return pd.DataFrame(found, columns=list(COLUMNS))


_ALIKE: dict[str, Any] = {"n": 0, "n_errors": 0} | {
    f"{name}{end}": 1.0 for name in FIGURES for end in ("", "_low", "_high")
}


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
