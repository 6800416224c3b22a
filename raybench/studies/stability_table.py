"""How alike an explainer's maps of one image are: means, intervals, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raybench.studies.sanity_table import KEY, means
from raybench.types import XrayRecord

SEEDS, NOISE = "seeds", "noise"
FIGURES = ("jaccard", "rank")
COLUMNS = (
    *(*KEY, "over", "threshold_rule"),
    *(f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")),
    *("n", "n_errors", "n_class_changed", "by_construction"),
)


def jaccard(rule: str) -> str:
    """The column of `stability.parquet` that holds the masks' agreement under a rule."""
    return f"jaccard_{rule}"


def summary(
    rows: pd.DataFrame,
    cuts: Mapping[tuple[str, str, str], float],
    asked: Mapping[tuple[str, str], Mapping[str, bool]],
    left_out: Mapping[str, int],
    records: Sequence[XrayRecord],
    seed: int,
) -> pd.DataFrame:
    """Means with 95% bootstrap intervals over patients, a row a model, explainer, change and rule.

    Over seeds an explainer without one is 1 by construction, and was not asked.

    Args:
        rows: of `stability.parquet`.
        cuts: names trial, explainer and rule of all that is scored.
        asked: by backbone and trial, the explainers, and whether each has a seed.
        left_out: of each trial, pairs of image and noise with another predicted class.
        records: the explained images of Test.
        seed: of the intervals.

    Returns:
        Columns as in `COLUMNS`.
    """
    found: list[dict[str, Any]] = []
    for (backbone, trial_id), explainers in asked.items():
        for title, has_seed in explainers.items():
            own = rows[(rows.trial_id == trial_id) & (rows.explainer == title)]
            rules = [rule for t, e, rule in cuts if (t, e) == (trial_id, title)]
            for over in (SEEDS, NOISE):
                part = own[own.change == over]
                n_changed = left_out[trial_id] if over == NOISE else 0
                for rule in rules:
                    named = (backbone, trial_id, title, over, rule)
                    row: dict[str, Any] = dict(zip(COLUMNS[:5], named, strict=True))
                    fixed = over == SEEDS and not has_seed
                    row |= _always() if fixed else _means(part, rule, records, seed)
                    row |= {"n_class_changed": n_changed, "by_construction": fixed}
                    found.append(row)
    return pd.DataFrame(found, columns=list(COLUMNS))


def _means(
    part: pd.DataFrame, rule: str, records: Sequence[XrayRecord], seed: int
) -> dict[str, Any]:
    plain = part[["image_id", "error", "rank", jaccard(rule)]]
    return means(plain.rename(columns={jaccard(rule): "jaccard"}), FIGURES, records, seed)


def _always() -> dict[str, Any]:
    ends = {f"{name}{end}": 1.0 for name in FIGURES for end in ("", "_low", "_high")}
    return ends | {"n": 0, "n_errors": 0}


def with_stability(board: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The leaderboard with the Jaccard index over seeds and over noise, of the same rule's masks.

    Columns `seeds_jaccard` and `noise_jaccard` with the ends of their intervals; empty for what was
    not asked.
    """
    if board.empty or found.empty:
        return board
    keys = [*KEY, "threshold_rule"]
    for over in (SEEDS, NOISE):
        named = {f"jaccard{end}": f"{over}_jaccard{end}" for end in ("", "_low", "_high")}
        part = found[found.over == over][[*keys, *named]].rename(columns=named)
        board = board.merge(part, on=keys, how="left")
    return board
