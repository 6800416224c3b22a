"""Make the report of a sweep again, or one that compares several.

python -m raybench.report RUN [RUN ...] [--output FILE]

It reads run folders, local or in a bucket, and the images that they explained; it computes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from raybench.errors import RaybenchError
from raybench.storage import Storage
from raybench.studies.report_stage import NAME, compare_runs
from raybench.tracking.run_folder import RunFolder

_EXIT_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m raybench.report", description=(__doc__ or "").split("\n\n", 1)[0]
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, runs/<sweep name>")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"the page; default: {NAME} in the run folder, of several runs in this folder",
    )
    options = parser.parse_args(arguments)
    try:
        runs = [RunFolder(root) for root in options.runs]
        page = compare_runs(runs)
        if options.output is None and len(runs) == 1:
            runs[0].write_file(NAME, page)
            where = runs[0].storage.path(NAME)
        else:
            path = (options.output or Path(NAME)).absolute()
            Storage(str(path.parent)).write(path.name, page)
            where = str(path)
    except RaybenchError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return _EXIT_ERROR
    print(f"{where} ({len(page) / 1e6:.1f} MB): open it in a browser")
    return 0
