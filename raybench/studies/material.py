"""What explainers are given of the data set: an image as they see it, and what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property

import cv2
import numpy as np

from raybench.data.preprocess import resize_gray
from raybench.executor import Pool
from raybench.explain import Explainer
from raybench.explain.fills import Neighbour
from raybench.studies.banks import Banks
from raybench.studies.context import Context
from raybench.types import Gray, Subject, Values, XrayRecord

# What the mean infection mask is kept at: COVID-QU-Ex's own size, so nothing is lost there.
_PRIOR_SHAPE = (256, 256)


class Material:
    """The subjects of a stage. What they share is made once, when the first of them needs it.

    Args:
        sizes: input size of every trial with a checkpoint.
    """

    def __init__(self, context: Context, sizes: Mapping[str, tuple[int, int]]) -> None:
        self._context, self._sizes = context, sizes
        self._banks = Banks(context)

    def prepare(self, pool: Pool, asked: Iterable[tuple[str, Explainer]]) -> None:
        """What has to be asked of the models before images are explained: neighbours' features.

        Args:
            asked: trial and explainer, for all that will be explained.

        Raises:
            ExecutionError: a model has no features to give.
        """
        wanted: dict[str, list[Neighbour]] = {}
        for trial_id, explainer in asked:
            fill = getattr(explainer, "fill", None)
            if isinstance(fill, Neighbour):
                wanted.setdefault(trial_id, []).append(fill)
        for trial_id, fills in wanted.items():
            self._banks.prepare(pool, trial_id, self._sizes[trial_id], fills)

    def release(self, trial_id: str) -> None:
        """Drop what only this trial's explanations need: they have all been begun."""
        self._banks.release(trial_id)

    def subject(
        self,
        explainer: Explainer,
        record: XrayRecord,
        trial_id: str | None,
        change: Callable[[Gray], Gray] | None = None,
    ) -> Subject:
        """An image for an explainer.

        Args:
            trial_id: whose model is explained; None where no model is.
            change: what is done to the X-ray's grey levels before anything else.

        Raises:
            DataError: the image, or one of Train's masks that it needs, cannot be read.
        """
        context = self._context
        xray = context.source.load(record)
        if change is not None:
            xray = replace(xray, image=change(xray.image))
        image = context.preprocess_of(trial_id).apply(xray)
        if trial_id is not None and context.config.explain.grid == "model":
            image = resize_gray(image, self._sizes[trial_id])
        shape = (xray.image.shape[0], xray.image.shape[1])
        fill, near = getattr(explainer, "fill", None), None
        if trial_id is not None and isinstance(fill, Neighbour):
            near = self._banks.near(trial_id, record, image, xray.lung_mask, fill)
        return Subject(
            image_id=record.image_id,
            image=image,
            lung_mask=xray.lung_mask,
            shape=shape,
            target=target_of(context, explainer, record),
            neighbours=near,
            prior=self._prior_at(shape) if explainer.needs_prior else None,
        )

    def _prior_at(self, shape: tuple[int, int]) -> Values | None:
        return None if self._prior is None else _resized(self._prior, shape)

    @cached_property
    def _prior(self) -> Values | None:
        """The mean of Train's infection masks that hold a pixel, one mask in memory at a time."""
        total, n = np.zeros(_PRIOR_SHAPE), 0
        for record in self._context.of("Train"):
            if record.infection_mask is None:
                continue
            mask = self._context.dataset.load(record).infection_mask
            if mask is not None and mask.any():
                total += _resized(mask.astype(np.float32), _PRIOR_SHAPE)
                n += 1
        source = "train" if n else "gaussian"
        events = self._context.run.events
        if not any(event["kind"] == "centre_prior" for event in events.read()):
            events.append("centre_prior", source=source, n_masks=n)
        return (total / n).astype(np.float32) if n else None


def _resized(values: Values, shape: tuple[int, int]) -> Values:
    if values.shape == shape:
        return values
    shrinks = shape[0] <= values.shape[0] and shape[1] <= values.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=how), np.float32)


def target_of(context: Context, explainer: Explainer, record: XrayRecord) -> int | None:
    """Index of the class that an explainer is asked for; None for the predicted one."""
    wanted = explainer.target or context.config.explain.target
    if wanted == "predicted":
        return None
    return context.dataset.classes.index(context.class_of(record) if wanted == "true" else wanted)
