"""Lung masks for images that come without: a U-Net learns them from those that have one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch

from raybench.config import SweepConfig
from raybench.data.lungs import WithLungs, is_predicted, lungs_of
from raybench.data.preprocess import Preprocess
from raybench.errors import DataError
from raybench.explain.base import to_shape
from raybench.storage import Storage
from raybench.studies.context import Context, progress_bar
from raybench.studies.unet_stage import Unet, UnetJob, train_unet
from raybench.training.segment import Segment
from raybench.types import Split, XrayRecord
from raybench.wording import counted

LUNGS = "lungs"
"""The task's name, and that of its folder in the run folder."""

_BATCH = 16


def check_lungs_to_learn(records: Sequence[XrayRecord]) -> None:
    """Whether there are lung masks to learn from; by names alone.

    Raises:
        DataError: Train or Val has none.
    """
    lacking = [s for s in ("Train", "Val") if not _with_masks(records, s)]
    if lacking:
        raise DataError(
            f"lungs: expected images with lung masks in Train and Val to learn from, found none in "
            f"{' and '.join(lacking)}; name masks in data, or set lungs null and do without them"
        )


def with_lungs(context: Context, resume: bool) -> Context:
    """The same sweep with a lung mask for every image, predicted where the data set has none.

    The U-Net learns from Train's images that have a lung mask and is chosen by Dice on Val's; no
    mask of Test is looked at. Masks are files in the run folder: those there already are kept.

    Raises:
        RaybenchError: not one of its trials could be trained, or it finds no lungs in an image
            (`on_bad_image: skip` leaves such images out).
    """
    settings, recipe = context.config.lungs, context.config.lungs_recipe
    if settings is None or recipe is None or not any(_lacking(context)):
        return context
    train, val = (_with_masks(context.records, s) for s in ("Train", "Val"))
    job = UnetJob(LUNGS, Segment("lungs"), recipe, settings.n_trials, train, val)
    unet = train_unet(context, job, resume)
    context.run.claim(LUNGS)
    folder = context.run.storage.path(LUNGS)
    ours = WithLungs(context.dataset, Storage(f"{folder}/data"))
    theirs = (
        None if context.other is None else WithLungs(context.other, Storage(f"{folder}/explained"))
    )
    mine, explained = _lacking(context)
    with context.stage("predicting_lungs", images=len(mine) + len(explained)):
        empty = _predict(context, unet, ours, mine)
        empty |= _predict(context, unet, theirs, explained) if theirs is not None else set()
    context.run.events.append(
        "lungs", predicted=len(mine) + len(explained), val_dice=unet.val_dice, empty=len(empty)
    )
    _refuse(context, empty)

    def kept(records: Sequence[XrayRecord]) -> tuple[XrayRecord, ...]:
        return WithLungs.named([r for r in records if r not in empty])

    return replace(
        context,
        dataset=ours,
        records=kept(context.records),
        explained={split: kept(records) for split, records in context.explained.items()},
        other=theirs,
    )


def plan_lines(config: SweepConfig, records: Sequence[XrayRecord]) -> Iterator[str]:
    """What a plan says of the lungs."""
    settings, recipe = config.lungs, config.lungs_recipe
    if settings is None or recipe is None:
        return
    inner = config.data.explain
    every = [*records, *(inner.records() if inner is not None else ())]
    n = sum(r.lung_mask is None for r in every)
    if not n:
        yield "Lungs: every image has a lung mask, none is predicted"
        return
    n_train = len(_with_masks(records, "Train"))
    yield (
        f"Lungs: a U-Net on {recipe.name}, {counted(settings.n_trials, 'trial')} of "
        f"{counted(recipe.n_epochs, 'epoch')} on {n_train:,} lung masks of Train, predicts "
        f"those of {counted(n, 'image')}"
    )


def n_predicted(records: Sequence[XrayRecord]) -> int:
    """How many of the records have a predicted lung mask."""
    return sum(is_predicted(r) for r in records)


def _with_masks(records: Sequence[XrayRecord], split: Split) -> tuple[XrayRecord, ...]:
    return tuple(r for r in records if r.split == split and r.lung_mask is not None)


def _lacking(context: Context) -> tuple[list[XrayRecord], list[XrayRecord]]:
    """Images without a lung mask: the classifiers', and those of another data set explained."""
    ours = [r for r in context.records if r.lung_mask is None]
    every = [r for records in context.explained.values() for r in records]
    return ours, [r for r in every if r.lung_mask is None] if context.other is not None else []


def _predict(
    context: Context, unet: Unet, dataset: WithLungs, records: Sequence[XrayRecord]
) -> set[XrayRecord]:
    """Predict the masks that are not there yet; the records whose mask is empty."""
    todo = [r for r in records if not dataset.has(r)]
    bar, feed = progress_bar(len(todo), "predicting lungs", "image"), iter(todo)
    if todo:
        segmenter = unet.load(context, "cuda" if torch.cuda.is_available() else "cpu")
        preprocess = Preprocess.model_validate(segmenter.card.preprocess)
    while batch := list(islice(feed, _BATCH)):
        images = [preprocess.apply(dataset.inner.load(r)) for r in batch]
        for record, image, values in zip(batch, images, segmenter.predict(images), strict=True):
            shape = (image.shape[0], image.shape[1])
            dataset.write(record, lungs_of(to_shape(values, shape, smooth=True)))
        bar.update(len(batch))
    bar.close()
    return {r for r in records if _is_empty(dataset, r)}


def _is_empty(dataset: WithLungs, record: XrayRecord) -> bool:
    (named,) = WithLungs.named([record])
    mask = dataset.load(named).lung_mask
    return mask is None or not mask.any()


def _refuse(context: Context, empty: set[XrayRecord]) -> None:
    """Say in which images no lungs were found; stop there unless bad images are skipped."""
    if not empty:
        return
    names = sorted(r.image_id for r in empty)
    if context.config.on_bad_image == "stop":
        raise DataError(
            f"lungs: the U-Net finds no lungs in {len(names)} images; train it longer, or set "
            "on_bad_image: skip to leave them out:",
            names,
        )
    context.warn_once(f"no lungs were found in {len(names)} images, left out: {'; '.join(names)}")
