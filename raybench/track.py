"""Show a run folder in MLflow: `python -m raybench.track RUN [--uri URI] [--experiment NAME]`.

It works at any time: while a sweep runs, after it was interrupted, or years later. Doing it twice
adds nothing twice.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from raybench.errors import RaybenchError
from raybench.tracking.mlflow_projection import ProjectionReport, check_uri, project
from raybench.tracking.run_folder import RunFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m raybench.track", description=(__doc__ or "").split("\n\n", 1)[1]
    )
    parser.add_argument("run", metavar="RUN", help="the run folder, runs/<sweep name>")
    parser.add_argument(
        "--uri", help="MLflow's tracking URI; default: mlflow.db in the run folder (sqlite)"
    )
    parser.add_argument("--experiment", help="the experiment's name; default: the sweep's name")
    options = parser.parse_args(arguments)
    try:
        run = RunFolder(options.run)
        finished = run.is_finished if run.digest else False
        if options.uri:
            check_uri(options.uri)
        run.bring()
        report = project(run, options.uri, options.experiment)
    except RaybenchError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    _print(report, finished)
    return 0


def _print(report: ProjectionReport, finished: bool) -> None:
    trials = f"{report.n_trials} trial" + ("" if report.n_trials == 1 else "s")
    state = "finished" if finished else "not finished yet; run this again for what comes"
    print(f"experiment {report.experiment!r}: {trials} ({state})")
    print(
        f"sent {report.n_metrics} metric values and {report.n_files} files "
        f"in {report.seconds:.1f} s to {report.uri}"
    )
    print(f"to look at it: {ui_command(report)}")


def ui_command(report: ProjectionReport) -> str:
    """How to open the UI on what was projected; the server listens on this machine only."""
    # Without the last part the UI opens on its pages for language models.
    page = f"#/experiments/{report.experiment_id}/runs?workflowType=machine_learning"
    if report.uri.startswith("http"):
        return f"open {report.uri.rstrip('/')}/{page}"
    beside = Path(sys.executable).with_name("mlflow")
    command = str(beside) if beside.exists() else "mlflow"
    if beside.is_relative_to(Path.cwd()):
        command = str(beside.relative_to(Path.cwd()))
    # Without job execution the server starts in half the time.
    return (
        f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {shlex.quote(command)} ui "
        f"--backend-store-uri {shlex.quote(report.uri)} --host 127.0.0.1 --port 5000\n"
        f"and open http://127.0.0.1:5000/{page}"
    )


if __name__ == "__main__":
    sys.exit(main())
