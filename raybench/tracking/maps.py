"""Attribution maps as rows of a table: one table a trial and explainer, below `parts/`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raybench.tracking.run_folder import RunFolder
from raybench.types import AttributionMap, Values

NO_TRIAL = "shared"
"""Stands for the trial where an explainer asks no model: its maps serve every trial."""


def table_name(trial_id: str, explainer: str) -> str:
    """The table that holds a trial's maps by one explainer."""
    return f"maps_{trial_id}_{explainer}"


def to_row(
    image_id: str, split: str, result: AttributionMap | None, error: str | None, seconds: float
) -> dict[str, Any]:
    """One row: the map as float32 bytes (none after an error), superpixels where there are any."""
    row: dict[str, Any] = {
        "image_id": image_id,
        "split": split,
        "error": error,
        "seconds": seconds,
        "n_forward": 0,
        "target": -1,
        "height": 0,
        "width": 0,
        "values": b"",
        "grid_height": 0,
        "grid_width": 0,
        "superpixels": b"",
        "weights": b"",
        "uncertainty": b"",
        "r2": float("nan"),
    }
    if result is None:
        return row
    values = np.ascontiguousarray(result.values, dtype="<f4")
    row |= {
        "n_forward": result.n_forward,
        "target": -1 if result.target is None else result.target,
        "height": values.shape[0],
        "width": values.shape[1],
        "values": values.tobytes(),
        "r2": float(result.extras.get("r2", float("nan"))),
    }
    if "superpixels" in result.extras:
        labels = np.ascontiguousarray(result.extras["superpixels"], dtype="<i4")
        row["grid_height"], row["grid_width"] = labels.shape
        row["superpixels"] = labels.tobytes()
        for name in ("weights", "uncertainty"):
            row[name] = np.ascontiguousarray(result.extras[name], dtype="<f8").tobytes()
    return row


def last_rows(
    run: RunFolder, table: str, columns: Sequence[str] | None = None
) -> Iterator[dict[Hashable, Any]]:
    """The rows of a table, one at a time; of an image that was tried again, the last one.

    Args:
        columns: those wanted, `image_id` among them; None for all.
    """
    newest: dict[str, int] = {}
    number = 0
    for frame in run.iterate(table, ["image_id"]):
        for image_id in frame.image_id:
            newest[image_id] = number
            number += 1
    number = 0
    for frame in run.iterate(table, columns):
        for row in frame.to_dict("records"):
            if newest[row["image_id"]] == number:
                yield row
            number += 1


def values_of(row: Mapping[Any, Any]) -> Values:
    """The map of a row, float32 `[H, W]`."""
    flat = np.frombuffer(row["values"], dtype="<f4").astype(np.float32)
    return flat.reshape(int(row["height"]), int(row["width"]))


def superpixels_of(row: Mapping[Any, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Superpixels int32 `[h, w]` and their weights float64 `[K]`; None where there are none."""
    if not row["superpixels"]:
        return None
    labels = np.frombuffer(row["superpixels"], dtype="<i4").astype(np.int32)
    shape = int(row["grid_height"]), int(row["grid_width"])
    return labels.reshape(shape), np.frombuffer(row["weights"], dtype="<f8").copy()
