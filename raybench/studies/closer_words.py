"""What the closer looks found, in words, to be quoted as they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from raybench.config import SweepConfig
from raybench.studies.context import Winners
from raybench.studies.sentences import interval, leading


def closer_headlines(
    board: pd.DataFrame, config: SweepConfig, winners: Winners, whole: str
) -> list[str]:
    """A sentence for each of faithfulness, sanity and stability that was asked for.

    They are about the family that `sentences.headlines` speaks of.

    Args:
        board: the leaderboard with the columns of the closer looks.
        whole: the reference that calls the whole lung infected; empty: none.
    """
    own = leading(board, config, winners)
    if own.empty:
        return []
    family = board[
        (board.trial_id == own.trial_id.iloc[0])
        & (board.threshold_rule == own.threshold_rule.iloc[0])
    ]
    reference = family[family.explainer == whole]
    said = (*_faithful(own, reference), *_sane(own), *_stable(own))
    return [f"On Test ({own.backbone.iloc[0]}): {text}." for text in said]


def _faithful(own: pd.DataFrame, reference: pd.DataFrame) -> Iterator[str]:
    known = _known(own, "road_gap")
    if known.empty:
        return
    best = _at(known, int(known.road_gap.to_numpy().argmax()))
    beside = _known(reference, "road_gap")
    than = "" if beside.empty else f", the whole lung {_figure(_at(beside, 0), 'road_gap')}"
    yield (
        f"the model's answer follows the map of {best['explainer']} most (ROAD, LeRF less MoRF: "
        f"{_figure(best, 'road_gap')}{than})"
    )


def _sane(own: pd.DataFrame) -> Iterator[str]:
    known = _known(own, "sanity_rank")
    known = known[known.unmoved.notna()] if len(known) else known
    if known.empty:
        return
    flagged = known[known.unmoved.astype(bool)]
    for row in flagged.to_dict("records"):
        yield (
            f"{row['explainer']} shows much the same map whatever the model has learned: rank "
            f"correlation {_figure(row, 'sanity_rank')} with that of a randomised one"
        )
    if flagged.empty:
        most = _at(known, int(known.sanity_rank.to_numpy().argmax()))
        yield (
            "no explainer's map stays when the model is randomised: rank correlation at most "
            f"{_figure(most, 'sanity_rank')} ({most['explainer']})"
        )


def _stable(own: pd.DataFrame) -> Iterator[str]:
    known = _known(own, "noise_jaccard")
    if known.empty:
        return
    # Who is most alike is no praise: a mask of the whole image never changes.
    least = _at(known, int(known.noise_jaccard.to_numpy().argmin()))
    yield (
        f"over a little noise the masks of {least['explainer']} change most (Jaccard index "
        f"{_figure(least, 'noise_jaccard')})"
    )


def _known(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return rows[rows[column].notna()] if column in rows else rows.iloc[:0]


def _at(rows: pd.DataFrame, place: int) -> Mapping[Any, Any]:
    return rows.to_dict("records")[place]


def _figure(row: Mapping[Any, Any], column: str) -> str:
    ends = interval(float(row[f"{column}_low"]), float(row[f"{column}_high"]))
    return f"{float(row[column]):.2f} {ends}"
