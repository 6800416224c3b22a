"""The front door: `python -m raybench.sweep [SWEEP.yaml] [--dotted.key value ...]`."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence

import yaml
from rich.console import Console

from raybench.cli.arguments import Arguments, help_text, parse
from raybench.cli.cluster import start_ray, stop_ray
from raybench.cli.stage_lines import stage_lines
from raybench.config import SweepConfig, load_config
from raybench.errors import RaybenchError
from raybench.masking import masked_deep
from raybench.studies.plan import plan_lines
from raybench.studies.sweep_study import Options, plan_sweep, run_sweep

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 well, 2 a mistake to mend, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    stage_lines()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        if arguments.help:
            print(help_text())
            return 0
        config = load_config(arguments.sweep, arguments.overrides)
        return _dry_run(config) if arguments.dry_run else _run(config, arguments)
    except RaybenchError as error:
        print(f"raybench: {error}", file=sys.stderr)
        return EXIT_ERROR


def _dry_run(config: SweepConfig) -> int:
    print("# resolved configuration")
    print(
        yaml.safe_dump(
            masked_deep(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True
        )
    )
    print("# plan (images counted by name, not opened)")
    print("\n".join(plan_lines(plan_sweep(config))))
    return 0


def _run(config: SweepConfig, arguments: Arguments) -> int:
    # A file or a pipe has no width of its own; tables are cut at 80 columns there otherwise.
    console = Console(width=None if sys.stdout.isatty() else 110)

    started: list[str] = []

    def start() -> None:
        started.append(start_ray(config.execution))
        console.print(started[-1], highlight=False)

    try:
        run_sweep(config, Options(arguments.resume, arguments.overwrite), console, start)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. What is finished lies in {config.run_folder}; go on with the same "
            "command and --resume.",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    finally:
        if started:
            stop_ray()
    return 0


if __name__ == "__main__":
    sys.exit(main())
