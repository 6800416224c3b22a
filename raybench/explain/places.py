"""Where a dotted path leads in an explainer's settings, and which paths there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from raybench.explain.base import Explainer
from raybench.settings import Settings

RULE = "threshold_rule"
"""Searched like a setting: `fixed` cuts at the explainer's `threshold`, `val` at Val's best."""

_AnySettings = TypeVar("_AnySettings", bound=Settings)

_NEVER = ("name", "label", "target")


@dataclass(frozen=True)
class Place:
    """Where a dotted path leads in an explainer's settings.

    Attributes:
        path: the keys to it.
        value: what stands there; of a component that may be of several kinds, its kind's name.
        kinds: names of the kinds that may stand there; none for a plain value.
        whole: whether it takes whole numbers only.
    """

    path: tuple[str, ...]
    value: Any
    kinds: tuple[str, ...]
    whole: bool

    def read(self, raw: dict[str, Any]) -> Any:
        """What a dump of the explainer has there; of a component its kind's name."""
        node: Any = raw
        for part in self.path:
            node = node[part]
        return node.get("name") if self.kinds and isinstance(node, dict) else node

    def put(self, raw: dict[str, Any], value: Any) -> None:
        """Put a value there; a kind that stands there already keeps its own settings."""
        node = raw
        for part in self.path[:-1]:
            node = node[part]
        if not self.kinds or value is None:
            node[self.path[-1]] = value
        elif value != self.value:
            node[self.path[-1]] = {"name": value}

    def shown(self, explainer: Explainer, raw: dict[str, Any]) -> Explainer:
        """The explainer with the kind that `raw` has there, which is spelled out in `raw`.

        Whether it goes with the other settings is not asked: some may not be drawn yet.

        Raises:
            pydantic.ValidationError: there is no such kind.
        """
        node = raw
        for part in self.path[:-1]:
            node = node[part]
        leaf, holder = self.path[-1], _holder(explainer, self.path)
        chosen = node[leaf]
        name = chosen["name"] if isinstance(chosen, dict) else chosen
        for member in members(type(holder).model_fields[leaf].annotation):
            if name in kinds_of(member):
                found = member.model_validate(
                    chosen if isinstance(chosen, dict) else {"name": name}
                )
                node[leaf] = found.model_dump()
                return _with(explainer, self.path, found)
        return type(explainer).model_validate(raw)


def _holder(explainer: Explainer, path: tuple[str, ...]) -> Settings:
    """What the last key of a path is a setting of."""
    node: Settings = explainer
    for part in path[:-1]:
        node = getattr(node, part)
    return node


def _with(settings: _AnySettings, path: tuple[str, ...], value: Settings) -> _AnySettings:
    """A copy with a component at a path, nothing checked."""
    head, *rest = path
    put = _with(getattr(settings, head), tuple(rest), value) if rest else value
    return settings.model_copy(update={head: put})


_RULE_PLACE = Place((RULE,), "val", (), False)


def locate(explainer: Explainer, path: str) -> Place | None:
    """Where a dotted path leads, or None where this explainer has no such setting."""
    if path == RULE:
        return _RULE_PLACE
    node: Any = explainer
    keys: list[str] = []
    *parents, leaf = path.split(".")
    for part in parents:
        if not isinstance(node, Settings):
            return None
        if part in type(node).model_fields:
            node = getattr(node, part)
            keys.append(part)
        elif part != getattr(node, "name", None):
            return None
    if not isinstance(node, Settings) or leaf not in type(node).model_fields or leaf in _NEVER:
        return None
    annotation, value = type(node).model_fields[leaf].annotation, getattr(node, leaf)
    kinds = tuple(kind for member in members(annotation) for kind in kinds_of(member))
    value = getattr(value, "name", None) if isinstance(value, Settings) else value
    return Place((*keys, leaf), value, kinds, _is_whole(annotation))


def names(explainers: Sequence[Explainer]) -> list[str]:
    """Every dotted path that some of the explainers have, the rule included."""
    found = {RULE: None}
    for explainer in explainers:
        found |= dict.fromkeys(_paths(explainer))
    return list(found)


def _paths(settings: Settings, prefix: str = "") -> Iterator[str]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name in _NEVER:
            continue
        if not isinstance(value, Settings) or len(_members_of(settings, name)) > 1:
            yield f"{prefix}{name}"
        if isinstance(value, Settings):
            yield from _paths(value, f"{prefix}{name}.")


def _members_of(settings: Settings, name: str) -> list[type[Settings]]:
    return members(type(settings).model_fields[name].annotation)


def members(annotation: Any) -> list[type[Settings]]:
    """The settings models that an annotation can hold."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [member for part in get_args(annotation) for member in members(part)]


def kinds_of(member: type[Settings]) -> tuple[str, ...]:
    """The names that the settings model of a component goes by."""
    field = member.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return tuple(map(str, get_args(field.annotation)))


def _is_whole(annotation: Any) -> bool:
    parts = (annotation, *get_args(annotation))
    return int in parts and float not in parts


_IF = {"threshold": (RULE, ("fixed",))}


def conditions(explainer: Explainer) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """By path: which other setting decides whether it matters, and with which values."""
    return _IF | dict(_all_conditions(type(explainer), ""))


def _all_conditions(kind: type[Settings], prefix: str) -> Iterator[tuple[str, Any]]:
    for path, (other, values) in kind.search_if.items():
        yield f"{prefix}{path}", (f"{prefix}{other}", values)
    for name, field in kind.model_fields.items():
        for member in members(field.annotation):
            for tag in ("", *(f"{kind_name}." for kind_name in kinds_of(member))):
                yield from _all_conditions(member, f"{prefix}{name}.{tag}")


def holds(
    condition: tuple[str, tuple[Any, ...]] | None,
    explainer: Explainer,
    raw: dict[str, Any],
    rule: str,
) -> bool:
    """Whether a condition is met by settings `raw` and a threshold rule."""
    if condition is None:
        return True
    other, values = condition
    if other == RULE:
        return rule in values
    place = locate(explainer, other)
    return place is not None and place.read(raw) in values
