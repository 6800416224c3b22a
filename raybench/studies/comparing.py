"""Who is better than whom on Test: paired comparisons, ranks, and intervals of the leaderboard.

Explainers are compared within a family: one classifier and threshold rule, on the same images. The
U-Net that learned from masks stands in every family with its rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.data.patients import patient_groups
from raybench.explain import WholeLung
from raybench.scoring.metrics import SCORES
from raybench.scoring.paired import ALPHA, all_pairs, holm
from raybench.scoring.ranks import mean_intervals, rank_intervals
from raybench.studies.context import Context
from raybench.studies.sentences import sentence
from raybench.studies.supervised_stage import Supervised

COMPARED = ("iou", "dice")
"""Scores that explainers are compared by; ranks and `above_whole_lung` go by the first."""

COLUMNS = (
    *("backbone", "trial_id", "threshold_rule", "metric", "explainer", "other", "difference"),
    *("low", "high", "p", "p_holm", "significant", "rank_biserial", "dz", "n", "n_left_out"),
    *("n_groups", "unit", "n_needed", "sentence"),
)
KEY = ["backbone", "trial_id", "explainer", "threshold_rule"]


@dataclass(frozen=True)
class _Family:
    """The scores of one classifier's explainers under one threshold rule.

    Attributes:
        key: backbone, trial and rule.
        scores: rows of `scores.parquet`.
        images: ids of the explained Test images.
        patients: a number for each image.
        unit: what a number stands for, `patient`, or `image` where no patient is known.
    """

    key: tuple[str, str, str]
    scores: pd.DataFrame
    images: list[str]
    patients: NDArray[np.int64]
    unit: str

    @cached_property
    def explainers(self) -> list[str]:
        """In the order of the scores."""
        return list(dict.fromkeys(self.scores.explainer))

    def values(self, metric: str) -> NDArray[np.float64]:
        """A column an explainer, a row an image, NaN where there is no figure."""
        wide = self.scores.pivot(index="image_id", columns="explainer", values=metric)
        return wide.reindex(index=self.images, columns=self.explainers).to_numpy(np.float64)


@dataclass(frozen=True)
class Comparisons:
    """What is found.

    Attributes:
        pairs: a row a pair, columns as in `COLUMNS`, the better mean first.
        beside: what the leaderboard gets: its `KEY`, and the columns that are joined to it.
        whole: the whole lung's title; empty where it is not among the explainers.
    """

    pairs: pd.DataFrame
    beside: pd.DataFrame
    whole: str

    def join(self, board: pd.DataFrame) -> pd.DataFrame:
        """The leaderboard with intervals, ranks and `above_whole_lung` behind its own columns."""
        return board if board.empty else board.merge(self.beside, on=KEY, how="left")


def compare(
    scores: pd.DataFrame,
    best: Sequence[str],
    context: Context,
    supervised: Supervised | None = None,
) -> Comparisons:
    """Compare all explainers of each backbone's best trial on Test, and write `comparisons.csv`.

    Args:
        scores: the table of `score_stage.score`.
        best: trials, one a backbone.
        supervised: the U-Net, which has rows of its own.
    """
    whole = next(
        (e.title for e in context.config.explain.explainers if isinstance(e, WholeLung)), None
    )
    seed = context.config.seed
    rows: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    for family in _families(scores, best, context, supervised):
        pairs = [row for metric in COMPARED for row in _pairs(family, metric, whole, seed)]
        rows += pairs
        beside += _beside(family, pairs, whole, seed)
    found = pd.DataFrame(rows, columns=list(COLUMNS))
    context.run.write_csv("comparisons.csv", found)
    # The U-Net stands in every family: its own row is that of the first.
    joined = pd.DataFrame(beside, columns=None if beside else KEY).drop_duplicates(KEY)
    return Comparisons(found, joined, whole or "")


def _families(
    scores: pd.DataFrame, best: Sequence[str], context: Context, supervised: Supervised | None
) -> Iterator[_Family]:
    records = context.explained["Test"]
    images, patients = [r.image_id for r in records], patient_groups(records)
    unit = "patient" if any(r.patient is not None for r in records) else "image"
    test = scores[scores.split == "Test"]
    learned = test.trial_id == (None if supervised is None else supervised.trial_id)
    of_best = test[test.trial_id.isin(list(best)) & ~learned]
    for keys, own in of_best.groupby(["backbone", "trial_id", "threshold_rule"], sort=False):
        backbone, trial_id, rule = map(str, keys)
        beside = test[learned & (test.threshold_rule == rule)]
        both = pd.concat([own, beside]) if len(beside) else own
        yield _Family((backbone, trial_id, rule), both, images, patients, unit)


def _pairs(family: _Family, metric: str, whole: str | None, seed: int) -> list[dict[str, Any]]:
    """A row a pair; p values are corrected for all pairs of this family and metric."""
    better = SCORES[metric].higher_is_better
    rows = []
    scores = family.values(metric)
    for i, j, one in all_pairs(scores, family.patients, seed=seed):
        found = asdict(one)
        if (one.difference < 0) if better else (one.difference > 0):
            i, j = j, i
            found |= {
                "difference": -one.difference,
                "low": -one.high,
                "high": -one.low,
                "rank_biserial": -one.rank_biserial,
                "dz": -one.dz,
            }
        names = {"explainer": family.explainers[i], "other": family.explainers[j]}
        of = dict(zip(("backbone", "trial_id", "threshold_rule"), family.key, strict=True))
        rows.append(of | {"metric": metric, "unit": family.unit} | names | found)
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        # Means of images and ranks of patients can disagree; then neither is the better.
        agree = row["difference"] * row["rank_biserial"] > 0
        row |= {"p_holm": float(p), "significant": bool(p < ALPHA and agree)}
    above = _above(rows, family.explainers, whole)
    return [row | {"sentence": sentence(row, above)} for row in rows]


def _above(
    rows: Sequence[dict[str, Any]], explainers: Sequence[str], whole: str | None
) -> dict[str, bool | None]:
    """Whether each explainer is significantly better than the whole lung; None: it cannot be said.

    Args:
        rows: of one family and metric, the better mean first.
    """
    found: dict[str, bool | None] = dict.fromkeys(explainers)
    for row in rows:
        if whole in (row["explainer"], row["other"]) and not math.isnan(row["p_holm"]):
            explainer = row["other"] if row["explainer"] == whole else row["explainer"]
            found[explainer] = row["significant"] and row["other"] == whole
    return found


def _beside(
    family: _Family, pairs: Sequence[dict[str, Any]], whole: str | None, seed: int
) -> Iterator[dict[str, Any]]:
    """What the leaderboard's rows of a family get."""
    names = tuple(SCORES)
    every = np.hstack([family.values(name) for name in names])
    ends = mean_intervals(every, family.patients, seed=seed)
    low, high = (e.reshape(len(names), -1) for e in (ends.low, ends.high))
    by = COMPARED[0]
    ranks = rank_intervals(
        family.values(by), family.patients, SCORES[by].higher_is_better, seed=seed
    )
    above = _above([row for row in pairs if row["metric"] == by], family.explainers, whole)
    trials = family.scores.drop_duplicates("explainer")[["explainer", "backbone", "trial_id"]]
    whose = {row["explainer"]: row for row in trials.to_dict("records")}
    for i, explainer in enumerate(family.explainers):
        told = {True: "yes", False: "no", None: "n.a."}[above[explainer]]
        row: dict[str, Any] = {"explainer": explainer, "threshold_rule": family.key[2]}
        row |= {str(name): value for name, value in whose[explainer].items()}
        for k, name in enumerate(names):
            row |= {f"{name}_low": low[k, i], f"{name}_high": high[k, i]}
        own = (ranks.rank[i], ranks.low[i], ranks.high[i])
        row |= dict(zip((f"{by}_rank", f"{by}_rank_low", f"{by}_rank_high"), own, strict=True))
        yield row | {"above_whole_lung": told}
