"""The supervised reference: what a U-Net reaches that may learn from the masks themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pandas as pd
import torch

from raybench.config import SweepConfig
from raybench.data.preprocess import Preprocess
from raybench.errors import RaybenchError
from raybench.executor import message
from raybench.explain.base import to_shape
from raybench.models.unet import Segmenter
from raybench.studies.context import Context, explained_images, progress_bar
from raybench.studies.unet_stage import Unet, UnetJob, train_unet
from raybench.tracking.maps import NO_TRIAL, table_name, to_row
from raybench.training.segment import SUPERVISED, Segment
from raybench.types import AttributionMap, Dataset, Gray, Sign, Split, XrayRecord
from raybench.wording import counted

_BATCH = 16


@dataclass(frozen=True)
class Supervised:
    """The U-Net among the explainers: what the score stage asks of one.

    Its maps are probabilities, so they are cut as they are and not stretched to [0, 1] first.
    """

    trial_id: str
    backbone: str
    title: str = SUPERVISED
    threshold: float = 0.5
    sign: Sign = "both"
    clip_to_lungs: bool = False
    median_filter: int = 0
    uses_model: bool = False
    is_probability: bool = True

    @property
    def table(self) -> str:
        """Where its maps lie."""
        return table_name(NO_TRIAL, self.title)


def absent(dataset: Dataset, records: Sequence[XrayRecord]) -> str | None:
    """Why there can be no supervised reference; None where there can be one.

    Args:
        records: all of the data set that classifiers are trained on; names are enough.
    """
    kind = dataset.infection_class
    lacking = [s for s in ("Train", "Val") if not learned_from(dataset, records, s)]
    if not lacking:
        return None
    return (
        f"no supervised reference: {' and '.join(lacking)} {'have' if lacking[1:] else 'has'} no "
        f"infection masks of {kind}, and it is never fitted on Test"
    )


def learned_from(
    dataset: Dataset, records: Sequence[XrayRecord], split: Split
) -> tuple[XrayRecord, ...]:
    """The images of a split that the U-Net learns from, or is chosen on.

    Those of the infection class that have a mask: the kind of image that is explained. Not those
    of other classes: where the lesions of another pneumonia have an empty mask, as in COVID-QU-Ex,
    it would have to tell causes apart, and marks less of what it is asked for.
    """
    return explained_images(records, dataset.infection_class, {split: None})[split]


def supervise(context: Context, resume: bool) -> Supervised | None:
    """Train the U-Net on Train, choose it on Val, and make its maps of what is explained.

    Returns:
        None where the sweep asks for none, or the data set has no masks to learn from: a
        `warning` event says so.

    Raises:
        RaybenchError: not one of its trials could be trained.
    """
    settings, recipe = context.config.supervised, context.config.supervised_recipe
    if settings is None or recipe is None:
        return None
    reason = absent(context.dataset, context.records)
    train, val = (learned_from(context.dataset, context.records, s) for s in ("Train", "Val"))
    if reason is None and not _any_drawn(context.dataset, train):
        reason = "no supervised reference: all infection masks of Train are empty"
    if reason is not None:
        context.warn_once(reason)
        return None
    job = UnetJob(SUPERVISED, Segment("infection"), recipe, settings.n_trials, train, val)
    unet = train_unet(context, job, resume)
    found = Supervised(unet.trial_id, unet.backbone)
    with context.stage("explaining_supervised"):
        _make_maps(context, unet, found.table)
    return found


def plan_lines(config: SweepConfig, records: Sequence[XrayRecord]) -> Iterator[str]:
    """What a plan says of the supervised reference."""
    settings, recipe = config.supervised, config.supervised_recipe
    if settings is None or recipe is None:
        return
    reason = absent(config.data, records)
    if reason is not None:
        yield reason[0].upper() + reason[1:]
        return
    n = len(learned_from(config.data, records, "Train"))
    yield (
        f"Supervised reference: a U-Net on {recipe.name}, {counted(settings.n_trials, 'trial')} of "
        f"{counted(recipe.n_epochs, 'epoch')} on {n:,} images of Train; one forward pass an "
        "explained image"
    )


def _any_drawn(dataset: Dataset, records: Sequence[XrayRecord]) -> bool:
    """Whether a mask holds a pixel; stops at the first."""
    masks = (dataset.load(record).infection_mask for record in records)
    return any(mask is not None and mask.any() for mask in masks)


def _make_maps(context: Context, unet: Unet, table: str) -> None:
    """The maps that are not there yet, batch by batch."""
    done: set[str] = set()
    for frame in context.run.iterate(table, ["image_id", "error"]):
        done |= set(frame.image_id[frame.error.isna()])
    todo = [r for s in ("Val", "Test") for r in context.explained[s] if r.image_id not in done]
    if not todo:
        return
    segmenter = unet.load(context, "cuda" if torch.cuda.is_available() else "cpu")
    bar, feed = progress_bar(len(todo), "supervised maps", "image"), iter(todo)
    try:
        while batch := list(islice(feed, _BATCH)):
            context.run.append(table, pd.DataFrame(_rows(context, segmenter, batch)))
            bar.update(len(batch))
    finally:
        bar.close()
    context.run.compact(table)


def _rows(
    context: Context, segmenter: Segmenter, batch: Sequence[XrayRecord]
) -> list[dict[str, Any]]:
    """A row a map; an image that cannot be read any more is recorded for itself."""
    preprocess = Preprocess.model_validate(segmenter.card.preprocess)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    good: list[XrayRecord] = []
    images: list[Gray] = []
    for record in batch:
        try:
            images.append(preprocess.apply(context.source.load(record)))
            good.append(record)
        except RaybenchError as error:
            rows.append(to_row(record.image_id, record.split, None, message(error), 0.0))
    maps = segmenter.predict(images) if images else ()
    seconds = (time.perf_counter() - started) / len(batch)
    for record, image, values in zip(good, images, maps, strict=True):
        shape = (image.shape[0], image.shape[1])
        made = AttributionMap(to_shape(values, shape, smooth=True), None, 1)
        rows.append(to_row(record.image_id, record.split, made, None, seconds))
    return rows
