"""Which precision each model is explained in: bfloat16 where the salient masks stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import get_args

from raybench.executor import Job, Pool, run_jobs
from raybench.explain import Explainer, Lime
from raybench.models.runtime import Precision, with_precision
from raybench.scoring.binarise import binarise
from raybench.scoring.overlap import iou
from raybench.studies.context import Context
from raybench.tracking.events import EventLog
from raybench.types import Values, XrayRecord

N_IMAGES = 3
"""Val images that a choice is made on."""

LEAST_IOU = 0.99
"""What the salient masks of each of them have to share at least."""

_THRESHOLD = 0.5


def decide(pairs: Sequence[tuple[Values, Values]]) -> tuple[Precision, list[float]]:
    """The precision that gives the masks of float32, and how alike the masks are.

    Args:
        pairs: of each image the maps under float32 and under bfloat16, `[H, W]`.

    Returns:
        `bfloat16` where the smallest IoU of the salient masks (min-max, above 0.5) is at least
        0.99, else `float32`, also where there is no pair; and the IoUs in the order of the pairs.
    """
    ious = [iou(binarise(a, _THRESHOLD), binarise(b, _THRESHOLD)) for a, b in pairs]
    return ("bfloat16" if ious and min(ious) >= LEAST_IOU else "float32"), ious


def choose_precision(trial_id: str, jobs: Sequence[Job], pool: Pool, events: EventLog) -> Precision:
    """Do some jobs of a model in both precisions and choose; the event log keeps the choice.

    What the log holds already is not chosen again: a resumed sweep does not mix two precisions.

    Args:
        jobs: those of a few Val images. One that fails, in either precision, chooses float32.
    """
    precisions: tuple[Precision, ...] = get_args(Precision)
    earlier = [
        precision
        for event in events.read()
        if event["kind"] == "precision_chosen" and event["trial_id"] == trial_id
        for precision in precisions
        if precision == event["precision"]
    ]
    if earlier:
        return earlier[-1]
    twice = [
        replace(job, key=(number, precision), model=with_precision(trial_id, precision))
        for precision in precisions
        for number, job in enumerate(jobs)
    ]
    done = {outcome.key: outcome for outcome in run_jobs(twice, pool)}
    errors = sorted({outcome.error for outcome in done.values() if outcome.error is not None})
    pairs = [
        (done[number, "float32"].result.values, done[number, "bfloat16"].result.values)
        for number in ([] if errors else range(len(jobs)))
    ]
    chosen, ious = decide(pairs)
    events.append("precision_chosen", trial_id=trial_id, precision=chosen, ious=ious, errors=errors)
    return chosen


def model_keys(
    context: Context,
    pool: Pool,
    trials: Iterable[str],
    make_job: Callable[[str, Explainer, XrayRecord], Job],
) -> dict[str, str]:
    """Keys of the models that name the precision chosen for each.

    Empty where there is nothing to choose: the settings name a precision, the workers have no GPU,
    or LIME is not among the explainers.

    Args:
        trials: those that LIME explains.
        make_job: the job of a trial, an explainer and an image.
    """
    lime = next((e for e in context.config.explain.explainers if isinstance(e, Lime)), None)
    if context.config.execution.precision != "auto" or pool.device == "cpu" or lime is None:
        return {}
    val = context.explained["Val"]
    n = min(N_IMAGES, len(val))
    records = [val[i * len(val) // n] for i in range(n)]
    keys = {}
    for trial_id in trials:
        jobs = [make_job(trial_id, lime, record) for record in records]
        keys[trial_id] = with_precision(
            trial_id, choose_precision(trial_id, jobs, pool, context.run.events)
        )
    return keys
