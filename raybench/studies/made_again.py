"""Maps of Test made once more with one thing changed, and held against the maps that are there.

What `sanity` and `stability` share: which maps, the units of work, rows written as they come, and
going on after an interruption.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import pandas as pd

from raybench.errors import RaybenchError
from raybench.executor import Job, Outcome, Pool, message, run_jobs
from raybench.explain import Explainer, Lime
from raybench.studies.context import Context, Winners, explains, progress_bar, winners_for
from raybench.studies.explain_stage import keys_of
from raybench.studies.material import Material
from raybench.tracking.maps import NO_TRIAL, last_rows, table_name, values_of
from raybench.types import Mask, Unit, Values, XrayRecord

_FLUSH_SECONDS = 1.0
_KEY = ("image_id", "change", "number")
_MAP_COLUMNS = ("image_id", "error", "target", "height", "width", "values")


@dataclass(frozen=True)
class Again:
    """One map that is made again: what of it is changed, and the number of the draw."""

    trial_id: str
    explainer: Explainer
    record: XrayRecord
    change: str
    number: int

    @property
    def row_key(self) -> tuple[str, str, int]:
        """What names its row in its table."""
        return self.record.image_id, self.change, self.number


@dataclass(frozen=True, slots=True)
class Known:
    """A map that the sweep has made: float32 `[H, W]`, and the class that it explains."""

    values: Values
    target: int | None


@dataclass(frozen=True, eq=False, slots=True)
class _Asked:
    again: Again
    known: Known | None = None
    lungs: Mask | None = None


class Method:
    """What is changed of a map, and what is told of the two."""

    @property
    @abstractmethod
    def stage(self) -> str:
        """Names the stage and its tables."""

    @property
    @abstractmethod
    def figures(self) -> tuple[str, ...]:
        """Columns that `compare` gives."""

    @abstractmethod
    def job(self, again: Again, material: Material, known: Known, keys: Mapping[str, str]) -> Job:
        """The job that makes the map; its subject is explained for the class of the known one.

        Raises:
            RaybenchError: the image cannot be read any more.
        """

    @abstractmethod
    def compare(
        self, again: Again, known: Values, found: Values, lungs: Mask | None
    ) -> dict[str, float]:
        """How alike the two maps are, by `figures`."""

    def table(self, again: Again) -> str:
        """Where its row goes."""
        return f"{self.stage}_{again.trial_id}_{again.explainer.title}"


def explainers_of(context: Context, trial_id: str, winners: Winners) -> list[Explainer]:
    """Those whose maps of a trial stand on the leaderboard."""
    own = [e for e in context.config.explain.explainers if explains(e, trial_id)]
    return [*own, *(winner.explainer for winner in winners_for(winners, trial_id))]


def some_of_test(context: Context, n: int) -> list[XrayRecord]:
    """So many explained images of Test, evenly over the list."""
    records = context.explained["Test"]
    n = min(n, len(records))
    return [records[i * len(records) // n] for i in range(n)]


def make_again(
    context: Context,
    pool: Pool,
    sizes: Mapping[str, tuple[int, int]],
    method: Method,
    everything: Sequence[Again],
) -> pd.DataFrame:
    """Make what is not there yet, and return the rows of all.

    Args:
        sizes: input size of every trial with a checkpoint.
        everything: trial by trial, and what asks one model together.

    Returns:
        `trial_id`, `explainer`, `image_id`, `change`, `number`, the method's figures, `n_forward`,
        `seconds` and `error`, in the order of `everything`.
    """
    done = finished(context, method, everything)
    todo = [again for again in everything if (method.table(again), *again.row_key) not in done]
    if todo:
        material = Material(context, sizes)
        material.prepare(pool, dict.fromkeys((a.trial_id, a.explainer) for a in todo))
        asked = sorted({a.trial_id for a in everything if isinstance(a.explainer, Lime)})
        keys = keys_of(context, pool, asked, material)
        errors = _Loop(context, method, material, keys).run(todo, pool)
        for table in dict.fromkeys(method.table(again) for again in everything):
            context.run.compact(table)
        if errors:
            context.run.events.append(
                "warning",
                message=f"{method.stage}: {len(errors)} of {len(todo)} maps could not be made "
                f"again (column error in {method.stage}.parquet), the first one: {errors[0]}",
            )
    return _rows(context, method, everything)


def finished(
    context: Context, method: Method, everything: Sequence[Again]
) -> set[tuple[str, str, str, int]]:
    """Table and key of what an earlier call made; what failed then is tried again."""
    done: set[tuple[str, str, str, int]] = set()
    for table in dict.fromkeys(method.table(again) for again in everything):
        for frame in context.run.iterate(table, ["image_id", "change", "number", "error"]):
            good = frame[frame.error.isna()]
            found = zip(good.image_id, good.change, good.number, strict=True)
            done |= {(table, str(i), str(c), int(n)) for i, c, n in found}
    return done


@dataclass
class _Loop:
    """Asks, compares as maps come, and writes rows before much work depends on them."""

    context: Context
    method: Method
    material: Material
    keys: Mapping[str, str]
    errors: list[str] = field(default_factory=list)
    _known: dict[tuple[str, str], Known] = field(default_factory=dict)
    _buffer: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _unread: list[Outcome] = field(default_factory=list)
    _n_forward: int = 0

    def run(self, todo: Sequence[Again], pool: Pool) -> list[str]:
        """What went wrong, a line a map."""
        bar = progress_bar(len(todo), self.method.stage, "map")

        def on_unit(unit: Unit, n_forward: int) -> None:
            self._n_forward += n_forward
            bar.set_postfix_str(f"{self._n_forward:,} forward passes")

        since = time.perf_counter()
        try:
            for outcome in chain(run_jobs(self._jobs(todo), pool, on_unit), self._unread):
                self._add(outcome)
                bar.update(1)
                if time.perf_counter() - since > _FLUSH_SECONDS:
                    self._flush()
                    since = time.perf_counter()
        finally:
            self._flush()
            bar.close()
        return self.errors

    def _jobs(self, todo: Sequence[Again]) -> Iterator[Job]:
        """A job for each; `_unread` gets what has none."""
        trial_id = ""
        for again in todo:
            if again.trial_id != trial_id:
                self.material.release(trial_id)
                trial_id = again.trial_id
                self._load(a for a in todo if a.trial_id == trial_id)
            known = self._known.get(_map_of(again))
            asked = _Asked(again)
            if known is None:
                self._unread.append(Outcome(asked, None, "there is no map: it failed", 0.0, 0))
                continue
            try:
                job = self.method.job(again, self.material, known, self.keys)
            except RaybenchError as error:
                self._unread.append(Outcome(asked, None, message(error), 0.0, 0))
                continue
            yield replace(job, key=_Asked(again, known, job.subject.lung_mask))

    def _load(self, of_trial: Iterator[Again]) -> None:
        """The maps of one trial that will be held against others."""
        wanted: dict[str, set[str]] = {}
        for again in of_trial:
            table, image_id = _map_of(again)
            wanted.setdefault(table, set()).add(image_id)
        self._known.clear()  # jobs that are under way hold their own
        for table, images in wanted.items():
            for row in last_rows(self.context.run, table, _MAP_COLUMNS):
                if row["image_id"] in images and pd.isna(row["error"]):
                    target = int(row["target"])
                    known = Known(values_of(row), target if target >= 0 else None)
                    self._known[table, str(row["image_id"])] = known

    def _add(self, outcome: Outcome) -> None:
        asked = outcome.key
        assert isinstance(asked, _Asked)
        again = asked.again
        row: dict[str, Any] = dict(zip(_KEY, again.row_key, strict=True))
        row |= dict.fromkeys(self.method.figures, float("nan"))
        row |= {"n_forward": outcome.n_forward, "seconds": outcome.seconds, "error": outcome.error}
        if outcome.error is None and asked.known is not None:
            values = asked.known.values
            row |= self.method.compare(again, values, outcome.result.values, asked.lungs)
        else:
            image = again.record.image_id
            self.errors.append(f"{image}, {again.explainer.title}: {outcome.error}")
        self._buffer.setdefault(self.method.table(again), []).append(row)

    def _flush(self) -> None:
        """Each table leaves the buffer as it is written: no row is written twice."""
        while self._buffer:
            table, rows = self._buffer.popitem()
            self.context.run.append(table, pd.DataFrame(rows))


def _map_of(again: Again) -> tuple[str, str]:
    whose = again.trial_id if again.explainer.uses_model else NO_TRIAL
    return table_name(whose, again.explainer.title), again.record.image_id


def _rows(context: Context, method: Method, everything: Sequence[Again]) -> pd.DataFrame:
    found: dict[tuple[str, str, str, int], dict[Any, Any]] = {}
    for table in dict.fromkeys(method.table(again) for again in everything):
        for row in context.run.read(table).to_dict("records"):  # of a key the last one counts
            found[table, row["image_id"], row["change"], int(row["number"])] = row
    whose = ("trial_id", "explainer")
    columns = [*whose, *_KEY, *method.figures, "n_forward", "seconds", "error"]
    rows = [
        {"trial_id": a.trial_id, "explainer": a.explainer.title} | found[key]
        for a in everything
        if (key := (method.table(a), *a.row_key)) in found
    ]
    return pd.DataFrame(rows, columns=columns)
