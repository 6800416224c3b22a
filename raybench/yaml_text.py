"""YAML as text to plain types, and nothing that a file could use against its reader."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 20_000
"""Values that a document may hold once its aliases are written out; the largest sweep has 300."""

MAX_DEPTH = 50
"""Lists and tables that may stand within each other."""


class _Loader(yaml.SafeLoader):
    """YAML, but a key that stands twice is a mistake: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or table, which the safe loader refuses as a key
            if key.value in seen:
                problem = f"the key {key.value!r} stands here for the second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def plain(text: str) -> Any:
    """What a YAML document says, in plain types: tags that would build anything else are refused.

    Raises:
        yaml.YAMLError: it is no YAML, has a tag of Python's, a key twice, a value that is not what
            its form promises (a 13th month), or aliases that write out to too much or to itself.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, 0)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep") from None
    except (ValueError, OverflowError, AttributeError, LookupError) as error:
        # PyYAML's own constructors of numbers and dates let these through.
        said = " ".join(str(error).split())
        raise yaml.YAMLError(f"a value cannot be read ({said})") from None


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Values below a node with aliases written out; each node is walked once."""
    if depth > MAX_DEPTH:
        raise _refused(node, f"it is nested more than {MAX_DEPTH} deep")
    if id(node) in known:
        if known[id(node)] == 0:
            raise _refused(node, "an alias stands for something that it is itself part of")
        return known[id(node)]
    known[id(node)] = 0  # on the way to it
    total = 1
    for child in _children(node):
        total += _count(child, known, depth + 1)
        if total > MAX_NODES:
            raise _refused(node, f"its aliases write out to more than {MAX_NODES:,} values")
    known[id(node)] = total
    return total


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refused(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
