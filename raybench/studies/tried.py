"""The trials of one study of the search over settings: kept as rows, compared as curves."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from raybench.explain.spaces import Space
from raybench.scoring.binarise import CANDIDATES
from raybench.scoring.selection import Floats, best_thresholds, left_out_score, on_front, winner
from raybench.studies.judging_settings import Judge, Judgement
from raybench.studies.proposals import Proposal

Row = Mapping[str, Any]


def make_row(number: int, proposal: Proposal, judge: Judge) -> dict[str, Any]:
    """A trial as it is kept: its curves as float64 bytes `[N, C]`, empty where there are none."""
    row = {
        "number": number,
        "parameters": json.dumps(dict(proposal.parameters)),
        "n_forward": float("nan"),
        "seconds": 0.0,
        "curves": b"",
        "error": proposal.error,
    }
    if proposal.candidate is not None:
        judged = judge.judge(proposal.candidate)
        row |= {
            "n_forward": judged.n_forward,
            "seconds": judged.seconds,
            "curves": np.ascontiguousarray(judged.curves, dtype="<f8").tobytes(),
            "error": judged.error,
        }
    return row


def is_failed(row: Row) -> bool:
    """Whether a trial was judged and failed on an image: refused settings were not judged."""
    return isinstance(row["error"], str) and len(row["curves"]) > 0


def judgement_of(row: Row) -> Judgement:
    """What a row says, as it was judged."""
    curves = np.frombuffer(row["curves"], dtype="<f8").reshape(-1, len(CANDIDATES))
    error = row["error"] if isinstance(row["error"], str) else None
    return Judgement(curves, float(row["n_forward"]), float(row["seconds"]), error)


class Tried:
    """Trials of one study in order, the explainer's own settings first.

    They are compared on the images that these can explain; settings that fail on one of them have
    failed, so that no two are ever compared on different images.

    Attributes:
        rows: as `make_row` has them.
        images: bool `[N]`, the Val images that they are compared on.
        scores: mean IoU of each on Val, by its own threshold rule; NaN where it failed.
    """

    def __init__(self, rows: Sequence[Row] = ()) -> None:
        self.rows: list[Row] = []
        self.scores: list[float] = []
        self._curves: list[Floats] = []
        self._places: list[int] = []
        self.images = np.zeros(0, bool)
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """The next trial."""
        curves = judgement_of(row).curves
        if not self.rows:
            self.images = np.isfinite(curves[:, 0])
        shape = (np.count_nonzero(self.images), len(CANDIDATES))
        found = curves[self.images] if len(curves) else np.full(shape, np.nan)
        means = found.mean(axis=0) if len(found) else np.full(len(CANDIDATES), np.nan)
        place = int(best_thresholds(means))
        self.rows.append(row)
        self.scores.append(float("nan") if np.isnan(means).any() else float(means[place]))
        self._curves.append(found)
        self._places.append(place)

    def values(self, number: int) -> tuple[float, float] | None:
        """Mean IoU and forward passes an image of one trial; None where it failed."""
        score = self.scores[number]
        return None if np.isnan(score) else (score, float(self.rows[number]["n_forward"]))

    @property
    def winner(self) -> int | None:
        """The trial that wins; None where all failed."""
        good = self._good()
        return int(good[winner(self._of(good), self._passes(good))]) if len(good) else None

    def left_out(self, groups: Sequence[Hashable]) -> float:
        """See `selection.left_out_score`; `groups` of all Val images."""
        good = self._good()
        if not len(good):
            return float("nan")
        there = [
            group for group, is_there in zip(groups, self.images.tolist(), strict=True) if is_there
        ]
        return left_out_score(np.stack([self._curves[n] for n in good]), self._passes(good), there)

    def table(self, space: Space, groups: Sequence[Hashable]) -> pd.DataFrame:
        """A row a trial, with the threshold that its score was reached at.

        `on_front`: no other trial scores as high with fewer passes, or higher with as many.
        """
        chosen, everything = self.winner, range(len(self.rows))
        front = on_front(self._of(everything), self._passes(everything))
        found = []
        for number, row in enumerate(self.rows):
            threshold = float("nan")
            if self.values(number) is not None:
                candidate = space.resolve(json.loads(row["parameters"]))
                is_fixed = candidate.rule == "fixed"
                own, best = candidate.explainer.threshold, CANDIDATES[self._places[number]]
                threshold = own if is_fixed else best
            found.append(
                {
                    "number": number,
                    "parameters": row["parameters"],
                    "threshold": threshold,
                    "val_iou": self.scores[number],
                    "val_iou_cv": self.left_out(groups) if number == chosen else float("nan"),
                    "n_forward": row["n_forward"],
                    "seconds": row["seconds"] / len(groups),
                    "on_front": bool(front[number]),
                    "winner": number == chosen,
                    "error": row["error"],
                }
            )
        return pd.DataFrame(found)

    def _good(self) -> Any:
        return np.flatnonzero(~np.isnan(self.scores))

    def _of(self, numbers: Iterable[int]) -> Floats:
        return np.array([self.scores[n] for n in numbers])

    def _passes(self, numbers: Iterable[int]) -> Floats:
        return np.array([float(self.rows[n]["n_forward"]) for n in numbers])
