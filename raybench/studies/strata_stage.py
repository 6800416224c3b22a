"""Localisation by kind of image: large and small lesions, sure and unsure, right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from raybench.data.patients import patient_groups
from raybench.scoring.ranks import mean_intervals
from raybench.scoring.strata import Lesions, confidence_of, number_of, size_of, terciles
from raybench.studies.context import Context
from raybench.studies.truths import load_truths

FACTS = ("lesion_size", "n_lesions", "confidence", "prediction")
"""What images are sorted by, one at a time."""

SCORES = ("iou", "dice")

COLUMNS = (
    *("backbone", "trial_id", "explainer", "threshold_rule", "fact", "stratum", "n"),
    *(f"{score}{end}" for score in SCORES for end in ("", "_low", "_high")),
)


def strata(scores: pd.DataFrame, best: Sequence[str], context: Context) -> pd.DataFrame:
    """Means over strata of the Test images, and write `strata.csv`.

    Lesion sizes are thirds of Val's images by drawn area, so Test decides nothing, and thirds of
    Test can be of unequal size. Confidence is the probability of the predicted class.

    Args:
        scores: the table of `score_stage.score`.
        best: trials, one a backbone.
    """
    records = context.explained["Test"]
    facts = _facts(context)
    patients = dict(
        zip([r.image_id for r in records], patient_groups(records).tolist(), strict=True)
    )
    test = scores[(scores.split == "Test") & scores.trial_id.isin(list(best)) & scores.error.isna()]
    found = by_strata(test, facts, patients, context.config.seed)
    context.run.write_csv("strata.csv", found)
    return found


def by_strata(
    scores: pd.DataFrame, facts: pd.DataFrame, patients: dict[str, int], seed: int = 0
) -> pd.DataFrame:
    """A row an explainer, rule, fact and stratum: means with bootstrap intervals by patient.

    Args:
        scores: rows of `scores.parquet` without errors.
        facts: `trial_id`, `image_id` and `FACTS`, the name of the stratum each; an image whose
            fact is missing is in none of its strata.
        patients: a number for each image.

    Returns:
        Columns as in `COLUMNS`. Strata without an image have no row; with images of one patient
        alone they have no interval.
    """
    # Images come in the order that they were explained in, which differs from run to run.
    ordered = scores.sort_values("image_id", kind="stable")
    joined = ordered.merge(facts, on=["trial_id", "image_id"], how="left")
    keys = ["backbone", "trial_id", "explainer", "threshold_rule"]
    rows: list[dict[str, Any]] = []
    for fact in FACTS:
        for key, part in joined.groupby([*keys, fact], sort=False):
            values = part[list(SCORES)].to_numpy(np.float64)
            groups = np.array([patients[i] for i in part.image_id], np.int64)
            ends = mean_intervals(values, groups, seed=seed)
            row: dict[str, Any] = dict(zip([*keys, "stratum"], key, strict=True))
            row |= {"fact": fact, "n": len(part)}
            for k, score in enumerate(SCORES):
                means = {"": float(values[:, k].mean()), "_low": ends.low[k], "_high": ends.high[k]}
                row |= {f"{score}{end}": value for end, value in means.items()}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _facts(context: Context) -> pd.DataFrame:
    """Of every explained Test image and trial, as far as it is known."""
    val = load_truths(context, ["Val"]).values()
    drawn = {i: Lesions.of(t.infection) for i, t in load_truths(context, ["Test"]).items()}
    cuts = terciles([Lesions.of(t.infection).area for t in val]) if val else None
    table = "predictions" if context.other is None else "predictions_explained"
    answers = context.run.read(table)
    answers = answers[(answers.split == "Test") & answers.image_id.isin(list(drawn))]
    probabilities = answers[[f"p_{name}" for name in context.dataset.classes]].max(axis=1)
    lesions = [drawn[i] for i in answers.image_id]
    is_right = answers.predicted == answers.label
    return pd.DataFrame(
        {
            "trial_id": answers.trial_id,
            "image_id": answers.image_id,
            "lesion_size": [None if cuts is None else size_of(x.area, cuts) for x in lesions],
            "n_lesions": [number_of(x.number) for x in lesions],
            "confidence": [confidence_of(float(p)) for p in probabilities],
            "prediction": np.where(is_right, "right", "wrong"),
        }
    )
