"""The command line of a sweep: a file, flags, and any setting as a dotted key."""

from __future__ import annotations

import difflib
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

_FLAGS = {
    "--dry-run": "dry_run",
    "--resume": "resume",
    "--overwrite": "overwrite",
    "--help": "help",
    "-h": "help",
}


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
        ConfigError: a key without a value, or a word that is no file, no flag and no key.
    """
    sweep: Path | None = None
    flags: set[str] = set()
    overrides: list[tuple[str, str]] = []
    problems: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if word in _FLAGS:
            flags.add(_FLAGS[word])
        elif not word.startswith("-"):
            if sweep is not None:
                problems.append(f"{word}: expected one sweep file, found {sweep} already")
            sweep = Path(word)
        elif (problem := _key_problem(word, key)) is not None:
            problems.append(problem)
        elif equals:
            overrides.append((key, value))
        elif not words or words[0].startswith("--"):
            found = words[0] if words else "the end of the line"
            problems.append(f"--{key}: expected a value after it, found {found}")
        else:
            overrides.append((key, words.pop(0)))
    if problems:
        raise ConfigError(problems)
    return Arguments(
        sweep=sweep or QUICKSTART,
        overrides=tuple(overrides),
        dry_run="dry_run" in flags,
        resume="resume" in flags,
        overwrite="overwrite" in flags,
        help="help" in flags,
    )


def _key_problem(word: str, key: str) -> str | None:
    """Why a word that begins with a dash is no dotted key, or None."""
    if f"--{key}" in _FLAGS:
        return f"{word}: --{key} takes no value"
    near = difflib.get_close_matches(f"--{key}", _FLAGS, n=1, cutoff=0.8)
    if near and key.split(".")[0] not in SweepConfig.model_fields:
        return f"{word}: no such flag; did you mean {near[0]}?"
    if not word.startswith("--") or not all(key.split(".")):
        return f"{word}: expected a flag ({', '.join(_FLAGS)}) or a dotted key (--explain.n_test 8)"
    return None


_LONG = 60


def help_text() -> str:
    """The whole help page: every setting with its type, default and meaning."""
    lines = [_INTRO, "Settings (key, type, default, meaning):"]
    for key, kind, default, meaning in help_lines(SweepConfig):
        if not kind:
            lines += ["", *_wrap(f"{key} {meaning}", first="")]
            continue
        if len(kind) > _LONG:  # a large family: the line may be broken between its members
            kind = kind.replace("|", " | ")
        shown = f" = {default}" if default not in ("", "required") else ""
        needed = " (required)" if default == "required" else ""
        lines += _wrap(f"{key}  <{kind}>{shown}{needed}", first="  ")
        lines += _wrap(meaning, first=" " * 8)
    return "\n".join(lines)


def _wrap(text: str, first: str) -> list[str]:
    # A long choice has no spaces to be broken at; it is given some.
    words = (word.replace("|", "| ") if len(word) > 80 else word for word in text.split(" "))
    return textwrap.wrap(
        " ".join(words),
        92,
        initial_indent=first,
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )
