"""Finished run folders read back, side by side: tables and the main figures.

For notebooks and scripts; nothing here is part of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure
from pydantic import ValidationError

from raybench.config import SweepConfig
from raybench.config_search import TUNED
from raybench.errors import ConfigError, RunFolderError
from raybench.report.figures import explainer_bars, training_curves
from raybench.tracking.run_folder import RunFolder
from raybench.training.segment import SUPERVISED

_SHOWN = (
    *("run", "backbone", "explainer", "n", "iou", "iou_low", "iou_high", "iou_rank"),
    "above_whole_lung",
)


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

    def backbones(self, run: str = "") -> list[str]:
        """The backbones on a run's leaderboard, the most accurate on Val first.

        Raises:
            RunFolderError: there is no such run.
        """
        trials = self.trials[self.trials.run == self.name(run)]
        there = set(self.leaderboard[self.leaderboard.run == self.name(run)].trial_id)
        ranked = trials[trials.trial_id.isin(there)].sort_values(
            ["val_accuracy", "trial_id"], ascending=[False, True]
        )
        return list(ranked.backbone)

    def board(self, rule: str = "val") -> pd.DataFrame:
        """The leaderboard by one threshold rule, its main columns, by run, backbone and IoU."""
        board = self.leaderboard
        ranked = board[board.threshold_rule == rule].sort_values(
            ["run", "backbone", "iou"], ascending=[True, True, False]
        )
        return ranked[list(_SHOWN)].reset_index(drop=True)

    def by_image(
        self, run: str = "", backbone: str = "", rule: str = "val", metric: str = "iou"
    ) -> pd.DataFrame:
        """Scores on Test of one classifier's explainers: a row an image, a column an explainer.

        Args:
            backbone: empty: the most accurate on Val.

        Raises:
            RunFolderError: there is no such run or backbone.
        """
        trial = self._trial(run, backbone)
        scores = self.scores[(self.scores.run == self.name(run)) & (self.scores.split == "Test")]
        part = scores[(scores.trial_id == trial) & (scores.threshold_rule == rule)]
        return part.pivot(index="image_id", columns="explainer", values=metric)

    def infection_maps(self, run: str = "", backbone: str = "") -> bytes:
        """The infection maps that the sweep drew of one classifier's explainers, as PNG.

        Args:
            backbone: empty: the most accurate on Val.

        Raises:
            RunFolderError: there is no such run or backbone.
            StorageError: the sweep drew none (`explain.panels: 0`).
        """
        name = f"figures/infection_maps_{self._trial(run, backbone)}.png"
        return self.folders[self.name(run)].storage.read(name)

    def bars(self, rule: str | None = None) -> Figure:
        """Mean IoU and Dice of every explainer, a column a backbone and run.

        Args:
            rule: the threshold rule; None: all of them.

        Raises:
            ValueError: nothing was scored by this rule.
        """
        board = self.leaderboard
        if rule is not None:
            board = board[board.threshold_rule == rule]
        told = board.backbone.fillna("")
        if len(self.folders) > 1:
            told = told + " (" + board.run + ")"
        names = {"references": self._references, "supervised": SUPERVISED}
        return explainer_bars(board.assign(backbone=told), **names)  # type: ignore[arg-type]

    def curves(self, run: str = "") -> Figure:
        """Loss and accuracy over epochs of one run's trials, the best in colour.

        Raises:
            RunFolderError: there is no such run.
            ValueError: it trained nothing.
        """
        name = self.name(run)
        trials = self.trials[self.trials.run == name]
        ids = set(trials.trial_id)
        events = self.folders[name].events.read()
        epochs = [e for e in events if e["kind"] == "epoch" and e["trial_id"] in ids]
        frame = pd.DataFrame(epochs)
        if len(frame):
            frame = frame.drop_duplicates(["trial_id", "epoch"], keep="last")
        return training_curves(frame, set(trials[trials.best].trial_id))

    def name(self, run: str) -> str:
        """The run meant; an empty name is the only one.

        Raises:
            RunFolderError: there is no such run.
        """
        if not run and len(self.folders) == 1:
            return next(iter(self.folders))
        if run not in self.folders:
            raise RunFolderError(f"run: expected one of {', '.join(self.folders)}, found {run!r}")
        return run

    def _trial(self, run: str, backbone: str) -> str:
        """The id of the trial that stands for a backbone on the leaderboard."""
        known = self.backbones(run)
        if backbone and backbone not in known:
            raise RunFolderError(
                f"backbone: expected one of {', '.join(known)}, found {backbone!r}"
            )
        board = self.leaderboard[self.leaderboard.run == self.name(run)]
        return str(board[board.backbone == (backbone or known[0])].trial_id.iloc[0])

    @cached_property
    def _references(self) -> list[str]:
        """Titles of the explainers that look at no model, in any run."""
        titles = [references_of(config_of(run)) for run in self.folders.values()]
        return list(dict.fromkeys(title for of_run in titles for title in of_run))

    def _joined(self, read: Callable[[RunFolder], pd.DataFrame]) -> pd.DataFrame:
        frames = [(name, read(folder)) for name, folder in self.folders.items()]
        parts = [frame.copy().assign(run=name) for name, frame in frames if len(frame)]
        if not parts:
            return pd.DataFrame(columns=["run"])
        whole = pd.concat(parts, ignore_index=True)
        return whole[["run", *(c for c in whole if c != "run")]]


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


def config_of(run: RunFolder) -> SweepConfig:
    """The settings of a run.

    Raises:
        ConfigError: they are not those of this version of raybench.
    """
    try:
        return SweepConfig.model_validate(run.config)
    except ValidationError as error:
        raise ConfigError(
            [
                f"{run.where}: its settings are not those of this version of raybench "
                f"({error.error_count()} differ); read it with the version that wrote it"
            ]
        ) from error


def references_of(config: SweepConfig) -> list[str]:
    """Titles of the explainers that look at no model, and of what the search finds of them."""
    own = [e.title for e in config.explain.explainers if not e.uses_model]
    return own + [f"{title}{TUNED}" for title in own]
