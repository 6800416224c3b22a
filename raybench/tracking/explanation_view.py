"""Each row of the leaderboard as a run of its own, so that MLflow can compare explainers.

Its metrics have plain names (`iou`, `dice`), the ends of their intervals stand in a group of
their own (`interval/iou_low`). Parameters are the backbone, the explainer, the threshold rule, the
explainer's settings (`setting.n_samples`) and the trial's hyperparameters, so that parallel
coordinates can have any of them beside the figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from raybench.tracking import metrics
from raybench.tracking.maps import NO_TRIAL
from raybench.tracking.shown import RunView
from raybench.tracking.stored_config import flatten

KEYS = ("backbone", "explainer", "threshold_rule")
TABLE = "leaderboard.json"
TABLE_TAG = json.dumps([{"path": TABLE, "type": "table"}])
"""What MLflow's tag `mlflow.loggedArtifacts` says, so that the UI draws it as a table."""

_ENDS = ("_low", "_high")
_FIRST = ("iou", "dice", "hausdorff")
_OF_TRIAL = ("classification/val_accuracy", "classification/test_accuracy")
_SHOWN = (
    *("backbone", "trial_id", "explainer", "threshold_rule", "n", "iou", "iou_low", "iou_high"),
    *("dice", "dice_low", "dice_high", "hausdorff", "severity_mae", "n_forward", "seconds"),
    *("iou_rank", "above_whole_lung", "unmoved"),
)


def explanations(
    board: pd.DataFrame,
    trials: Sequence[RunView],
    config: Mapping[str, Any],
    winners: Mapping[str, Sequence[Mapping[str, Any]]],
    written_ms: int,
) -> tuple[RunView, ...]:
    """A run a row of the leaderboard; none of a row that names no trial.

    Args:
        board: leaderboard.csv, maybe empty.
        trials: the sweep's, which these are nested below.
        winners: rows of explainer_search.csv by trial.
        written_ms: when the leaderboard was.
    """
    if not {*KEYS, "trial_id"} <= {*board.columns}:
        return ()
    above = {trial.trial_id: trial for trial in trials}
    settings = _settings(config)
    found = [row for row in board.to_dict("records") if str(row["trial_id"]) in above]
    return tuple(
        _run(
            {str(k): v for k, v in row.items()},
            above[str(row["trial_id"])],
            _own_settings(row, settings, winners),
            written_ms,
        )
        for row in found
    )


def logged_table(board: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    """The leaderboard's main columns as the JSON that MLflow shows as a table of its own."""
    columns = [name for name in _SHOWN if name in board]
    if board.empty or not columns:
        return ()
    ordered = board.sort_values("iou", ascending=False) if "iou" in board else board
    text = ordered[columns].round(4).to_json(orient="split", index=False)
    return ((TABLE, str(text)),)


def _run(
    row: Mapping[str, Any], trial: RunView, settings: Mapping[str, str], written_ms: int
) -> RunView:
    backbone, explainer, rule = (str(row[key]) for key in KEYS)
    named = {"backbone": backbone, "explainer": explainer, "threshold_rule": rule}
    texts = {k: str(v) for k, v in row.items() if isinstance(v, str) and k not in named}
    texts.pop("trial_id", None)
    # The UI's compare page begins with the first metric of the first run.
    figures = {_named(k): row[k] for k in dict.fromkeys([*_FIRST, *row]) if k in row}
    of_trial = {k: v for k, v in trial.metrics.items() if k in _OF_TRIAL}
    return replace(
        trial,
        name=f"{explainer} {rule}, {backbone}",
        params={**trial.params, **named, "trial": str(trial.trial_id), **settings},
        tags={"kind": "explanation", "trial": str(trial.trial_id), **named, **texts},
        curve=(),
        n_epoch_events=0,
        metrics=metrics.finite(figures) | of_trial,
        metrics_ms=written_ms,
        status="FINISHED",
        end_ms=max(written_ms, trial.start_ms),
        files=(),
        explanation=f"{explainer}.{rule}",
    )


def _named(column: str) -> str:
    """`iou`, but `interval/iou_low`."""
    return metrics.metric_name(*(["interval"] if column.endswith(_ENDS) else []), column)


def _settings(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Settings of each explainer that the sweep names, by its title."""
    asked = config.get("explain")
    listed = asked.get("explainers") if isinstance(asked, Mapping) else None
    found = {}
    for one in listed if isinstance(listed, list) else ():
        title = str(one.get("label") or one.get("name"))
        found[title] = _prefixed((k, v) for k, v in flatten(one).items() if k != "label")
    return found


def _own_settings(
    row: Mapping[Any, Any],
    settings: Mapping[str, dict[str, str]],
    winners: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, str]:
    """Those of the explainer of one row; of one that a search found, the settings found."""
    title = str(row["explainer"])
    if title in settings:
        return settings[title]
    own = [
        winner
        for winner in [*winners.get(str(row["trial_id"]), ()), *winners.get(NO_TRIAL, ())]
        if title.startswith(str(winner["explainer"]))
    ]
    if not own:
        return {}
    # The tuned one is named after it: of two that begin alike, the longer name is meant.
    winner = max(own, key=lambda one: len(str(one["explainer"])))
    base = settings.get(str(winner["explainer"]), {})
    return base | _prefixed(json.loads(str(winner["parameters"])).items())


def _prefixed(pairs: Iterable[tuple[str, Any]]) -> dict[str, str]:
    return {metrics.metric_name(f"setting.{k}"): str(v) for k, v in pairs if v is not None}
