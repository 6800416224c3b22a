"""Scores of a few maps as one unit of work that needs no model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raybench.models.classifier import Classifier
from raybench.scoring.binarise import oriented
from raybench.scoring.cuts import Cut, Cutter, of_every_image
from raybench.scoring.metrics import SCORES, localisation_scores
from raybench.scoring.ranking import map_scores
from raybench.scoring.severity import SEVERITY, severity_scores
from raybench.scoring.thresholds import ThresholdRule
from raybench.studies.truths import Truth
from raybench.tracking.maps import values_of
from raybench.types import Arrays, Unit, Values

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
        cutter: how its masks are made.
        cuts: by rule, what every image is cut by.
    """

    title: str
    cutter: Cutter
    cuts: Mapping[ThresholdRule, Cut]

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
        if not pd.isna(each.row["error"]):
            lost = [{"threshold": of_every_image(cut)} for cut in self.cuts.values()]
            return [[scores.get(name, math.nan) for name in _COLUMNS] for scores in lost]
        values = values_of(each.row)
        # No threshold touches these, so every rule's row has the same.
        looked_at = oriented(values, self.cutter.sign)
        of_map = map_scores(looked_at, truth.infection, truth.lungs)
        found = []
        for cut in self.cuts.values():
            scores = self._cut(values, truth, cut) | of_map
            found.append([scores.get(name, math.nan) for name in _COLUMNS])
        return found

    def _cut(self, values: Values, truth: Truth, cut: Cut) -> dict[str, float]:
        threshold, salient = self.cutter.cut(values, cut, truth.place)
        overlap = localisation_scores(salient, truth.infection)
        severity = severity_scores(salient, truth.infection, truth.lungs)
        return {"threshold": threshold} | overlap | severity
