"""What the stages of a sweep share."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tqdm import tqdm

from raybench.config import SweepConfig
from raybench.data.across import Explained
from raybench.data.lungs import WithLungs
from raybench.data.preprocess import Preprocess
from raybench.explain import Explainer
from raybench.explain.spaces import Rule
from raybench.models.checkpoint import ENSEMBLE
from raybench.scoring.thresholds import RULES, ThresholdRule
from raybench.tracking.maps import NO_TRIAL
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.status import clock
from raybench.types import Dataset, Split, XrayRecord

log = logging.getLogger(__name__)
progress = logging.getLogger("raybench.progress")


@dataclass(frozen=True)
class Tuned:
    """A winner of the search over explainers' settings.

    Attributes:
        explainer: with the settings found, under a title of its own.
        rule: what its threshold was chosen by.
        images: ids of the Val images that it was chosen on; its threshold is, too.
    """

    explainer: Explainer
    rule: Rule
    images: tuple[str, ...]

    def rules(self, asked: Sequence[ThresholdRule]) -> tuple[ThresholdRule, ...]:
        """Those of the sweep's that it is scored by, and its own in any case.

        A threshold that was not searched is nothing it was found with: `fixed` is left out then.
        """
        every = {*asked, self.rule} - ({"fixed"} if self.rule != "fixed" else set())
        return tuple(rule for rule in RULES if rule in every)


Winners = Mapping[str, Sequence[Tuned]]
"""By trial, `NO_TRIAL` for explainers that ask no model; empty where nothing was searched."""


def winners_for(winners: Winners, trial_id: str) -> list[Tuned]:
    """Those that a trial's maps are scored by: its own, and those that ask no model."""
    return [*winners.get(trial_id, ()), *winners.get(NO_TRIAL, ())]


def explains(explainer: Explainer, trial_id: str) -> bool:
    """Whether an explainer can explain a trial's model: an ensemble has no layers of its own."""
    return trial_id != ENSEMBLE or not explainer.looks_inside


@dataclass(frozen=True)
class Context:
    """A sweep under way.

    Attributes:
        records: all usable images, as the scan left them.
        explained: by split (Val, Test), the images with infection that are explained.
        other: the data set that these are of, where it is not the classifiers'.
        data_digest: `Scan.digest` of the classifiers' data set.
    """

    config: SweepConfig
    run: RunFolder
    dataset: Dataset
    records: tuple[XrayRecord, ...]
    explained: dict[Split, tuple[XrayRecord, ...]]
    other: Explained | WithLungs | None = None
    data_digest: str = ""

    @property
    def source(self) -> Dataset:
        """What the explained images are read from."""
        return self.dataset if self.other is None else self.other

    def class_of(self, record: XrayRecord) -> str:
        """The classifier's name for the class of an explained image."""
        return record.label if self.other is None else self.other.mapped(record.label)

    def of(self, split: Split) -> tuple[XrayRecord, ...]:
        """The records of one split."""
        return tuple(r for r in self.records if r.split == split)

    def preprocess_of(self, trial_id: str | None) -> Preprocess:
        """What a trial's images went through; for None, what explainers see that ask no model."""
        if trial_id is None or trial_id == NO_TRIAL:
            return self.config.base_preprocess
        if not self.config.varies_preprocess:
            return self.config.base_preprocess
        return self._preprocesses[trial_id]

    @cached_property
    def _preprocesses(self) -> dict[str, Preprocess]:
        trials = self.run.read("trials")  # as training wrote them; asked for only after it
        rows = trials[list(Preprocess.model_fields)].to_dict("records")
        return {
            str(trial_id): Preprocess.model_validate(row)
            for trial_id, row in zip(trials.trial_id, rows, strict=True)
        }

    @contextmanager
    def stage(self, name: str, **counts: Any) -> Iterator[None]:
        """Log the beginning and the end of a stage; what raises inside leaves it unfinished."""
        self.run.events.append("stage_started", stage=name, **counts)
        said = "".join(f", {n:,} {what}" for what, n in counts.items())
        progress.info("%s begins%s", name, said)
        started = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - started, 3)
        self.run.events.append("stage_finished", stage=name, seconds=seconds, **counts)
        progress.info("%s ended after %s%s", name, clock(seconds), said)

    def warn_once(self, text: str) -> None:
        """A `warning` event, and a line of the log, unless the sweep has it already."""
        said = (e["message"] for e in self.run.events.read() if e["kind"] == "warning")
        if text not in said:
            log.warning("%s", text)
            self.run.events.append("warning", message=text)

    def has_finished(self, stage: str) -> bool:
        """Whether a stage came to its end, now or before an interruption."""
        return any(
            e["kind"] == "stage_finished" and e["stage"] == stage for e in self.run.events.read()
        )


def explained_images(
    records: Sequence[XrayRecord],
    infection_class: str,
    limits: dict[Split, int | None],
    with_infection: frozenset[str] | None = None,
) -> dict[Split, tuple[XrayRecord, ...]]:
    """The images whose explanations are scored: those of the infection class with infection drawn.

    Args:
        limits: how many of each split; None takes all. A limit takes them evenly over the list, so
            that few images are not all of one patient.
        with_infection: image ids whose mask is known to hold a pixel; None where only names are
            known, and an image with a mask counts.
    """
    chosen: dict[Split, tuple[XrayRecord, ...]] = {}
    for split, limit in limits.items():
        pool = [
            r
            for r in records
            if r.split == split
            and r.label == infection_class
            and r.infection_mask is not None
            and (with_infection is None or r.image_id in with_infection)
        ]
        n = len(pool) if limit is None else min(limit, len(pool))
        chosen[split] = tuple(pool[i * len(pool) // n] for i in range(n))
    return chosen


def progress_bar(total: int, what: str, unit: str) -> Any:
    """A bar on standard error, with rate and time left."""
    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True)
