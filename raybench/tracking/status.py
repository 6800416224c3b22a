"""Where a sweep stands, told from its run folder alone: no Ray, no MLflow, nothing is locked.

Epochs are counted from the event log, maps and what is asked of them from their tables; what a
stage has to do in all stands in its `stage_started` event.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybench.tracking.events import Event
from raybench.tracking.run_folder import RunFolder

_MAPS = "maps_"
_OTHERS = ("maps_supervised", "maps_lungs")
_CLOSER = ("faithfulness", "sanity", "stability")


@dataclass(frozen=True, slots=True)
class StageStatus:
    """One stage that has begun.

    Attributes:
        done, total: in `unit`s; None where the stage counts none (or did not say how many).
        seconds: since it began, or that it took.
        rate: units a second since it began; None before the first.
        seconds_left: at that rate; None where it cannot be told.
    """

    name: str
    state: str
    unit: str | None
    done: int | None
    total: int | None
    seconds: float
    rate: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """Where a sweep stands.

    Attributes:
        state: `running`, `interrupted` (begun, and nobody is at work on it) or `finished`.
        trials: how many are `running`, `finished`, `stopped` (by the scheduler or the budget) and
            `failed`; of classifiers.
        n_trials: that the sweep asks for; None where its settings do not say.
        best: trial_id, backbone and val_accuracy of the best epoch so far; None before the first.
        maps, maps_failed: made, and of these failed for now.
        since: seconds since the last event.
    """

    name: str
    state: str
    stages: tuple[StageStatus, ...]
    trials: dict[str, int]
    n_trials: int | None
    best: dict[str, Any] | None
    maps: int
    maps_failed: int
    warnings: tuple[str, ...]
    since: float


def sweep_status(run: RunFolder, now: float | None = None) -> SweepStatus:
    """Read a run folder, of a finished or unfinished sweep.

    Args:
        now: Unix seconds; None: now.

    Raises:
        RunFolderError: this is not a run folder.
        StorageError: a file of it is damaged.
    """
    config, now = run.config, time.time() if now is None else now
    at_work = run.is_at_work  # before the log is read: one that ends meanwhile is finished in it
    events = run.events.read()
    finished = any(e["kind"] == "sweep_finished" for e in events)
    state = "finished" if finished else "running" if at_work else "interrupted"
    n_maps, n_failed = _maps(run)
    last = float(events[-1]["time"]) if events else now
    done = {"training": _epochs(events, config), "explaining": n_maps - n_failed}
    begun = {str(e["stage"]) for e in events if e["kind"] == "stage_started"}
    done |= {stage: looked_at(run, stage) for stage in _CLOSER if stage in begun}
    said = [str(e["message"]) for e in events if e["kind"] == "warning"]
    return SweepStatus(
        name=str(config.get("name") or run.path.name),
        state=state,
        stages=_stages(events, done, now if state == "running" else last, state),
        trials=_trials(events, state),
        n_trials=_n_trials(config),
        best=_best(events),
        maps=n_maps - n_failed,
        maps_failed=n_failed,
        warnings=tuple(dict.fromkeys(said)),
        since=max(0.0, now - last),
    )


def clock(seconds: float) -> str:
    """`34 s`, `5:03 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def _stages(
    events: Sequence[Event], done: Mapping[str, int], now: float, state: str
) -> tuple[StageStatus, ...]:
    starts = {e["stage"]: e for e in events if e["kind"] == "stage_started"}  # the last of each
    ends = {e["stage"]: e for e in events if e["kind"] == "stage_finished"}
    return tuple(
        _stage(start, ends.get(name), done.get(name), events, now, state)
        for name, start in starts.items()
    )


def _stage(
    start: Event,
    end: Event | None,
    done: int | None,
    events: Sequence[Event],
    now: float,
    state: str,
) -> StageStatus:
    name = str(start["stage"])
    counts = [(k, v) for k, v in start.items() if k not in {"time", "kind", "stage", "known"}]
    unit, total = counts[0] if counts and isinstance(counts[0][1], int) else (None, None)
    if end is not None and float(end["time"]) >= float(start["time"]):
        n_done = total if done is None or name == "training" else done
        return StageStatus(name, "finished", unit, n_done, total, float(end["seconds"]), None, None)
    seconds = max(0.0, now - float(start["time"]))
    if total is None:
        done = None
    known = int(start["known"]) if "known" in start else _before(events, start)
    fresh = 0 if done is None else done - known
    rate = fresh / seconds if fresh > 0 and seconds > 0 else None
    left = None if rate is None or total is None or done is None else (total - done) / rate
    own = "running" if state == "running" else "interrupted"
    return StageStatus(name, own, unit, done, total, seconds, rate, left)


def _before(events: Sequence[Event], start: Event) -> int:
    """Epochs of classifiers that were there when the stage began."""
    return len(_seen([e for e in events if float(e["time"]) < float(start["time"])]))


def _seen(events: Sequence[Event]) -> set[tuple[str, int]]:
    return {
        (str(e["trial_id"]), int(e["epoch"]))
        for e in events
        if e["kind"] == "epoch" and "task" not in e
    }


def _epochs(events: Sequence[Event], config: Mapping[str, Any]) -> int:
    """Epochs that need not be trained any more: a trial that was stopped early has none left."""
    whole = {str(b.get("name")): _whole(b) for b in _listed(config, "backbones")}
    backbone = {str(e["trial_id"]): str(e["backbone"]) for e in events if "backbone" in e}
    n_seen: dict[str, int] = {}
    for trial_id, _ in _seen(events):
        n_seen[trial_id] = n_seen.get(trial_id, 0) + 1
    ended = {trial_id for trial_id, last in _endings(events).items() if last != "running"}
    return sum(
        max(n, whole.get(backbone.get(trial_id, ""), 0) if trial_id in ended else 0)
        for trial_id, n in n_seen.items()
    )


def _whole(backbone: Mapping[str, Any]) -> int:
    """Epochs of one trial of a backbone; 0 where the settings do not say."""
    each = [phase.get("epochs") for phase in _listed(backbone, "phases")]
    return sum(n for n in each if isinstance(n, int))


def _listed(config: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = config.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _n_trials(config: Mapping[str, Any]) -> int | None:
    search = config.get("search")
    each = search.get("trials_per_backbone") if isinstance(search, Mapping) else None
    return each * len(_listed(config, "backbones")) if isinstance(each, int) else None


def _endings(events: Sequence[Event]) -> dict[str, str]:
    """How each classifier's trial stands, by its last event: `running`, or how it ended."""
    found: dict[str, str] = {}
    others = {e["trial_id"] for e in events if "task" in e and "trial_id" in e}
    for event in events:
        if "trial_id" not in event or event["trial_id"] in others:
            continue
        if event["kind"] in {"trial_started", "epoch"}:
            found[str(event["trial_id"])] = "running"
        elif event["kind"] == "trial_finished":
            found[str(event["trial_id"])] = str(event["status"])
    return found


def _trials(events: Sequence[Event], state: str) -> dict[str, int]:
    counts = dict.fromkeys(("running", "finished", "stopped", "failed"), 0)
    for ending in _endings(events).values():
        if ending in counts:
            counts[ending] += 1
    if state != "running":
        counts["unfinished"] = counts.pop("running")
    return counts


def _best(events: Sequence[Event]) -> dict[str, Any] | None:
    found = [e for e in events if e["kind"] == "epoch" and "task" not in e]
    found = [e for e in found if isinstance(e.get("val_accuracy"), int | float)]
    if not found:
        return None
    best = max(found, key=lambda e: float(e["val_accuracy"]))
    return {name: best[name] for name in ("trial_id", "backbone", "val_accuracy", "epoch")}


def _maps(run: RunFolder) -> tuple[int, int]:
    """Maps in the tables, and how many of them failed (what was made later counts)."""
    made, failed = 0, 0
    for table in run.storage.names("parts"):
        if not table.startswith(_MAPS) or table.startswith(_OTHERS):
            continue
        last: dict[str, bool] = {}
        for frame in run.iterate(table, ["image_id", "error"]):
            last |= dict(zip(frame.image_id.astype(str), frame.error.notna(), strict=True))
        made += len(last)
        failed += sum(map(bool, last.values()))
    return made, failed


def looked_at(run: RunFolder, stage: str) -> int:
    """Maps that a closer look has asked about; what failed is asked again."""
    n = 0
    for table in run.storage.names("parts"):
        if table.startswith(f"{stage}_"):
            for frame in run.iterate(table):
                n += int(frame.error.isna().sum())
    return n
