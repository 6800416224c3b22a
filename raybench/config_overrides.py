"""Settings given on the command line: dotted keys put into what the sweep file holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from raybench.config_errors import is_family
from raybench.settings import Settings
from raybench.yaml_text import plain


def override(root: type[BaseModel], raw: dict[str, Any], key: str, text: str) -> str | None:
    """Set one dotted key in what a sweep file holds.

    Args:
        root: what the file is validated against.
        key: an element of a list is named by its number or by its `label` or `name`.
        text: the value, as YAML.

    Returns:
        What is wrong with the key, in one line; None where nothing is.
    """
    *parents, leaf = key.split(".")
    try:
        value = plain(text)
    except yaml.YAMLError:
        value = text
    node: Any = raw
    loc: list[int | str] = []
    for depth, part in enumerate(parents):
        place: Any = part if isinstance(node, dict) else _element(node, part)
        if place is None:
            return f"{key}: {_lacks(node, parents[:depth], part)}"
        loc.append(place)
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = _default(root, parents[: depth + 1])
        if isinstance(node[place], str) and is_family(root, loc):
            node[place] = {"name": node[place]}  # a short form, spelled out to be changed
        node = node[place]
    if isinstance(node, dict):
        node[leaf] = value
        return None
    found = _element(node, leaf)
    if found is None:
        return f"{key}: {_lacks(node, parents, leaf)}"
    node[found] = value
    return None


def _default(root: type[BaseModel], path: Sequence[str]) -> Any:
    """What a key that is not in the file stands for, as far as an override can change a part of it.

    A list's default has elements that can be named; everything else is filled in by validation.
    """
    model: Any = root
    default: Any = None
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return {}
        model, default = field.annotation, field.default
    if isinstance(default, tuple):
        return [e.model_dump() if isinstance(e, Settings) else e for e in default]
    return {}


def _element(node: Any, part: str) -> int | None:
    """The place of an element named by its number, its title, or its name where that is unique."""
    if not isinstance(node, list):
        return None
    if part.isdigit():
        return int(part) if int(part) < len(node) else None
    if part in _titles(node):
        return _titles(node).index(part)
    named = [i for i, e in enumerate(node) if isinstance(e, Mapping) and e.get("name") == part]
    return named[0] if len(named) == 1 else None


def _titles(node: list[Any]) -> list[str]:
    return [
        str(e.get("label") or e.get("name")) if isinstance(e, Mapping) else str(e) for e in node
    ]


def _lacks(node: Any, path: Sequence[str], part: str) -> str:
    where = ".".join(path)
    if not isinstance(node, list):
        return f"{where} is {yaml.safe_dump(node).splitlines()[0]}, which has no keys"
    if not node:
        return f"{where} is an empty list"
    return f"{where} has no {part!r}; choose {', '.join(_titles(node))}, or 0 to {len(node) - 1}"
