"""What a run folder says, as runs with parameters, tags, metrics and files. Knows no MLflow.

One view is the sweep's, one each trial's, one each row's of the leaderboard;
`metrics` names and computes the figures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from raybench.tracking import metrics
from raybench.tracking.events import Event
from raybench.tracking.explanation_view import TABLE_TAG, explanations, logged_table
from raybench.tracking.maps import NO_TRIAL
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.shown import Point, RunStatus, RunView, SweepView
from raybench.tracking.stored_config import flatten

_NOT_CURVES = {"time", "kind", "trial_id", "backbone", "epoch", "phase"}
_STEPS = {"trial_started", "epoch", "trial_finished"}
_UNETS = ("trials_supervised.csv", "trials_lungs.csv")
_ASKED = ("faithfulness.csv", "sanity.csv", "stability.csv")
_BOARDS = ("leaderboard.csv", "comparisons.csv", "strata.csv", *_ASKED)
_PAGE = "report.html"
_TABLES = (
    *("config.yaml", "trials.csv", *_UNETS, *_BOARDS, "published.csv", "explainer_search.csv"),
    _PAGE,
)
_MAX_VALUE = 6000
_MAX_ERROR = 500


def fingerprint(run: RunFolder) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files that the views are made of: equal means nothing new."""
    names = [run.path / name for name in ("events.jsonl", "scores.parquet", *_TABLES)]
    found = []
    for path in [*names, *_figures(run), *_page_files(run)]:
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append((path.name, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def view(run: RunFolder) -> SweepView:
    """Read the whole run folder, of a finished or unfinished sweep.

    Raises:
        RunFolderError: this is not a run folder.
        StorageError: a file of it is damaged.
    """
    config = run.config
    events = run.events.read()
    name = str(config.get("name") or run.path.name)
    trials = pd.concat([run.read_csv(name) for name in ("trials.csv", *_UNETS)])
    scores = run.read_parquet("scores.parquet")
    winners = _winners(run)
    starts = [e for e in events if e["kind"] == "sweep_started"] or events[:1]
    by_trial: dict[str, list[Event]] = {i: [] for i in _trial_ids(events, trials)}
    for event in events:
        if "trial_id" in event:
            by_trial[str(event["trial_id"])].append(event)
    start_ms = _ms(starts[0]) if starts else 0
    shown = tuple(
        _with_winners(
            _trial(run, trial_id, own or [{"time": start_ms / 1000, "kind": ""}], trials, scores),
            winners.get(trial_id, []),
        )
        for trial_id, own in by_trial.items()
    )
    board = run.read_csv("leaderboard.csv")
    when = _written(run, "leaderboard.csv", events)
    return SweepView(
        name=name,
        key=f"{run.digest}:{metrics.name_part(name)}",
        started=str(start_ms),
        parent=_with_winners(_sweep(run, config, name, events), winners.get(NO_TRIAL, [])),
        trials=shown,
        explanations=explanations(board, shown, config, winners, when),
    )


def _winners(run: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """What the search over explainers' settings found, by trial."""
    table = run.read_csv("explainer_search.csv")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table[table["winner"]].to_dict("records") if len(table) else []:
        found.setdefault(str(row["trial_id"]), []).append({str(k): v for k, v in row.items()})
    return found


def _with_winners(shown: RunView, winners: list[dict[str, Any]]) -> RunView:
    """A run with the settings that were found for its explainers, and their scores on Val."""
    params = {
        f"tuned_{row['explainer']}_{setting}": value
        for row in winners
        for setting, value in json.loads(row["parameters"]).items()
    }
    figures = {
        metrics.metric_name(f"tuned_{column}", row["explainer"]): row[column]
        for row in winners
        for column in ("val_iou", "val_iou_cv")
    }
    return replace(
        shown,
        params=shown.params | _params(params),
        metrics=shown.metrics | metrics.finite(figures),
    )


def _params(flat: Mapping[str, Any]) -> dict[str, str]:
    texts = {metrics.metric_name(key): str(value) for key, value in flat.items()}
    return {
        key: text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."
        for key, text in texts.items()
    }


def _sweep(run: RunFolder, config: Mapping[str, Any], name: str, events: list[Event]) -> RunView:
    ends = [event for event in events if event["kind"] == "sweep_finished"]
    done = [event for event in events if event["kind"] == "stage_finished"]
    stages = {
        metrics.metric_name("stage_seconds", event.get("stage")): event.get("seconds")
        for event in done
    }
    table = run.read_csv("leaderboard.csv")
    started = next((event for event in events if event["kind"] == "sweep_started"), {})
    tags = {"raybench.version": str(started["version"])} if "version" in started else {}
    tags |= {"kind": "sweep", "status": "finished" if ends else "unfinished"}
    if len(table):
        tags["mlflow.loggedArtifacts"] = TABLE_TAG
    files = [(run.path / named, "") for named in _TABLES if (run.path / named).is_file()]
    return RunView(
        trial_id=None,
        name=name,
        params=_params(flatten(config)),
        tags=tags,
        curve=(),
        n_epoch_events=0,
        metrics=metrics.finite({**stages, **metrics.leaderboard(table)}),
        metrics_ms=_written(run, "leaderboard.csv", events),
        status="FINISHED" if ends else "RUNNING",
        start_ms=_ms(events[0]) if events else 0,
        end_ms=_ms(ends[-1]) if ends else None,
        files=(
            *files,
            *((figure, "figures") for figure in _figures(run)),
            *((path, path.parent.relative_to(run.path).as_posix()) for path in _page_files(run)),
        ),
        texts=logged_table(table),
    )


def _trial(
    run: RunFolder, trial_id: str, own: list[Event], trials: pd.DataFrame, scores: pd.DataFrame
) -> RunView:
    epochs = [event for event in own if event["kind"] == "epoch"]
    started = next((e for e in reversed(own) if e["kind"] == "trial_started"), {})
    row = _row(trials, trial_id)
    backbone = str(next((e["backbone"] for e in own if "backbone" in e), row.get("backbone", "")))
    status, end_ms, tags = _ending(own)
    if "best" in row:
        tags["best"] = "true" if str(row["best"]).lower() in {"true", "1", "1.0"} else "false"
    figures = metrics.classification(row)
    if len(scores):
        figures.update(metrics.means(scores[scores["trial_id"].astype(str) == trial_id]))
    return RunView(
        trial_id=trial_id,
        name=f"{trial_id} {backbone}".strip(),
        params=_params({"backbone": backbone, **started.get("hyperparameters", {})}),
        tags={"kind": "trial", "backbone": backbone, **tags},
        curve=tuple(_curve(epochs)),
        n_epoch_events=len(epochs),
        metrics=metrics.finite(figures),
        metrics_ms=max(_written(run, t, own) for t in ("trials.csv", "scores.parquet")),
        status=status,
        start_ms=_ms(own[0]),
        end_ms=end_ms,
        files=tuple((f, "figures") for f in _figures(run) if _names(f.stem, trial_id)),
    )


def _ending(own: list[Event]) -> tuple[RunStatus, int | None, dict[str, str]]:
    """Status, end and tags of a trial. A trial that went on after a resume is running again."""
    last = next((e for e in reversed(own) if e["kind"] in _STEPS), own[-1])
    if last["kind"] != "trial_finished":
        return "RUNNING", None, {"status": "running"}
    tags = {"status": str(last.get("status", "finished"))}
    if last.get("error"):
        tags["error"] = str(last["error"])[:_MAX_ERROR]
    return ("FAILED" if tags["status"] == "failed" else "FINISHED"), _ms(last), tags


def _curve(epochs: list[Event]) -> Iterable[Point]:
    latest = {int(event["epoch"]): (number, event) for number, event in enumerate(epochs)}
    for step, (number, event) in latest.items():
        values = {key: value for key, value in event.items() if key not in _NOT_CURVES}
        for key, value in metrics.finite(values).items():
            name = "epoch_seconds" if key == "seconds" else metrics.metric_name(key)
            yield Point(name, value, _ms(event), step, number)


def _trial_ids(events: list[Event], trials: pd.DataFrame) -> list[str]:
    named = [str(event["trial_id"]) for event in events if "trial_id" in event]
    listed = [str(i) for i in trials["trial_id"]] if "trial_id" in trials else []
    return list(dict.fromkeys([*named, *listed]))


def _row(trials: pd.DataFrame, trial_id: str) -> dict[str, Any]:
    if "trial_id" not in trials:
        return {}
    rows = trials[trials["trial_id"].astype(str) == trial_id]
    return {str(k): v for k, v in rows.iloc[-1].items()} if len(rows) else {}


def _figures(run: RunFolder) -> list[Path]:
    return sorted((run.path / "figures").glob("[!.]*.png"))


def _page_files(run: RunFolder) -> list[Path]:
    """What lies beside the report for it to show."""
    return sorted(path for path in (run.path / "report").rglob("[!.]*") if path.is_file())


def _names(stem: str, trial_id: str) -> bool:
    """Whether a figure's name holds the trial's id as a word: `t1` is not in `roc_t10`."""
    return bool(re.search(rf"(?<![A-Za-z0-9]){re.escape(trial_id)}(?![A-Za-z0-9])", stem))


def _written(run: RunFolder, name: str, events: list[Event]) -> int:
    path = run.path / name
    times = [_ms(events[-1])] if events else [0]
    return max([*times, int(path.stat().st_mtime * 1000)] if path.is_file() else times)


def _ms(event: Event) -> int:
    return round(float(event["time"]) * 1000)
