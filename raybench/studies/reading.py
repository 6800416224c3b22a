"""Finished run folders read back, side by side: tables, the main figures, one paired test.

For notebooks and scripts; nothing here is part of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import ValidationError

from raybench.config import SweepConfig
from raybench.config_search import TUNED
from raybench.data.patients import patient_groups
from raybench.errors import ConfigError, RunFolderError
from raybench.report.figures import explainer_bars, training_curves
from raybench.report.paired_scatter import paired_scatter
from raybench.scoring.metrics import SCORES
from raybench.scoring.paired import ALPHA, Paired, paired
from raybench.studies.sentences import sentence
from raybench.tracking.run_folder import RunFolder
from raybench.training.segment import SUPERVISED
from raybench.types import XrayRecord


@dataclass(frozen=True)
class Selection:
    """Whose scores on Test are meant.

    Attributes:
        explainer: its title, as on the leaderboard.
        run: the sweep's name; empty where there is but one.
        backbone: empty where the run has but one on its leaderboard.
        rule: the threshold rule.
    """

    explainer: str
    run: str = ""
    backbone: str = ""
    rule: str = "val"

    def __str__(self) -> str:
        return " ".join(part for part in (self.run, self.backbone, self.explainer) if part)


@dataclass(frozen=True)
class Compared:
    """Two explainers on the same images.

    Attributes:
        test: the paired comparison, first minus second.
        text: the same in words.
        table: a row an image: `image_id`, `first`, `second`, `difference`.
        names: of the two.
        metric: what was compared.
    """

    test: Paired
    text: str
    table: pd.DataFrame
    names: tuple[str, str]
    metric: str

    def figure(self) -> Figure:
        """A dot an image (`report.paired_scatter`)."""
        first, second = (self.table[c].to_numpy(np.float64) for c in ("first", "second"))
        return paired_scatter((first, second), self.names, self.metric, self.text)


@dataclass(frozen=True)
class Runs:
    """Finished sweeps, each under its name."""

    folders: dict[str, RunFolder]

    @cached_property
    def trials(self) -> pd.DataFrame:
        """All rows of `trials.csv`, the column `run` first."""
        return self._joined(lambda run: run.read_csv("trials.csv"))

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """All rows of `leaderboard.csv`, the column `run` first."""
        return self._joined(lambda run: run.read_csv("leaderboard.csv"))

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        """All rows of `comparisons.csv`, the column `run` first."""
        return self._joined(lambda run: run.read_csv("comparisons.csv"))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """All rows of `scores.parquet`, the column `run` first."""
        return self._joined(lambda run: run.read_parquet("scores.parquet"))

    def figure(self, run: str, name: str) -> bytes:
        """A figure that the sweep drew, as PNG (`infection_maps_t0000.png`).

        Raises:
            RunFolderError: there is no such run.
            StorageError: the run has no such figure.
        """
        return self._of(run).storage.read(f"figures/{name}")

    def bars(self) -> Figure:
        """Mean IoU and Dice of every explainer, a column a backbone and run."""
        board = self.leaderboard
        told = board.backbone.fillna("")
        if len(self.folders) > 1:
            told = told + " (" + board.run + ")"
        names = {"references": self._references, "supervised": SUPERVISED}
        return explainer_bars(board.assign(backbone=told), **names)  # type: ignore[arg-type]

    def curves(self, run: str) -> Figure:
        """Loss and accuracy over epochs of one run's trials, the best in colour.

        Raises:
            RunFolderError: there is no such run.
            ValueError: it trained nothing.
        """
        trials = self.trials[self.trials.run == self._name(run)]
        ids = set(trials.trial_id)
        events = self._of(run).events.read()
        epochs = [e for e in events if e["kind"] == "epoch" and e["trial_id"] in ids]
        frame = pd.DataFrame(epochs)
        if len(frame):
            frame = frame.drop_duplicates(["trial_id", "epoch"], keep="last")
        return training_curves(frame, set(trials[trials.best].trial_id))

    def compare(
        self, first: Selection, second: Selection, metric: str = "iou", by_patient: bool = True
    ) -> Compared:
        """One paired test over the Test images that both were scored on, as the sweeps make it.

        One test, asked for by name: nothing is corrected for others that were looked at.

        Args:
            metric: a column of `scores.parquet` (`scoring.metrics.SCORES`).
            by_patient: images of one patient count together, where the first run's data set knows
                patients; its index is read for that, no image. False: each image for itself.

        Raises:
            RunFolderError: no such run, backbone, explainer, rule or metric, or no image in common.
            ConfigError: the run's settings are not those of this version of raybench.
            DataError: the data set is not where it was; `by_patient=False` does without.
        """
        if metric not in SCORES:
            raise RunFolderError(f"metric: expected one of {', '.join(SCORES)}, found {metric!r}")
        a, b = (self._scores_of(one, metric) for one in (first, second))
        both = pd.concat([a.rename("first"), b.rename("second")], axis=1, join="inner")
        if both.empty:
            raise RunFolderError(f"{first} and {second}: no image was scored for both")
        groups, unit = self._groups(first.run, list(both.index), by_patient)
        found = paired(both["first"].to_numpy(), both["second"].to_numpy(), groups)
        table = both.assign(difference=both["first"] - both["second"]).reset_index()
        names = (str(first), str(second))
        if first.run == second.run and first.backbone == second.backbone:
            names = (first.explainer, second.explainer)
        return Compared(found, _told(found, names, metric, unit), table, names, metric)

    @cached_property
    def _references(self) -> list[str]:
        """Titles of the explainers that look at no model, in any run."""
        titles = [_references_of(run) for run in self.folders.values()]
        return list(dict.fromkeys(title for of_run in titles for title in of_run))

    def _joined(self, read: Callable[[RunFolder], pd.DataFrame]) -> pd.DataFrame:
        frames = [(name, read(folder)) for name, folder in self.folders.items()]
        parts = [frame.assign(run=name) for name, frame in frames if len(frame)]
        if not parts:
            return pd.DataFrame(columns=["run"])
        whole = pd.concat(parts, ignore_index=True)
        return whole[["run", *(c for c in whole if c != "run")]]

    def _name(self, run: str) -> str:
        if not run and len(self.folders) == 1:
            return next(iter(self.folders))
        if run not in self.folders:
            raise RunFolderError(f"run: expected one of {', '.join(self.folders)}, found {run!r}")
        return run

    def _of(self, run: str) -> RunFolder:
        return self.folders[self._name(run)]

    def _scores_of(self, one: Selection, metric: str) -> pd.Series[float]:
        """The Test scores of a selection, by image."""
        board = self.leaderboard[self.leaderboard.run == self._name(one.run)]
        for column, wanted in (
            ("backbone", one.backbone),
            ("explainer", one.explainer),
            ("threshold_rule", one.rule),
        ):
            there = list(dict.fromkeys(board[column].astype(str)))
            if wanted or len(there) > 1:
                board = board[board[column] == wanted]
            if board.empty:
                raise RunFolderError(
                    f"{column}: expected one of {', '.join(there)}, found {wanted!r}"
                )
        row = board.iloc[0]
        scores = self.scores
        part = scores[
            (scores.run == row.run)
            & (scores.trial_id == row.trial_id)
            & (scores.explainer == row.explainer)
            & (scores.threshold_rule == row.threshold_rule)
            & (scores.split == "Test")
        ]
        found: pd.Series[float] = part.set_index("image_id")[metric]
        return found

    def _groups(
        self, run: str, image_ids: Sequence[str], by_patient: bool
    ) -> tuple[NDArray[np.int64], str]:
        """A number for each image, and what a number stands for."""
        if not by_patient:
            return np.arange(len(image_ids)), "image"
        known = {r.image_id: r for r in _explained_records(self._of(run))}
        records = [known[i] for i in image_ids]
        unit = "patient" if any(r.patient is not None for r in records) else "image"
        return patient_groups(records), unit


def read_runs(*folders: str) -> Runs:
    """Read the run folders of finished sweeps.

    Args:
        folders: paths, at least one; two sweeps of one name cannot be read together.

    Raises:
        RunFolderError: none is given, one is no run folder or not finished, or two have one name.
    """
    if not folders:
        raise RunFolderError("expected at least one run folder, found none")
    found: dict[str, RunFolder] = {}
    for path in folders:
        run = RunFolder(path)
        name = str(run.config["name"])
        if not run.is_finished:
            raise RunFolderError(f"{path}: this sweep is not finished; go on with --resume first")
        if name in found:
            raise RunFolderError(f"{path}: there is a run named {name!r} already; read it alone")
        found[name] = run
    return Runs(found)


def _config(run: RunFolder) -> SweepConfig:
    try:
        return SweepConfig.model_validate(run.config)
    except ValidationError as error:
        raise ConfigError(
            f"{run.path}: its settings are not those of this version of raybench "
            f"({error.error_count()} differ); read it with the version that wrote it"
        ) from error


def _references_of(run: RunFolder) -> list[str]:
    own = [e.title for e in _config(run).explain.explainers if not e.uses_model]
    return own + [f"{title}{TUNED}" for title in own]


def _explained_records(run: RunFolder) -> list[XrayRecord]:
    data = _config(run).data
    return (data.explain or data).records()


def _told(found: Paired, names: tuple[str, str], metric: str, unit: str) -> str:
    # Means of images and ranks of patients can disagree; then neither is the better.
    agree = found.difference * found.rank_biserial > 0
    row: dict[str, Any] = asdict(found) | {"metric": metric, "unit": unit}
    row |= {"explainer": names[0], "other": names[1], "p_holm": found.p}
    row["significant"] = bool(found.p < ALPHA and agree)
    return sentence(row, {}, "one test, not corrected")
