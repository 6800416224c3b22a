"""Scores of a few maps as one unit of work that needs no model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raybench.models.classifier import Classifier
from raybench.scoring.binarise import binarise, oriented
from raybench.scoring.metrics import SCORES, localisation_scores
from raybench.scoring.ranking import map_scores
from raybench.scoring.severity import SEVERITY, severity_scores
from raybench.scoring.thresholds import Shares, ThresholdRule, area_threshold, otsu
from raybench.studies.truths import Truth
from raybench.tracking.maps import values_of
from raybench.types import Arrays, Sign, Unit, Values

AT_ONCE = 8
"""Maps in a unit: seconds of work, and a few megabytes to be shipped."""

_COLUMNS = ("threshold", *SCORES, *SEVERITY)


@dataclass(frozen=True, slots=True)
class ToScore:
    """One row of a table of maps, and what it is held against."""

    row: Mapping[Hashable, Any]
    truth: Truth


@dataclass(frozen=True)
class ScoreMaps:
    """Cuts maps by every rule and scores the masks, and the maps as they are.

    Attributes:
        title: of the explainer.
        sign, clip_to_lungs, median_filter, stretch: how `binarise` makes its masks.
        cuts: by rule, the threshold of every image; None: Otsu's of each; `Shares`: the one that
            covers so much of each.
    """

    title: str
    sign: Sign
    clip_to_lungs: bool
    median_filter: int
    stretch: bool
    cuts: Mapping[ThresholdRule, float | Shares | None]

    def plan(self, subject: Sequence[ToScore], done: Mapping[str, Arrays], /) -> list[Unit]:
        """All of them at once."""
        return [] if done else [Unit("scores", {"maps": subject}, needs_model=False)]

    def run(self, unit: Unit, classifier: Classifier | None, /) -> Arrays:
        """Scores float64 `[maps x rules, columns]`; NaN where a map failed."""
        rows = [scores for each in unit.payload["maps"] for scores in self._of(each)]
        return {"scores": np.array(rows, np.float64).reshape(-1, len(_COLUMNS))}

    def merge(
        self, subject: Sequence[ToScore], done: Mapping[str, Arrays], /
    ) -> list[dict[str, Any]]:
        """A row a map and rule, in their order."""
        scores = iter(done["scores"]["scores"])
        return [
            {
                "image_id": each.row["image_id"],
                "split": each.row["split"],
                "label": each.truth.label,
                "explainer": self.title,
                "threshold_rule": rule,
                "seconds": each.row["seconds"],
                "n_forward": each.row["n_forward"],
                "error": each.row["error"],
                **dict(zip(_COLUMNS, map(float, next(scores)), strict=True)),
            }
            for each in subject
            for rule in self.cuts
        ]

    def _of(self, each: ToScore) -> list[list[float]]:
        truth = each.truth
        failed = not pd.isna(each.row["error"])
        values = None if failed else oriented(values_of(each.row), self.sign)
        # No threshold touches these, so every rule's row has the same.
        of_map = {} if values is None else map_scores(values, truth.infection, truth.lungs)
        found = []
        for cut in self.cuts.values():
            threshold = cut if isinstance(cut, float) else self._threshold(values, truth, cut)
            scores = {"threshold": threshold} | of_map
            if values is not None:
                scores |= self._cut(values, truth, threshold)
            found.append([scores.get(name, math.nan) for name in _COLUMNS])
        return found

    def _threshold(self, values: Values | None, truth: Truth, shares: Shares | None) -> float:
        """Of one image alone; NaN where its map failed."""
        if values is None:
            return math.nan
        if shares is None:
            return otsu(values, self.stretch)
        return area_threshold(values, shares, truth.lungs, self.clip_to_lungs, self.stretch)

    def _cut(self, values: Values, truth: Truth, threshold: float) -> dict[str, float]:
        clip = truth.lungs if self.clip_to_lungs else None
        salient = binarise(values, threshold, clip, self.median_filter, self.stretch)
        return localisation_scores(salient, truth.infection) | severity_scores(
            salient, truth.infection, truth.lungs
        )
