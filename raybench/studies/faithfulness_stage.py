"""Faithfulness of the best trials' maps on Test: curves of each, and their means.

Nothing is chosen by these figures.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from raybench.config import SweepConfig
from raybench.errors import RaybenchError
from raybench.executor import Job, Outcome, Pool, message, run_jobs
from raybench.explain import Explainer, WholeLung
from raybench.explain.faithfulness import Curves, Explained, Faithfulness, SweepFaithfulness
from raybench.report.faithfulness_curves import faithfulness_curves
from raybench.report.figures import png
from raybench.scoring.faithfulness import area, road_gap
from raybench.studies.context import Context, Winners, explains, progress_bar, winners_for
from raybench.studies.faithfulness_table import COLUMNS, FIGURES, KEY, summary
from raybench.studies.material import Material
from raybench.tracking.maps import NO_TRIAL, last_rows, table_name, values_of
from raybench.types import Unit, Values, XrayRecord

_CURVES = ("shares", "deletion", "insertion", "road_shares", "morf", "lerf")
_FLUSH_SECONDS = 1.0


@dataclass(frozen=True)
class _Item:
    """One map that is asked about."""

    trial_id: str
    explainer: Explainer
    record: XrayRecord

    @property
    def maps(self) -> str:
        """The table that its map lies in."""
        whose = self.trial_id if self.explainer.uses_model else NO_TRIAL
        return table_name(whose, self.explainer.title)

    @property
    def table(self) -> str:
        """Where its row goes."""
        return f"faithfulness_{self.trial_id}_{self.explainer.title}"


def plan_lines(config: SweepConfig, n_test: int, n_models: int) -> Iterator[str]:
    """What will be asked, for a person to read.

    Args:
        n_test: Test images that are explained.
        n_models: the best trial of each backbone, and the ensemble where there is one.
    """
    settings = config.faithfulness
    if settings is None:
        return
    n = n_test if settings.n_images is None else min(settings.n_images, n_test)
    each = settings.n_forward_planned()
    n_maps = n * n_models * len(config.explain.explainers)
    n_maps *= 1 if config.explainer_search is None else 2  # and the winners
    yield (
        f"Faithfulness: {n:,} Test images, at most {n_maps:,} maps x {each:,} = "
        f"{n_maps * each:,} forward passes"
    )


def faithfulness(
    context: Context,
    pool: Pool,
    sizes: Mapping[str, tuple[int, int]],
    chosen: Mapping[str, str],
    winners: Winners,
) -> pd.DataFrame:
    """Ask what is not known yet; write `faithfulness.csv`, `faithfulness.parquet` and the figure.

    Args:
        sizes: input size of every trial with a checkpoint.
        chosen: the best trial of each backbone, and the ensemble; and the backbone of each.
        winners: of the search over settings.

    Returns:
        The table, columns as in `COLUMNS`; empty where the sweep does not ask for it.
    """
    settings = context.config.faithfulness
    if settings is None:
        return pd.DataFrame(columns=list(COLUMNS))
    # The block's `n_images` says which maps are asked, and nothing of how.
    task = Faithfulness(**{k: getattr(settings, k) for k in Faithfulness.model_fields})
    everything = list(_items(context, settings, chosen, winners))
    done = _finished(context, everything)
    todo = [item for item in everything if (item.table, item.record.image_id) not in done]
    with context.stage("faithfulness", maps=len(everything), known=len(done)):
        if todo:
            errors = _ask(context, pool, Material(context, sizes), task, todo)
            for table in {item.table for item in everything}:
                context.run.compact(table)
            if errors:
                context.run.events.append(
                    "warning",
                    message=f"faithfulness of {len(errors)} of {len(todo)} maps could not be "
                    f"asked (column error in faithfulness.parquet), the first one: {errors[0]}",
                )
        return _write(context, _per_image(context, everything, chosen))


def _write(context: Context, per_image: pd.DataFrame) -> pd.DataFrame:
    context.run.write_parquet("faithfulness.parquet", per_image)
    found = summary(per_image, context.explained["Test"], context.config.seed)
    context.run.write_csv("faithfulness.csv", found)
    if per_image.error.isna().any():
        figure = faithfulness_curves(per_image[per_image.error.isna()])
        context.run.write_figure("faithfulness.png", png(figure))
    return found


def _items(
    context: Context, settings: SweepFaithfulness, chosen: Mapping[str, str], winners: Winners
) -> Iterator[_Item]:
    records = context.explained["Test"]
    n = len(records) if settings.n_images is None else min(settings.n_images, len(records))
    for trial_id in chosen:
        own = [e for e in context.config.explain.explainers if explains(e, trial_id)]
        found = [winner.explainer for winner in winners_for(winners, trial_id)]
        for explainer in (*own, *found):
            for i in range(n):
                yield _Item(trial_id, explainer, records[i * len(records) // n])


def _finished(context: Context, everything: Sequence[_Item]) -> set[tuple[str, str]]:
    """Table and image of what an earlier call asked; what failed then is tried again."""
    done: set[tuple[str, str]] = set()
    for table in {item.table for item in everything}:
        for frame in context.run.iterate(table, ["image_id", "error"]):
            done |= {(table, image_id) for image_id in frame.image_id[frame.error.isna()]}
    return done


def _ask(
    context: Context, pool: Pool, material: Material, task: Faithfulness, todo: Sequence[_Item]
) -> list[str]:
    """Ask, and write rows as they come; what went wrong, a line a map."""
    bar = progress_bar(len(todo), "faithfulness", "map")
    n_passes = 0

    def on_unit(unit: Unit, n_forward: int) -> None:
        nonlocal n_passes
        n_passes += n_forward
        bar.set_postfix_str(f"{n_passes:,} forward passes")

    rows: list[tuple[_Item, dict[str, Any]]] = []
    errors: list[str] = []
    since = time.perf_counter()
    unread: list[Outcome] = []
    jobs = _jobs(context, material, task, todo, unread)
    try:
        for outcome in chain(run_jobs(jobs, pool, on_unit), unread):
            item = outcome.key
            assert isinstance(item, _Item)
            if outcome.error is not None:
                image = item.record.image_id
                errors.append(f"{image}, {item.explainer.title}: {outcome.error}")
            rows.append((item, _row(item, outcome)))
            bar.update(1)
            if time.perf_counter() - since > _FLUSH_SECONDS:
                _flush(context, rows)
                since = time.perf_counter()
    finally:
        _flush(context, rows)
        bar.close()
    return errors


def _flush(context: Context, rows: list[tuple[_Item, dict[str, Any]]]) -> None:
    """Each row leaves the buffer as it is written: none is written twice."""
    while rows:
        table = rows[0][0].table
        own = [row for item, row in rows if item.table == table]
        context.run.append(table, pd.DataFrame(own))
        rows[:] = [pair for pair in rows if pair[0].table != table]


def _jobs(
    context: Context,
    material: Material,
    task: Faithfulness,
    todo: Sequence[_Item],
    unread: list[Outcome],
) -> Iterator[Job]:
    """A job for each map; `unread` gets what has none: its map failed, or its image is gone."""
    maps = ""
    known: dict[str, Values] = {}
    wanted: dict[str, set[str]] = {}
    for item in todo:
        wanted.setdefault(item.maps, set()).add(item.record.image_id)
    for item in todo:
        if item.maps != maps:
            maps, known = item.maps, _maps(context, item.maps, wanted[item.maps])
        values = known.get(item.record.image_id)
        if values is None:
            unread.append(Outcome(item, None, "there is no map: explaining failed", 0.0, 0))
            continue
        # A reference's subject is the image alone: an explainer's own fill is not needed here.
        plain = WholeLung(target=item.explainer.target)
        try:
            subject = material.subject(plain, item.record, item.trial_id)
        except RaybenchError as error:
            unread.append(Outcome(item, None, message(error), 0.0, 0))
            continue
        relevant = np.abs(values) if item.explainer.sign == "absolute" else values
        yield Job(item, task, Explained(subject, relevant), item.trial_id)


def _maps(context: Context, table: str, images: set[str]) -> dict[str, Values]:
    columns = ("image_id", "error", "height", "width", "values")
    rows = (row for row in last_rows(context.run, table, columns) if row["image_id"] in images)
    return {str(row["image_id"]): values_of(row) for row in rows if pd.isna(row["error"])}


def _row(item: _Item, outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image_id": item.record.image_id,
        "error": outcome.error,
        "seconds": outcome.seconds,
        "n_forward": 0,
        "target": -1,
    }
    empty: list[float] = []
    row |= dict.fromkeys(FIGURES, float("nan")) | dict.fromkeys(_CURVES, empty)
    curves = outcome.result
    if curves is None:
        return row
    assert isinstance(curves, Curves)
    told = {f.name: getattr(curves, f.name) for f in fields(curves)}
    row |= {name: told[name] for name in ("n_forward", "target", *_CURVES)}
    return row | {
        "deletion_auc": area(curves.shares, curves.deletion),
        "insertion_auc": area(curves.shares, curves.insertion),
        "morf_auc": area(curves.road_shares, curves.morf),
        "lerf_auc": area(curves.road_shares, curves.lerf),
        "road_gap": road_gap(curves.road_shares, curves.morf, curves.lerf),
    }


def _per_image(
    context: Context, everything: Sequence[_Item], chosen: Mapping[str, str]
) -> pd.DataFrame:
    """In the order of the explainers and images, whatever order they were asked in."""
    columns = [*KEY, "image_id", *FIGURES, *_CURVES, "target", "n_forward", "seconds", "error"]
    known = {
        (table, row["image_id"]): row
        for table in dict.fromkeys(item.table for item in everything)
        for row in last_rows(context.run, table)
    }
    rows = [
        dict(zip(KEY, (chosen[i.trial_id], i.trial_id, i.explainer.title), strict=True)) | row
        for i in everything
        if (row := known.get((i.table, i.record.image_id))) is not None
    ]
    return pd.DataFrame(rows, columns=columns)
