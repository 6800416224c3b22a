"""Names and values of the metrics that MLflow shows, computed from a run folder's tables.

A name holds a group before the slash, by which the MLflow UI gathers its charts:

- `train_loss`, `val_accuracy`, ...: curves over epochs (step: epoch, 0-based over all phases)
- `classification/<column>`: `val_*` and `test_*` of trials.csv, figures of the checkpoint, and for
  the best trials the ends of their intervals (`classification/test_accuracy_low`, `_high`)
- `search/val_localisation`: what a search for accuracy and localisation saw of a trial
- `<metric>_<split>/<explainer>.<threshold rule>`: means over images of scores.parquet
- `seconds_per_image/<explainer>`, `n_forward_per_image/<explainer>`: what an explanation costs
- `tuned_val_iou/<explainer>`, `tuned_val_iou_cv/<explainer>`: of the settings that a search found
- `<column>/<backbone>.<explainer>.<threshold rule>`: the sweep's, from leaderboard.csv
- `stage_seconds/<stage>`: the sweep's

Values that are not finite are left out: a chart cannot show them.
"""

from __future__ import annotations

import hashlib
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

_KEYS = {
    *("trial_id", "backbone", "image_id", "split", "label", "predicted", "explainer"),
    *("threshold_rule", "threshold", "seconds", "n_forward", "error"),
}
_MAX_NAME = 250
_LOCALISATION = "val_localisation"


def metric_name(*parts: object) -> str:
    """Parts joined by "/", in the characters and the length that MLflow allows.

    Two long names that begin alike stay two: what is cut off is replaced by its digest.
    """
    name = "/".join(name_part(part) for part in parts)
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def name_part(value: object) -> str:
    """One part of a name, in allowed characters."""
    # Without a slash, and never "." or "..": MLflow takes names for paths.
    text = re.sub(r"[^A-Za-z0-9_.\- ]", "_", str(value)).strip()
    return text if text.strip(".") else "_" * max(1, len(text))


def classification(row: Mapping[str, Any]) -> dict[str, float]:
    """The numeric figures of one row of trials.csv."""
    columns = [column for column in row if column.startswith(("val_", "test_"))]
    group = {_LOCALISATION: "search"}
    return finite({metric_name(group.get(c, "classification"), c): row[c] for c in columns})


def means(scores: pd.DataFrame) -> dict[str, float]:
    """Means over images without error, for each split, explainer and threshold rule; and cost.

    A score that is undefined for an image (the Hausdorff distance of an empty mask) is left out of
    its mean.
    """
    if "error" in scores:
        scores = scores[scores["error"].isna() | (scores["error"].astype(str) == "")]
    numeric = scores.select_dtypes(include=["number", "bool"]).columns
    metrics = [column for column in numeric if column not in _KEYS]
    found: dict[str, float] = {}
    for (split, explainer, rule), rows in scores.groupby(["split", "explainer", "threshold_rule"]):
        for metric in metrics:
            name = metric_name(f"{metric}_{str(split).lower()}", f"{explainer}.{rule}")
            found[name] = float(rows[metric].mean())
    # One explanation serves all threshold rules: it was paid for once.
    once = scores.drop_duplicates(["split", "image_id", "explainer"])
    for explainer, rows in once.groupby("explainer"):
        for column in ("seconds", "n_forward"):
            if column in numeric:
                found[metric_name(f"{column}_per_image", explainer)] = float(rows[column].mean())
    return found


def leaderboard(table: pd.DataFrame) -> dict[str, float]:
    """Numeric columns by what names a row; the split joins in where there are several."""
    keys = [c for c in ("backbone", "explainer", "threshold_rule") if c in table]
    if "split" in table and table["split"].nunique() > 1:
        keys.append("split")
    numeric = table.select_dtypes(include=["number"]).columns
    found = {}
    for _, row in table.iterrows():
        row_name = ".".join(str(row[key]) for key in keys if pd.notna(row[key]))
        for column in numeric:
            found[metric_name(column, row_name or "all")] = float(row[column])
    return found


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the values, as floats: a chart can show nothing else."""
    numeric = {k: float(v) for k, v in values.items() if isinstance(v, numbers.Real)}
    return {key: value for key, value in numeric.items() if math.isfinite(value)}
