"""Classification figures of every trial on Val, and of the chosen ones on Test."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.data.patients import patient_groups
from raybench.data.preprocess import resize_gray
from raybench.errors import ExecutionError
from raybench.executor import Job, Pool, run_jobs
from raybench.models.checkpoint import ENSEMBLE
from raybench.models.predict import Batch, Predict
from raybench.scoring.classification import classification_intervals, classification_scores
from raybench.studies.cards import add_scores
from raybench.studies.context import Context, progress_bar
from raybench.studies.ensemble_stage import with_ensemble
from raybench.studies.goal import within_one_error
from raybench.training.trial import SECOND
from raybench.types import Dataset, Split, XrayRecord

_BATCH = 32


def predict(
    context: Context,
    pool: Pool,
    trials: Sequence[tuple[str, tuple[int, int]]],
    split: Split,
    explained: bool = False,
) -> None:
    """Write the predictions of some trials on one split; those there already are left alone.

    Args:
        trials: trial id and input size of each.
        explained: of the images that are explained, from the data set that these are of, into a
            table of their own: its image ids may be those of the other data set's.

    Raises:
        ExecutionError: a batch failed; the message says why.
    """
    table = "predictions_explained" if explained else "predictions"
    done = context.run.read(table)
    known = set() if done.empty else set(zip(done.trial_id, done.split, strict=True))
    todo = [(trial_id, size) for trial_id, size in trials if (trial_id, split) not in known]
    if not todo:
        return
    records = context.explained[split] if explained else context.of(split)
    bar = progress_bar(len(todo) * len(records), f"predicting {split}", "image")
    try:
        for trial_id, size in todo:
            source = context.source if explained else context.dataset
            jobs = _jobs(context, source, trial_id, size, records)
            answers = _answers(jobs, pool, bar, f"trial {trial_id} on {split}")
            frame = _frame(context, trial_id, records, answers)
            if explained:
                frame["label"] = [context.class_of(r) for r in records]
            context.run.append(table, frame)
    finally:
        bar.close()


def _answers(jobs: Iterator[Job], pool: Pool, bar: Any, what: str) -> np.ndarray:
    """Probabilities of all batches in order, `[N, C]`."""
    parts: dict[int, np.ndarray] = {}
    for outcome in run_jobs(jobs, pool, lambda unit, _: bar.update(unit.n_forward)):
        if outcome.error is not None:
            raise ExecutionError(f"{what}: {outcome.error}")
        assert isinstance(outcome.key, int)
        parts[outcome.key] = outcome.result
    return np.concatenate([parts[number] for number in sorted(parts)])


def _jobs(
    context: Context,
    source: Dataset,
    trial_id: str,
    size: tuple[int, int],
    records: Sequence[XrayRecord],
) -> Iterator[Job]:
    feed = iter(records)
    preprocess = context.preprocess_of(trial_id)
    number = 0
    while batch := list(islice(feed, _BATCH)):
        pixels = np.stack([resize_gray(preprocess.apply(source.load(r)), size) for r in batch])
        subject = Batch(tuple(r.image_id for r in batch), pixels)
        yield Job(number, Predict(), subject, trial_id)
        number += 1


def _frame(
    context: Context, trial_id: str, records: Sequence[XrayRecord], probabilities: np.ndarray
) -> pd.DataFrame:
    classes = context.dataset.classes
    frame = pd.DataFrame(
        {
            "trial_id": trial_id,
            "image_id": [r.image_id for r in records],
            "split": [r.split for r in records],
            "label": [r.label for r in records],
            "predicted": [classes[i] for i in probabilities.argmax(axis=1)],
        }
    )
    for index, name in enumerate(classes):
        frame[f"p_{name}"] = probabilities[:, index]
    return frame


def scores_by_trial(
    context: Context, split: Split, with_intervals: Collection[str] = ()
) -> pd.DataFrame:
    """Classification scores, a row a trial with predictions on the split, `val_` or `test_`.

    Args:
        with_intervals: trials that get the ends of a bootstrap interval beside each score, `_low`
            and `_high`: whole patients are drawn where they are known, and the same ones for every
            trial. They are NaN for the others.
    """
    frame = context.run.read("predictions")
    groups = _groups(context, split)
    rows = []
    for trial_id, part in frame[frame.split == split].groupby("trial_id", sort=True):
        given = (*predictions_of(part, context.dataset.classes), context.dataset.classes)
        scores = classification_scores(*given)
        ends: dict[str, tuple[float, float]] = {}
        if trial_id in with_intervals:
            drawn = np.array([groups[image_id] for image_id in part.image_id])
            ends = classification_intervals(*given, drawn, seed=context.config.seed)
        row: dict[str, object] = {"trial_id": trial_id}
        for name, score in scores.items():
            column = f"{split.lower()}_{name}"
            row[column] = score
            row[f"{column}_low"], row[f"{column}_high"] = ends.get(name, (math.nan, math.nan))
        rows.append(row)
    return pd.DataFrame(rows)


def predictions_of(
    frame: pd.DataFrame, classes: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Rows of the table of predictions as probabilities `[n, C]` and labels `[n]`."""
    probabilities = frame[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    return probabilities, np.array([classes.index(label) for label in frame.label], np.int64)


def _groups(context: Context, split: Split) -> dict[str, int]:
    records = context.of(split)
    numbers = patient_groups(records).tolist()
    return {r.image_id: number for r, number in zip(records, numbers, strict=True)}


def choose_best(
    trials: pd.DataFrame, val: pd.DataFrame, n_images: int, give_up: float = 0.0
) -> list[str]:
    """The best trial of each backbone: highest accuracy on Val, then the lowest loss on Val.

    Where the search had localisation for a second goal, it decides among those whose accuracy is
    within one standard error of the best.

    Args:
        trials: `trial_id`, `backbone`, and `val_localisation` where that was a goal.
        val: `trial_id`, `val_accuracy`, `val_loss`.
        n_images: of Val.
        give_up: accuracy that localisation is worth, where that is more than one standard error.
    """
    told = ["trial_id", "backbone", *({SECOND} & set(trials.columns))]
    joined = trials[told].merge(val, on="trial_id")
    order, rising = ["val_accuracy", "val_loss", "trial_id"], [False, True, True]
    if SECOND in joined:
        joined = within_one_error(joined, n_images, give_up)
        order, rising = [SECOND, *order], [False, *rising]
    ordered = joined.sort_values(order, ascending=rising, na_position="last")
    best = ordered.groupby("backbone", sort=False).first()
    return sorted(best.trial_id)


def judge(context: Context, pool: Pool, trials: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Predict Val for all, choose on Val, and only then predict Test for the chosen.

    Returns:
        `trials` with their scores and a column `best`, and the ids that are fully explained. The
        ensemble is one of both where there is one, and never the best.
    """
    sizes = input_sizes(trials)
    with context.stage("judging"):
        predict(context, pool, list(sizes.items()), "Val")
        val = scores_by_trial(context, "Val")
        goal = context.config.search.localisation
        give_up = 0.0 if goal is None else goal.give_up
        best = choose_best(trials, val, len(context.of("Val")), give_up)
        chosen = sorted(sizes) if context.config.explain.trials == "all" else best
        trials = with_ensemble(context, trials, val, best)
        sizes = input_sizes(trials)
        extra = [ENSEMBLE] if ENSEMBLE in sizes else []
        chosen = [*chosen, *extra]
        predict(context, pool, [(t, sizes[t]) for t in extra], "Val")
        predict(context, pool, [(t, sizes[t]) for t in chosen], "Test")
        if context.other is not None:
            predict(context, pool, list(sizes.items()), "Val", explained=True)
            predict(context, pool, [(t, sizes[t]) for t in chosen], "Test", explained=True)
        val = scores_by_trial(context, "Val", [*best, *extra])
        test = scores_by_trial(context, "Test", [*best, *extra])
    judged = trials.merge(val, on="trial_id", how="left").merge(test, on="trial_id", how="left")
    judged.insert(3, "best", judged.trial_id.isin(best))
    context.run.write_parquet("predictions.parquet", context.run.read("predictions"))
    add_scores(context, judged)
    return judged, chosen


def input_sizes(trials: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Input size of each trial that left a checkpoint."""
    usable = trials[trials.has_checkpoint]
    return {
        str(t): (int(s), int(s)) for t, s in zip(usable.trial_id, usable.input_size, strict=True)
    }
