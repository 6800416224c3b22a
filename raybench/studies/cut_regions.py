"""The superpixels that the rule `top_k` ranks: one set an image, the same for every explainer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from raybench.data.preprocess import resize_gray
from raybench.errors import ExecutionError
from raybench.executor import Job, Pool, run_jobs
from raybench.explain.regions import Labels, Superpixels
from raybench.explain.superpixels import superpixels_unit
from raybench.studies.context import Context, progress_bar
from raybench.types import Arrays, Subject, Unit, XrayRecord

TABLE = "cut_regions"

LARGEST = 256
"""Pixels along the longer side that superpixels are cut at: COVID-QU-Ex's own. Larger X-rays are
made smaller first: quickshift's reach is in pixels, and so is what it costs."""

_FLUSH = 64


@dataclass(frozen=True)
class CutRegions:
    """One image's superpixels as one unit of work that needs no model."""

    superpixels: Superpixels

    def plan(self, subject: Subject, done: Mapping[str, Arrays], /) -> list[Unit]:
        """All of it at once."""
        return [] if done else [superpixels_unit(self.superpixels, subject)]

    def run(self, unit: Unit, classifier: object, /) -> Arrays:
        """Labels int32 `[h, w]`.

        Raises:
            ExplainError: they are confined to lungs that are not there.
        """
        lungs = unit.payload.get("lungs")
        return {"labels": self.superpixels.segment(unit.payload["image"], lungs)}

    def merge(self, subject: Subject, done: Mapping[str, Arrays], /) -> Labels:
        """The labels."""
        return np.asarray(done["superpixels"]["labels"], np.int32)


def cut_regions(context: Context, pool: Pool) -> None:
    """Cut the explained images that have no superpixels yet; nothing where no rule ranks them.

    Raises:
        ExecutionError: an image cannot be cut.
        RaybenchError: an image cannot be read any more.
    """
    if "top_k" not in context.config.scoring.threshold_rules:
        return
    known = {name for part in context.run.iterate(TABLE, ["image_id"]) for name in part.image_id}
    records = {r.image_id: r for of in context.explained.values() for r in of}
    todo = [record for name, record in records.items() if name not in known]
    if not todo:
        return
    bar = progress_bar(len(todo), "superpixels", "image")
    task, rows = CutRegions(context.config.scoring.superpixels), list[dict[str, object]]()
    for outcome in run_jobs(_jobs(context, task, todo), pool):
        if outcome.error is not None:
            raise ExecutionError(
                f"scoring.superpixels, for the rule top_k: {outcome.key}: {outcome.error}"
            )
        rows.append(_row(str(outcome.key), outcome.result))
        bar.update(1)
        if len(rows) == _FLUSH:
            context.run.append(TABLE, pd.DataFrame(rows))
            rows = []
    bar.close()
    if rows:
        context.run.append(TABLE, pd.DataFrame(rows))


def regions_of(context: Context, wanted: Collection[str] | None = None) -> dict[str, Labels]:
    """The superpixels of the explained images that they were cut of, by id; of those `wanted`."""
    found: dict[str, Labels] = {}
    for frame in context.run.iterate(TABLE):
        part = frame if wanted is None else frame[frame.image_id.isin(list(wanted))]
        for row in part.to_dict("records"):
            flat = np.frombuffer(row["labels"], dtype="<i4").astype(np.int32)
            found[str(row["image_id"])] = flat.reshape(int(row["height"]), int(row["width"]))
    return found


def _jobs(context: Context, task: CutRegions, records: Sequence[XrayRecord]) -> Iterator[Job]:
    for record in records:
        xray = context.source.load(record)
        image = context.preprocess_of(None).apply(xray)
        shrink = LARGEST / max(image.shape)
        if shrink < 1:
            height, width = (max(1, round(shrink * side)) for side in image.shape)
            image = resize_gray(image, (height, width))
        subject = Subject(record.image_id, image, xray.lung_mask, xray.image.shape)
        yield Job(record.image_id, task, subject)


def _row(image_id: str, labels: Labels) -> dict[str, object]:
    flat = np.ascontiguousarray(labels, dtype="<i4").tobytes()
    return {
        "image_id": image_id,
        "height": labels.shape[0],
        "width": labels.shape[1],
        "labels": flat,
    }
