"""Where a sweep stands: running, interrupted or finished, how far, and what to do next.

python -m raybench.status RUN [--json] [--watch [SECONDS]]

It reads the run folder alone, so it works beside the sweep, from another machine, or years later.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console

from raybench.errors import RaybenchError
from raybench.tracking import tracking_uri
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.status import StageStatus, SweepStatus, clock, sweep_status

_EXIT_ERROR = 2
_EXIT_INTERRUPTED = 130
_BAR = 24
_N_WARNINGS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m raybench.status", description=(__doc__ or "").split("\n\n", 1)[0]
    )
    parser.add_argument("run", metavar="RUN", help="the run folder, runs/<sweep name>")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=2.0,
        metavar="SECONDS",
        help="look again every so often (2 s) until the sweep ends",
    )
    options = parser.parse_args(arguments)
    try:
        return _show(RunFolder(options.run), options.json, options.watch)
    except RaybenchError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return _EXIT_ERROR
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.1 to 3600 seconds, found {text}")
    return value


def _show(run: RunFolder, as_json: bool, watch: float | None) -> int:
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    while True:
        status = sweep_status(run)
        if as_json:
            print(json.dumps(asdict(status) | {"next": next_steps(run, status)}), flush=True)
        else:
            if watch is not None and console.is_terminal:
                console.clear()
            for line in (*lines(status), *_next_lines(next_steps(run, status))):
                console.print(line, markup=False, soft_wrap=True)
        if watch is None or status.state != "running":
            return 0
        time.sleep(watch)


def lines(status: SweepStatus) -> Iterator[str]:
    """What a person reads."""
    quiet = "" if status.state == "finished" else f", last event {clock(status.since)} ago"
    yield f"{status.name}: {status.state}{quiet}"
    yield ""
    for stage in status.stages:
        yield f"  {_stage(stage)}"
    asked = "" if status.n_trials is None else f" of {status.n_trials}"
    begun = sum(status.trials.values())
    each = ", ".join(f"{n} {what}" for what, n in status.trials.items() if n)
    yield ""
    yield f"  trials   {begun}{asked} begun{': ' + each if each else ''}"
    if status.best is not None:
        best = status.best
        yield (
            f"  best     {best['trial_id']} {best['backbone']}, accuracy "
            f"{best['val_accuracy']:.3f} on Val after epoch {best['epoch'] + 1}"
        )
    if status.maps or status.maps_failed:
        failed = f", {status.maps_failed:,} failed" if status.maps_failed else ""
        yield f"  maps     {status.maps:,} made{failed}"
    for message in status.warnings[-_N_WARNINGS:]:
        yield f"  warning  {message[:300]}{'...' if len(message) > 300 else ''}"
    if len(status.warnings) > _N_WARNINGS:
        yield f"  ({len(status.warnings) - _N_WARNINGS} earlier warnings: see events.jsonl)"


def _stage(stage: StageStatus) -> str:
    text = f"{stage.name:<20} {stage.state:<11} {clock(stage.seconds):>9}"
    if stage.total is None or stage.done is None:
        return text
    if stage.state == "finished":
        return f"{text}  {stage.done:,} {stage.unit}"
    share = min(1.0, stage.done / max(1, stage.total))
    full = int(share * _BAR)
    text += f"  {'█' * full}{'░' * (_BAR - full)} {stage.done:,}/{stage.total:,} {stage.unit}"
    if stage.rate is not None:
        text += f", {stage.rate:.2g}/s"
    if stage.seconds_left is not None and stage.state == "running":
        text += f", {clock(stage.seconds_left)} left"
    return text


def next_steps(run: RunFolder, status: SweepStatus) -> dict[str, str]:
    """What can be done next: its meaning, and the command or the file."""
    where = shlex.quote(run.where)
    found = {}
    if status.state == "interrupted":
        parent = shlex.quote(run.where.rstrip("/").rsplit("/", 1)[0])
        config = shlex.quote(f"{run.where}/config.yaml")
        if run.storage.is_local:
            found["go on"] = f"python -m raybench.sweep {config} --output {parent} --resume"
        else:
            found["go on"] = "the command that it was started with, and --resume"
    if status.state == "running":
        found["watch"] = f"python -m raybench.status {where} --watch"
    if (run.path / "mlflow.db").exists():
        uri = shlex.quote(tracking_uri.default(run.path))
        found["compare"] = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"
    else:
        found["compare"] = f"python -m raybench.track {where}"
    if run.storage.exists("report.html"):
        found["read"] = f"{run.where}/report.html"
    elif status.state == "finished":
        found["read"] = f"python -m raybench.report {where}"
    return found


def _next_lines(steps: dict[str, str]) -> Iterator[str]:
    yield ""
    yield "What next:"
    for meaning, command in steps.items():
        yield f"  {meaning:<8} {command}"
