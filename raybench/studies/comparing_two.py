"""One paired test between two explainers of finished sweeps, asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raybench.data.patients import patient_groups
from raybench.errors import RunFolderError
from raybench.report.paired_scatter import paired_scatter
from raybench.scoring.metrics import SCORES
from raybench.scoring.paired import ALPHA, Paired, paired
from raybench.studies.reading import Runs, config_of
from raybench.studies.sentences import NAMES, sentence


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
        metric = NAMES.get(self.metric, self.metric)
        return paired_scatter((first, second), self.names, metric, self.text)


def compare_two(
    runs: Runs, first: Selection, second: Selection, metric: str = "iou", by_patient: bool = True
) -> Compared:
    """Test over the Test images that both were scored on, as the sweeps test every pair.

    It is one test, asked for by name: nothing is corrected for others that were looked at.

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
    a, b = (_scores_of(runs, one, metric) for one in (first, second))
    both = pd.concat([a.rename("first"), b.rename("second")], axis=1, join="inner")
    if both.empty:
        raise RunFolderError(f"{first} and {second}: no image was scored for both")
    groups, unit = np.arange(len(both)), "image"
    if by_patient:
        groups, unit = _groups(runs, first.run, list(both.index))
    found = paired(both["first"].to_numpy(), both["second"].to_numpy(), groups)
    table = both.assign(difference=both["first"] - both["second"]).reset_index()
    names = (str(first), str(second))
    if first.run == second.run and first.backbone == second.backbone:
        names = (first.explainer, second.explainer)
    return Compared(found, _told(found, names, metric, unit), table, names, metric)


def _scores_of(runs: Runs, one: Selection, metric: str) -> pd.Series[float]:
    """The Test scores of a selection, by image."""
    board = runs.leaderboard[runs.leaderboard.run == runs.name(one.run)]
    for column, wanted in (
        ("backbone", one.backbone),
        ("explainer", one.explainer),
        ("threshold_rule", one.rule),
    ):
        there = list(dict.fromkeys(board[column].astype(str)))
        if wanted or len(there) > 1:
            board = board[board[column] == wanted]
        if board.empty:
            raise RunFolderError(f"{column}: expected one of {', '.join(there)}, found {wanted!r}")
    row, scores = board.iloc[0], runs.scores
    part = scores[
        (scores.run == row.run)
        & (scores.trial_id == row.trial_id)
        & (scores.explainer == row.explainer)
        & (scores.threshold_rule == row.threshold_rule)
        & (scores.split == "Test")
    ]
    found: pd.Series[float] = part.set_index("image_id")[metric]
    return found


def _groups(runs: Runs, run: str, image_ids: Sequence[str]) -> tuple[NDArray[np.int64], str]:
    """A number for each image, and what a number stands for."""
    data = config_of(runs.folders[runs.name(run)]).data
    known = {r.image_id: r for r in (data.explain or data).records()}
    missing = [i for i in image_ids if i not in known]
    if missing:
        raise RunFolderError(
            f"{len(missing)} images ({missing[0]}, ...) are not in the data set any more; "
            "by_patient=False does without it"
        )
    records = [known[i] for i in image_ids]
    unit = "patient" if any(r.patient is not None for r in records) else "image"
    return patient_groups(records), unit


def _told(found: Paired, names: tuple[str, str], metric: str, unit: str) -> str:
    # Means of images and ranks of patients can disagree; then neither is the better.
    agree = found.difference * found.rank_biserial > 0
    row: dict[str, Any] = asdict(found) | {"metric": metric, "unit": unit}
    row |= {"explainer": names[0], "other": names[1], "p_holm": found.p}
    row["significant"] = bool(found.p < ALPHA and agree)
    return sentence(row, {}, "one test, not corrected")
