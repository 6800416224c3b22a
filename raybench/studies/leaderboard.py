"""The leaderboard: means over Test of each backbone's best trial, and of the references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raybench.data.patients import patient_groups
from raybench.scoring.metrics import SCORES
from raybench.scoring.severity import severity_summary
from raybench.scoring.thresholds import OF_EACH_IMAGE
from raybench.studies.context import Context
from raybench.studies.lungs_stage import n_predicted
from raybench.studies.supervised_stage import Supervised


def leaderboard(
    scores: pd.DataFrame,
    best: Sequence[str],
    context: Context,
    supervised: Supervised | None = None,
) -> pd.DataFrame:
    """Means over the Test images of each backbone's best trial, a row an explainer and rule.

    Images with an error are counted in `n_errors` and left out; an undefined Hausdorff distance
    (an empty mask) is left out of its mean alone, as in the study, and counted in `n_empty`; so is
    any other score that an image leaves undefined, of its own mean. The
    severity's error has a bootstrap interval by patient; images without a lung mask are left out
    of it (`severity_n`), and `n_lungs_predicted` counts the masks that were predicted (`lungs`).

    `threshold` is the mean over images where a rule gives each image its own.

    Args:
        best: trials, one a backbone.
        supervised: the U-Net, which has rows of its own.
    """
    trials = [*best, *([] if supervised is None else [supervised.trial_id])]
    part = scores[(scores.split == "Test") & scores.trial_id.isin(trials)]
    records = context.explained["Test"]
    numbers = patient_groups(records).tolist()
    patients = {r.image_id: number for r, number in zip(records, numbers, strict=True)}
    rows = []
    keys = ["backbone", "trial_id", "explainer", "threshold_rule"]
    for key, group in part.groupby(keys, sort=False):
        good = group[group.error.isna()]
        row = dict(zip(keys, key, strict=True)) | {"n": len(good)}
        row |= {name: good[name].mean() for name in SCORES}
        row |= severity_summary(
            good.severity.to_numpy(),
            good.severity_truth.to_numpy(),
            np.array([patients[i] for i in good.image_id], np.int64),
            seed=context.config.seed,
        )
        row |= {
            "threshold": _threshold(group),
            "n_errors": len(group) - len(good),
            "n_empty": int(good.hausdorff.isna().sum()),
            "n_lungs_predicted": n_predicted(records),
            "seconds": good.seconds.mean(),
            "n_forward": good.n_forward.mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _threshold(group: pd.DataFrame) -> float:
    by_image = group.threshold_rule.iloc[0] in OF_EACH_IMAGE
    return float(group.threshold.mean() if by_image else group.threshold.iloc[0])
