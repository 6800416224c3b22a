"""Sweep files as they lie on disk: YAML, before anything is known of its meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raybench.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML, but a key that stands twice is a mistake: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} stands here for the second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def read_sweep_file(path: Path) -> dict[str, Any]:
    """The keys and values of a sweep file.

    Raises:
        ConfigError: there is none, or it is not YAML of keys and values.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        beside = sorted(path.parent.glob("*.yaml")) or sorted(Path("sweeps").glob("*.yaml"))
        there = f"; there are: {', '.join(map(str, beside))}" if beside else ""
        raise ConfigError([f"{path}: no such sweep file{there}"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: expected a YAML file; {_unreadable(error)}"]) from None
    if not isinstance(raw, dict):
        found = {list: "a list", type(None): "nothing"}.get(type(raw), repr(raw))
        raise ConfigError([f"{path}: expected keys and values, found {found}"])
    return raw


def _unreadable(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    return " ".join(str(error).split())
