"""The command line of a sweep: a file, flags, and any setting as a dotted key."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raybench.config import SweepConfig
from raybench.config_errors import help_lines
from raybench.errors import ConfigError

QUICKSTART = Path(__file__).resolve().parents[2] / "sweeps" / "quickstart.yaml"

_INTRO = """\
usage: python -m raybench.sweep [SWEEP.yaml] [--dotted.key value ...]
                                [--dry-run] [--resume] [--overwrite] [--help]

Fine-tune backbones, explain their predictions, score the explanations against
radiologists' masks, and track every figure. Without a file it runs the quickstart.

  --dry-run      print the resolved configuration and the plan, and stop
  --resume       go on with an interrupted sweep: nothing finished is done again
  --overwrite    remove what an earlier sweep left in the output folder
  --help         this page

Every setting below can be given as a dotted key; its value is YAML. An element of a
list is named by its number or its name:
  --seed 1   --data.root data/cxr   --explain.explainers.lime.n_samples 200
"""


@dataclass(frozen=True)
class Arguments:
    """What was asked for on the command line."""

    sweep: Path
    overrides: tuple[tuple[str, str], ...]
    dry_run: bool
    resume: bool
    overwrite: bool
    help: bool


def parse(argv: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
        ConfigError: a key without a value, or a word that is no file and no key.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--dry-run", "--resume", "--overwrite", "--help"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-h", action="store_true", dest="help")
    known, rest = parser.parse_known_args(list(argv))
    sweep: Path | None = None
    overrides: list[tuple[str, str]] = []
    problems: list[str] = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            if sweep is not None:
                problems.append(f"{word}: expected one sweep file, found {sweep} already")
            sweep = Path(word)
            continue
        key, equals, value = word[2:].partition("=")
        found = value if equals else next(words, None)
        if found is None:
            problems.append(f"--{key}: expected a value after it, found the end of the line")
        else:
            overrides.append((key, found))
    if problems:
        raise ConfigError(problems)
    return Arguments(
        sweep=sweep or QUICKSTART,
        overrides=tuple(overrides),
        dry_run=known.dry_run,
        resume=known.resume,
        overwrite=known.overwrite,
        help=known.help,
    )


def help_text() -> str:
    """The whole help page: every setting with its type, default and meaning."""
    lines = [_INTRO, "Settings (key, type, default, meaning):"]
    for key, kind, default, meaning in help_lines(SweepConfig):
        if not kind:
            lines.append(f"\n{key} {meaning}")
            continue
        shown = f" = {default}" if default not in ("", "required") else ""
        needed = " (required)" if default == "required" else ""
        lines.append(f"  {key}  <{kind}>{shown}{needed}")
        lines += textwrap.wrap(meaning, 84, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)
