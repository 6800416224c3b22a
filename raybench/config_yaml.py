"""Sweep files as they lie on disk: YAML, before anything is known of its meaning."""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from raybench.errors import ConfigError
from raybench.yaml_text import plain

_LARGEST = 1_000_000


def read_sweep_file(path: Path) -> dict[str, Any]:
    """The keys and values of a sweep file.

    Raises:
        ConfigError: there is none, or it is not YAML of keys and values.
    """
    try:
        raw = plain(_text(path))
    except FileNotFoundError:
        beside = _sweep_files(path.parent) or _sweep_files(Path("sweeps"))
        there = f"; there are: {', '.join(map(str, beside))}" if beside else ""
        raise ConfigError([f"{path}: no such sweep file{there}"]) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: expected a YAML file; {_unreadable(error)}"]) from None
    if not isinstance(raw, dict):
        found = {list: "a list", type(None): "nothing"}.get(type(raw), repr(raw)[:100])
        raise ConfigError([f"{path}: expected keys and values, found {found}"])
    odd = [key for key in raw if not isinstance(key, str)]
    if odd:
        raise ConfigError([f"{path}: expected names as keys, found {odd[0]!r}; quote it"])
    return raw


def _sweep_files(folder: Path) -> list[Path]:
    """Those of a folder that name a data set: other tools' YAML lies there, too."""
    found = []
    for path in sorted(folder.glob("*.yaml")):
        with suppress(OSError, ValueError):
            if re.search(r"^data\s*:", _text(path), re.MULTILINE):
                found.append(path)
    return found


def _text(path: Path) -> str:
    """The file's text; of a pipe only where the shell made it, `<(...)`: others may never end."""
    mode = path.stat().st_mode
    plain_file = stat.S_ISREG(mode) or stat.S_ISDIR(mode)  # opening a folder says what it is
    if not (plain_file or (stat.S_ISFIFO(mode) and path.parent == Path("/dev/fd"))):
        raise ValueError("it is no regular file (a pipe, a device)")
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"it is longer than {_LARGEST:,} bytes, which no sweep file is")
    return data.decode()


def _unreadable(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    return " ".join(str(error).split())
