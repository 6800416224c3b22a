"""Explaining, fanned out: attribution maps of every chosen trial, explainer and image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raybench.errors import RaybenchError
from raybench.executor import Job, Outcome, Pool, message, run_jobs
from raybench.explain import Explainer, Lime
from raybench.studies.context import Context, Winners, explains, progress_bar
from raybench.studies.material import Material
from raybench.studies.precision import model_keys
from raybench.tracking.maps import NO_TRIAL, table_name, to_row
from raybench.types import Split, Unit, XrayRecord

# Rows wait in memory until they stand for so much work, or are so many: the most that a kill costs.
_FLUSH_SECONDS = 1.0
_FLUSH_ROWS = 32


@dataclass(frozen=True)
class Item:
    """One map to be made. `trial_id` is `NO_TRIAL` where the explainer asks no model."""

    trial_id: str
    explainer: Explainer
    record: XrayRecord

    @property
    def table(self) -> str:
        """Where its row goes."""
        return table_name(self.trial_id, self.explainer.title)


def items(
    context: Context, trials: Sequence[str], full: Sequence[str], winners: Winners
) -> Iterator[Item]:
    """Everything to be explained, model-free first, then trial by trial.

    Args:
        trials: all trials with a checkpoint.
        full: those that every explainer explains on Val and Test (the ensemble: that can); the
            others get the cheap explainers on Val.
        winners: of the search over settings, which explain Val and Test with their own trial.
    """
    explainers = context.config.explain.explainers
    both: tuple[Split, ...] = ("Val", "Test")
    for explainer in explainers:
        if not explainer.uses_model:
            yield from _of_splits(context, NO_TRIAL, explainer, both)
    for winner in winners.get(NO_TRIAL, ()):
        yield from _of_splits(context, NO_TRIAL, winner.explainer, both)
    for trial_id in trials:
        splits: tuple[Split, ...] = both if trial_id in full else ("Val",)
        for explainer in explainers:
            asked = explainer.uses_model and (explainer.is_cheap or trial_id in full)
            if asked and explains(explainer, trial_id):
                yield from _of_splits(context, trial_id, explainer, splits)
        for winner in winners.get(trial_id, ()):
            yield from _of_splits(context, trial_id, winner.explainer, both)


def _of_splits(
    context: Context, trial_id: str, explainer: Explainer, splits: Sequence[Split]
) -> Iterator[Item]:
    for split in splits:
        for record in context.explained[split]:
            yield Item(trial_id, explainer, record)


def explain(
    context: Context,
    pool: Pool,
    sizes: dict[str, tuple[int, int]],
    full: Sequence[str],
    winners: Winners,
) -> None:
    """Make all maps that are not there yet.

    Args:
        sizes: input size of every trial with a checkpoint.
        full: trials that every explainer explains on Val and Test.
        winners: of the search over settings.
    """
    everything = list(items(context, sorted(sizes), full, winners))
    done = finished(context, everything)
    todo = [item for item in everything if (item.table, item.record.image_id) not in done]
    n_known = len(everything) - len(todo)
    with context.stage("explaining", maps=len(everything), known=n_known):
        if not todo:
            return
        material = Material(context, sizes)
        material.prepare(pool, dict.fromkeys((item.trial_id, item.explainer) for item in todo))
        # Of everything and not only of what is left: a resumed sweep keeps to its precision.
        asked = sorted({item.trial_id for item in everything if isinstance(item.explainer, Lime)})
        keys = keys_of(context, pool, asked, material)
        errors = _make(context, pool, material, todo, keys)
        for table in {item.table for item in everything}:
            context.run.compact(table)
        if errors:
            context.run.events.append(
                "warning",
                message=f"{len(errors)} of {len(todo)} maps failed and are left out of the "
                f"means (column error in scores.parquet), the first one: {errors[0]}",
            )


def _make(
    context: Context, pool: Pool, material: Material, todo: Sequence[Item], keys: dict[str, str]
) -> list[str]:
    """Make maps and write them as they come; what went wrong, a line a map."""
    progress, writer = _Progress(todo), _Writer(context)
    try:
        for outcome in run_jobs(_jobs(material, todo, keys, writer), pool, progress.unit):
            assert isinstance(outcome.key, Item)
            writer.add(outcome)
            progress.image(outcome.key)
    finally:
        writer.flush()
        progress.close()
    return writer.errors


def finished(context: Context, everything: Sequence[Item]) -> set[tuple[str, str]]:
    """Table and image of every map that an earlier call made; what failed then is tried again."""
    done: set[tuple[str, str]] = set()
    for table in dict.fromkeys(item.table for item in everything):
        for frame in context.run.iterate(table, ["image_id", "error"]):
            done |= {(table, image_id) for image_id in frame.image_id[frame.error.isna()]}
    return done


def keys_of(
    context: Context, pool: Pool, trials: Sequence[str], material: Material
) -> dict[str, str]:
    """Keys of the models by trial, where they differ from the trial's id."""
    return model_keys(
        context,
        pool,
        trials,
        lambda trial, lime, record: job_of(material, Item(trial, lime, record)),
    )


def _jobs(
    material: Material, todo: Sequence[Item], keys: dict[str, str], writer: _Writer
) -> Iterator[Job]:
    """A job for each item; an image that cannot be read any more is recorded for itself.

    Args:
        todo: trial by trial.
        keys: of the models by trial, where they differ from the trial's id.
    """
    trial_id = NO_TRIAL
    for item in todo:
        if item.trial_id != trial_id:
            material.release(trial_id)
            trial_id = item.trial_id
        try:
            job = job_of(material, item)
        except RaybenchError as error:
            writer.add(Outcome(item, None, message(error), 0.0, 0))
            continue
        yield replace(job, model=keys.get(item.trial_id, job.model))


def job_of(material: Material, item: Item) -> Job:
    """The job that makes one map.

    Raises:
        RaybenchError: the image cannot be read any more.
    """
    model = item.trial_id if item.explainer.uses_model else None
    subject = material.subject(item.explainer, item.record, model)
    return Job(item, item.explainer, subject, model)


class _Writer:
    """Buffers rows by table and writes them before much work depends on them."""

    def __init__(self, context: Context) -> None:
        self._run = context.run
        self.errors: list[str] = []
        self._rows: dict[str, list[dict[str, object]]] = {}
        self._seconds, self._count, self._since = 0.0, 0, time.perf_counter()

    def add(self, outcome: Outcome) -> None:
        item = outcome.key
        assert isinstance(item, Item)
        if outcome.error is not None:
            self.errors.append(f"{item.record.image_id}, {item.explainer.title}: {outcome.error}")
        row = to_row(
            item.record.image_id,
            item.record.split,
            outcome.result,
            outcome.error,
            outcome.seconds,
        )
        self._rows.setdefault(item.table, []).append(row)
        self._seconds += outcome.seconds
        self._count += 1
        waited = time.perf_counter() - self._since
        if max(self._seconds, waited) > _FLUSH_SECONDS or self._count >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        while self._rows:  # each table leaves the buffer as it is written: no row is written twice
            table, rows = self._rows.popitem()
            self._run.append(table, pd.DataFrame(rows))
        self._seconds, self._count = 0.0, 0
        self._since = time.perf_counter()


class _Progress:
    """Images on the bar; forward passes, their rate and the time left beside it.

    Images cost from nothing to a thousand passes, so the time left is told from the work behind
    the finished ones and not from their number.
    """

    def __init__(self, todo: Sequence[Item]) -> None:
        self._bar = progress_bar(len(todo), "explaining", "image")
        self._bar.bar_format = (
            "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}{postfix}]"
        )
        self._work = sum(_work(item) for item in todo)
        self._done, self._passes, self._found, self._started = 0, 0, 0, time.perf_counter()

    def unit(self, unit: Unit, n_forward: int) -> None:
        self._passes += n_forward
        self._found += unit.n_forward - n_forward
        seconds = max(time.perf_counter() - self._started, 1e-9)
        text = f"{self._passes:,} forward passes, {self._passes / seconds:,.0f}/s"
        if self._found:
            text += f" ({self._found:,} known from before)"
        if self._done:
            left = seconds * (self._work - self._done) / self._done
            text += f", {int(left) // 60}:{int(left) % 60:02d} left"
        text += f", {self._bar.n / seconds:.2g} images/s"
        self._bar.set_postfix_str(text)

    def image(self, item: Item) -> None:
        self._done += _work(item)
        self._bar.update(1)

    def close(self) -> None:
        self._bar.close()


# A map without a model costs about as much as so many forward passes of a small classifier.
_CHEAP_WORK = 20


def _work(item: Item) -> int:
    return _CHEAP_WORK + item.explainer.n_forward_planned()
