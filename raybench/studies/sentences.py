"""Comparisons in words, to be quoted as they stand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from raybench.config import SweepConfig
from raybench.explain import GradCam, Lime
from raybench.explain.base import Explainer
from raybench.studies.context import Winners
from raybench.training.segment import SUPERVISED

NAMES = {"iou": "IoU", "dice": "Dice"}
"""Scores as they are written in words; others go by their columns."""


def sentence(
    row: Mapping[str, Any], above: Mapping[str, bool | None], corrected: str = "Holm"
) -> str:
    """One comparison: who, by how much, how sure, on what, and where both stand to the whole lung.

    Args:
        row: of `comparisons.csv`, the better mean first.
        above: whether each explainer is significantly better than the whole lung; None: it cannot
            be said, or it is the whole lung.
        corrected: how `p_holm` was corrected, as it is to be said.
    """
    ours, theirs = row["explainer"], row["other"]
    if not row["n"]:
        return f"{ours} and {theirs} have no image in common"
    name = NAMES.get(row["metric"], row["metric"])
    gap = f"{abs(row['difference']):.2f} {name} {interval(row['low'], row['high'])}"
    if row["significant"]:
        said = f"{ours} {'above' if row['difference'] > 0 else 'below'} {theirs} by {gap}"
    else:
        said = f"{ours} and {theirs} cannot be told apart: {gap}"
    parts = [f"{said}, {_p(row['p_holm'])} ({corrected}), {_counts(row)}"]
    told = {who: above.get(who) for who in (ours, theirs)}
    if None not in told.values():
        winners = [who for who, is_above in told.items() if is_above]
        subject = {0: "neither is", 1: f"only {''.join(winners)} is", 2: "both are"}[len(winners)]
        parts.append(f"{subject} above the whole lung")
    return "; ".join(parts)


def interval(low: float, high: float) -> str:
    return "[no interval]" if math.isnan(low + high) else f"[{low:.2f}, {high:.2f}]"


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _counts(row: Mapping[str, Any]) -> str:
    text = f"n = {row['n']} image{'s' * (row['n'] != 1)}"
    if row["unit"] == "patient":
        text += f" of {row['n_groups']} patient{'s' * (row['n_groups'] != 1)}"
    else:
        text += " (by image: patients are not known)"
    return text + (f", {row['n_left_out']} left out" if row["n_left_out"] else "")


def headlines(
    pairs: pd.DataFrame, board: pd.DataFrame, config: SweepConfig, winners: Winners, whole: str
) -> list[str]:
    """At most three sentences, of the family (classifier and rule) with the best explainer.

    The best explainer against the whole lung; LIME against Grad-CAM; the U-Net that learned from
    masks against the best explainer or, without one, the best explainer against the next best.
    """
    every = _every(config, winners)
    ranked = leading(board, config, winners)
    if ranked.empty:
        return []
    first = ranked.iloc[0]
    rule = first.threshold_rule
    family = pairs[
        (pairs.trial_id == first.trial_id)
        & (pairs.threshold_rule == rule)
        & (pairs.metric == "iou")
    ]
    titles = list(ranked.explainer)
    asked = [(titles[0], whole), (_titled(every, Lime), _titled(every, GradCam))]
    last = SUPERVISED if SUPERVISED in set(board.explainer) else "".join(titles[1:2])
    asked.append((titles[0], last))
    where = f"On Test ({first.backbone}, threshold {rule})"
    found = [text for a, b in asked for text in _of(family, a, b)]
    return [f"{where}: {text}." for text in dict.fromkeys(found)]


def leading(board: pd.DataFrame, config: SweepConfig, winners: Winners) -> pd.DataFrame:
    """The leaderboard's rows of what asks the model, in the family with the best of them, best
    first; of the sweep's main rule."""
    rule = config.scoring.main_rule
    models = {e.title for e in _every(config, winners) if e.uses_model}
    own = board[board.explainer.isin(models) & (board.threshold_rule == rule) & board.iou.notna()]
    ranked = own.sort_values("iou", ascending=False, kind="stable")
    return ranked if ranked.empty else ranked[ranked.trial_id == ranked.trial_id.iloc[0]]


def _every(config: SweepConfig, winners: Winners) -> list[Explainer]:
    return [*config.explain.explainers, *(w.explainer for ws in winners.values() for w in ws)]


def _titled(explainers: Sequence[Explainer], kind: type[Explainer]) -> str:
    """The first of a kind; empty where there is none."""
    return next((e.title for e in explainers if type(e) is kind), "")


def _of(family: pd.DataFrame, one: str, other: str) -> Iterator[str]:
    names = {one, other}
    hit = family[family.explainer.isin(names) & family.other.isin(names)]
    yield from hit.sentence
