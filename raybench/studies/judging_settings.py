"""How good settings of an explainer are on the Val images, without asking anything twice."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.errors import RaybenchError
from raybench.executor import Job, Pool, message, run_jobs
from raybench.explain import Explainer
from raybench.explain.fills import Neighbour
from raybench.explain.spaces import Candidate
from raybench.models.classifier import Classifier
from raybench.scoring.binarise import CANDIDATES, iou_at, oriented
from raybench.studies.context import Context
from raybench.studies.explain_stage import Item, job_of
from raybench.studies.material import Material
from raybench.studies.truths import Truth
from raybench.types import Arrays, AttributionMap, Subject, Unit, Values, XrayRecord

Floats = NDArray[np.float64]

_MAP_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Judgement:
    """What settings achieve on the Val images.

    Attributes:
        curves: IoU `[N, C]` of every image at every candidate threshold (the same all along where
            the threshold is fixed); NaN for an image that failed.
        n_forward: forward passes an image, the mean over those that did not fail.
        seconds: that it took now, all images together.
        error: how many images failed, and of what kind the first error was; None where none did.
    """

    curves: Floats
    n_forward: float
    seconds: float
    error: str | None


@dataclass(frozen=True)
class MapAlone:
    """An explainer as a task whose extras nobody looks at."""

    explainer: Explainer

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """The explainer's."""
        return self.explainer.plan(subject, done)

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """The explainer's."""
        return self.explainer.run(unit, classifier)

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The map, without what would be left over."""
        return self.explainer.merge_map(subject, done)


class Judge:
    """Judges settings of one explainer with one model.

    Maps are kept as far as memory allows: settings that differ in what is made of a map (threshold,
    clipping, smoothing) share it.

    Args:
        pool: does what has to be done; one that remembers.
        trial_id: the model's; `NO_TRIAL` where the explainer asks none.
        truths: of the Val images, by id.
        material: makes the explainers' subjects.
        model: the model's key, where it is another than the trial's id.
    """

    def __init__(
        self,
        context: Context,
        pool: Pool,
        trial_id: str,
        truths: Mapping[str, Truth],
        material: Material,
        model: str | None,
    ) -> None:
        self._pool, self._trial_id, self._material = pool, trial_id, material
        self._truths, self._model = truths, model
        self._records: tuple[XrayRecord, ...] = context.explained["Val"]
        self._subjects: dict[tuple[str, str], Subject] = {}
        self._maps: OrderedDict[tuple[str, int], tuple[Values, int]] = OrderedDict()
        self._map_bytes = 0
        self._prepared: set[str] = set()
        self._judged: dict[str, Judgement] = {}
        self.n_asked = 0

    def judge(self, candidate: Candidate) -> Judgement:
        """The curves of one candidate; one that was judged before is looked up."""
        known = self._judged.get(candidate.key)
        if known is not None:
            return Judgement(known.curves, known.n_forward, 0.0, known.error)
        started = time.perf_counter()
        curves = np.full((len(self._records), len(CANDIDATES)), np.nan)
        passes, errors = [], []
        for number, found in self._maps_of(candidate.explainer):
            if isinstance(found, str):
                errors.append(found)
                continue
            values, n_forward = found
            curves[number] = curve(candidate, values, self._truths[self._records[number].image_id])
            passes.append(n_forward)
        mean = float(np.mean(passes)) if passes else float("nan")
        # The table goes to the tracking server: what went wrong is told by kind, no image named.
        kind = errors[0].partition(":")[0] if errors else ""
        error = f"{len(errors)} of {len(self._records)} images: {kind}" if errors else None
        judged = Judgement(curves, mean, time.perf_counter() - started, error)
        self._judged[candidate.key] = judged
        return judged

    def remember(self, candidate: Candidate, judged: Judgement) -> None:
        """Take over what was judged before an interruption."""
        self._judged.setdefault(candidate.key, judged)

    def _maps_of(self, explainer: Explainer) -> Iterator[tuple[int, tuple[Values, int] | str]]:
        """Map and forward passes of each image, or what went wrong with it, in any order."""
        key = explainer.map_key
        todo: list[int] = []
        for number in range(len(self._records)):
            kept = self._maps.get((key, number))
            if kept is None:
                todo.append(number)
            else:
                self._maps.move_to_end((key, number))
                yield number, kept
        refused: list[tuple[int, str]] = []
        for outcome in run_jobs(self._jobs(explainer, todo, refused), self._pool):
            assert isinstance(outcome.key, int)
            self.n_asked += outcome.n_forward
            if outcome.error is not None:
                yield outcome.key, outcome.error
                continue
            found = (outcome.result.values, outcome.result.n_forward)
            self._keep((key, outcome.key), found)
            yield outcome.key, found
        yield from refused

    def _jobs(
        self, explainer: Explainer, todo: Sequence[int], refused: list[tuple[int, str]]
    ) -> Iterator[Job]:
        """A job an image; what cannot even be begun is noted for its own image."""
        if not todo:
            return
        try:
            if _material_key(explainer) not in self._prepared:
                self._material.prepare(self._pool, [(self._trial_id, explainer)])
                self._prepared.add(_material_key(explainer))
        except RaybenchError as error:
            refused += [(number, message(error)) for number in todo]
            return
        for number in todo:
            try:
                yield self._job(explainer, number)
            except RaybenchError as error:
                refused.append((number, message(error)))

    def _job(self, explainer: Explainer, number: int) -> Job:
        record = self._records[number]
        key = (record.image_id, _material_key(explainer))
        subject = self._subjects.get(key)
        if subject is None:
            made = job_of(self._material, Item(self._trial_id, explainer, record))
            subject = self._subjects[key] = made.subject
        model = (self._model or self._trial_id) if explainer.uses_model else None
        return Job(number, MapAlone(explainer), subject, model)

    def _keep(self, key: tuple[str, int], found: tuple[Values, int]) -> None:
        self._maps[key] = found
        self._map_bytes += found[0].nbytes
        while self._map_bytes > _MAP_BYTES:
            self._map_bytes -= self._maps.popitem(last=False)[1][0].nbytes


def _material_key(explainer: Explainer) -> str:
    """Equal for settings that are given the same subjects."""
    fill = getattr(explainer, "fill", None)
    near = (fill.n, fill.embedding, fill.among) if isinstance(fill, Neighbour) else None
    return f"{explainer.needs_prior} {near}"


def curve(candidate: Candidate, values: Values, truth: Truth) -> Floats:
    """IoU of one image at every candidate threshold, `[C]`; at a fixed one C times the same."""
    explainer = candidate.explainer
    clip = truth.lungs if explainer.clip_to_lungs else None
    grid = np.array([explainer.threshold]) if candidate.rule == "fixed" else np.array(CANDIDATES)
    values = oriented(values, explainer.sign)
    found = iou_at(grid, values, truth.infection, clip, explainer.median_filter)
    return np.broadcast_to(found, (len(CANDIDATES),))
