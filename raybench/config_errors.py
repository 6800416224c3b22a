"""pydantic's errors as lines a person can act on, and every setting as lines of `--help`."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raybench.settings import Choice, Range

_KINDS = {"value", "range", "choice"}


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


def _walk(root: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel] | None]:
    """The path as a person writes it (without pydantic's tags), and the model that holds its key.

    Of a family, the members' tags stand in pydantic's locations but not in the sweep file.
    """
    path: list[str] = []
    candidates: list[type[BaseModel]] = [root]
    holder: type[BaseModel] | None = root
    for part in loc:
        tagged = [m for m in candidates if _tag(m) == part]
        if isinstance(part, str) and tagged and path:
            candidates, holder = tagged, tagged[0]
            continue
        if isinstance(part, str) and part in _KINDS and holder is None:
            continue
        path.append(str(part))
        if isinstance(part, int):
            continue
        fields = [m.model_fields[part] for m in candidates if part in m.model_fields]
        if not fields:
            holder = candidates[0] if candidates else None
            break
        holder_candidates = _models(fields[0].annotation)
        holder, candidates = None, holder_candidates
        if len(candidates) == 1:
            holder = candidates[0]
    return ".".join(path), holder


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line a mistake, each beginning with its dotted path."""
    return [_problem(dict(item), root) for item in error.errors()]


def _problem(item: dict[str, Any], root: type[BaseModel]) -> str:
    kind, loc = item["type"], item["loc"]
    path, holder = _walk(root, loc)
    if kind == "extra_forbidden":
        return f"{path}: not a setting{_of(holder)}; {_nearest(str(loc[-1]), holder)}"
    if kind == "missing":
        return f"{path}: required, and not there"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if kind == "value_error" and message.startswith(path.rpartition(".")[0] or "\0"):
        return str(message)
    if kind == "value_error" and not path:
        return str(message)
    return f"{path}: {message}{_found(item)}"


def _of(holder: type[BaseModel] | None) -> str:
    tag = _tag(holder) if holder else None
    return f" of {tag}" if tag else ""


def _nearest(name: str, holder: type[BaseModel] | None) -> str:
    valid = list(holder.model_fields) if holder else []
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"choose {', '.join(valid)}"


def _found(item: dict[str, Any]) -> str:
    value = item.get("input")
    if item["type"] == "value_error" or isinstance(value, dict | list | tuple | BaseModel):
        return ""
    return f", found {value!r}"


def help_lines(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every setting below a model: dotted key, type, default, meaning."""
    for name, field in model.model_fields.items():
        members = _models(field.annotation)
        members = [m for m in members if m not in (Range, Choice)]
        many = get_origin(field.annotation) is tuple
        key = f"{prefix}{name}"
        yield f"--{key}", _type(field), _default(field), field.description or ""
        for member in members:
            tag = _tag(member) if len(members) > 1 or many else None
            place = f"{key}.{tag or 'N'}." if many else f"{key}."
            if tag and not many:
                yield f"  ({name}.name: {tag})", "", "", (member.__doc__ or "").splitlines()[0]
            yield from help_lines(member, place)


def _type(field: FieldInfo) -> str:
    return _name(field.annotation)


def _name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _name(args[0])
    if origin is Literal:
        return "|".join(str(a) for a in args)
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


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        return ", ".join(str(getattr(v, "name", v)) for v in value)
    return "null" if value is None else str(value)
