"""pydantic's errors as lines a person can act on, and every setting as lines of `--help`."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raybench.settings import Choice, Range

_KINDS: dict[str, list[type[BaseModel]]] = {"value": [], "range": [Range], "choice": [Choice]}

_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "text of at least {min_length} character",
    "string_type": "text",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
"""What each of pydantic's errors wanted; the names in braces are pydantic's."""

_NO_MODEL = ("dict_type", "model_attributes_type", "model_type")


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings models that an annotation can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tag(model: type[BaseModel]) -> str | None:
    """The value of a family member's `name: Literal[...]`."""
    field = model.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def _walk(
    root: type[BaseModel], loc: Sequence[int | str]
) -> tuple[str, list[type[BaseModel]], list[type[BaseModel]]]:
    """The path as a person writes it, the models that may hold its last key, and those below it.

    pydantic's locations also name the family member, or the kind of a searched setting, that it
    took a value for. Those stand in no sweep file; here they choose among the models.
    """
    path: list[str] = []
    holders: list[type[BaseModel]] = []
    below: list[type[BaseModel]] = [root]
    for part in loc:
        tagged = [m for m in below if _tag(m) == part]
        if tagged and path:
            below = tagged
        elif part in _KINDS and Range in below:
            below = _KINDS[str(part)]
        else:
            path.append(str(part))
            if isinstance(part, int) and path[:-1]:
                continue
            fields = [m.model_fields[str(part)] for m in below if part in m.model_fields]
            if not fields and set(below) == {Range, Choice}:
                continue  # the keys of a table of domains are names, not settings
            holders, below = below, _models(fields[0].annotation) if fields else []
    return ".".join(path), holders, below


def is_family(root: type[BaseModel], loc: Sequence[int | str]) -> bool:
    """Whether the setting at a location is one of a family, so that a name can stand for it."""
    _, _, below = _walk(root, loc)
    return len(below) > 1 and all(_tag(model) is not None for model in below)


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line a mistake, each beginning with its dotted path."""
    return [
        line
        for item in error.errors()
        if not _follows(dict(item))
        for line in _problem(dict(item), root)
    ]


def _follows(item: dict[str, Any]) -> bool:
    """Whether a list is called too short only because its elements are wrong, which is said."""
    return item["type"] == "too_short" and bool(len(item["input"]) >= item["ctx"]["min_length"])


def _problem(item: dict[str, Any], root: type[BaseModel]) -> list[str]:
    kind, loc = item["type"], item["loc"]
    path, holders, below = _walk(root, loc)
    if kind in ("extra_forbidden", "invalid_key"):
        return [f"{path}: not a setting{_of(holders)}; {_nearest(str(loc[-1]), holders)}"]
    if kind == "missing":
        return [f"{path}: required, and not there"]
    if kind == "union_tag_not_found":
        return [f"{path}.name: required, and not there; choose {_tags(below)}"]
    if kind == "union_tag_invalid":
        near = difflib.get_close_matches(item["ctx"]["tag"], map(str, map(_tag, below)), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        found = _shown(item["input"].get("name"))
        return [f"{path}.name: expected one of {_tags(below)}, found {found}{hint}"]
    if kind == "value_error":
        return _own_words(path, below, item["msg"].removeprefix("Value error, "))
    return [f"{path}: {_expected(item, below)}, found {_shown(item['input'])}"]


def _expected(item: dict[str, Any], below: Sequence[type[BaseModel]]) -> str:
    kind = item["type"]
    if kind in _NO_MODEL and set(below) == {Range, Choice}:
        return "expected keys and values, each {low: ..., high: ...} or {choices: [...]}"
    if kind in _NO_MODEL and len(below) > 1:
        return f"expected keys and values, name: one of {_tags(below)} among them"
    if kind in _NO_MODEL and below:
        return f"expected keys and values ({', '.join(below[0].model_fields)})"
    if kind not in _EXPECTED:
        return str(item["msg"][:1].lower() + item["msg"][1:])
    bounds = {k: _plain(v) for k, v in item.get("ctx", {}).items()}
    words = f"expected {_EXPECTED[kind].format(**bounds)}"
    if item["loc"][-1] == "value" and isinstance(item["input"], dict):
        words += ", {low: ..., high: ...} or {choices: [...]}"
    return words


def _own_words(path: str, below: Sequence[type[BaseModel]], message: str) -> list[str]:
    """The lines of a validator of ours; a key that one begins with, as `lr` or `0.lr` in a list of
    models, is joined to the path."""
    lines = []
    for line in message.splitlines():
        key = line.partition(":")[0]
        fields = below[0].model_fields if len(below) == 1 else {}
        if not path or (path and key.startswith(f"{path}.")):
            lines.append(line)
        else:
            index, _, leaf = key.rpartition(".")
            inside = leaf in fields and (not index or index.isdecimal())
            lines.append(f"{path}.{line}" if inside else f"{path}: {line}")
    return lines


def _of(holders: Sequence[type[BaseModel]]) -> str:
    tag = _tag(holders[0]) if len(holders) == 1 else None
    return f" of {tag}" if tag else ""


def _nearest(name: str, holders: Sequence[type[BaseModel]]) -> str:
    valid = list(dict.fromkeys(key for model in holders for key in model.model_fields))
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.65)
    return f"did you mean {near[0]}?" if near else f"choose {', '.join(valid)}"


def _tags(models: Sequence[type[BaseModel]]) -> str:
    return ", ".join(tag for tag in map(_tag, models) if tag)


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _shown(value: Any) -> str:
    """A value as YAML has it, short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return f"keys and values ({', '.join(map(str, value))})" if value else "no keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return repr(value) if isinstance(value, str | int | float) else str(value)


def help_lines(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every setting below a model: dotted key, type, default, meaning.

    Before the settings of each member of a family stands a line without a type.
    """
    for name, field in model.model_fields.items():
        members = [m for m in _models(field.annotation) if m not in (Range, Choice)]
        many = get_origin(field.annotation) is tuple
        key = f"{prefix}{name}"
        meaning = field.description or ("which one it is" if name == "name" else "")
        kind = ", ".join([_name(field.annotation), *_limits(field)])
        yield f"--{key}", kind, _default(field), meaning
        for member in members:
            tag = _tag(member) if len(members) > 1 or many else None
            place = f"{key}.{tag or 'N'}." if many else f"{key}."
            if tag:
                yield f"({key}: {tag})", "", "", (member.__doc__ or "").splitlines()[0]
            yield from help_lines(member, place)


def _name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _name(args[0])
    if origin is Literal:
        return "|".join(str(a) for a in args)
    if origin is dict:
        return "keys and values"
    if origin is tuple:
        return f"list of {_name(args[0])}"
    if origin in (typing.Union, types.UnionType):
        names = dict.fromkeys(_name(a) for a in args)
        return "|".join(names)
    if annotation is type(None):
        return "null"
    if annotation in (Range, Choice):
        return "searched"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _tag(annotation) or "settings"
    return getattr(annotation, "__name__", str(annotation))


def _limits(thing: Any) -> Iterator[str]:
    """The bounds of a setting in words; those of a searched one stand deeper in its type."""
    for sign, words in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most")):
        bound = getattr(thing, sign, None)
        if bound is not None:
            yield f"{words} {_plain(bound)}"
    if isinstance(thing, FieldInfo):
        parts = [thing.annotation, *thing.metadata]
    elif get_origin(thing) in (typing.Annotated, typing.Union, types.UnionType):
        parts = list(get_args(thing))
    else:
        parts = []
    for part in parts:
        yield from _limits(part)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):  # of a family its member's name, else what stands below
        return _tag(type(value)) or ""
    if isinstance(value, tuple):
        return ", ".join(str(getattr(v, "name", v)) for v in value)
    return str(value) if isinstance(value, str) else _shown(value)
