"""The spaces that explainers' settings are searched in (`explainer_search`).

A setting is named by its dotted path from the explainer on: `n_samples`, `superpixels.ratio`. A
component that may be of several kinds is chosen by name (`superpixels: {choices: [...]}`), and what
only one kind has is drawn only for it. A kind's name in the path (`superpixels.slic.compactness`)
says so outright.

What is searched where nobody says otherwise stands with each component (`search_space`), together
with what any map can be made a salient mask by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from raybench.explain.base import Explainer
from raybench.explain.places import RULE, conditions, holds, kinds_of, locate, members
from raybench.settings import Choice, Domain, Range, Settings

Rule = Literal["fixed", "val"]

OF_ANY_MAP: Mapping[str, Range | Choice] = {
    "sign": Choice(choices=("both", "for", "against", "absolute")),
    "clip_to_lungs": Choice(choices=(False, True)),
    "median_filter": Choice(choices=(0, 3, 5, 9, 15)),
    RULE: Choice(choices=("val", "fixed")),
    "threshold": Range(low=0.05, high=0.95),
}
"""Searched for every explainer."""

NEED_LUNGS = ("clip_to_lungs", "confine")
"""Settings that are of no use without lung masks."""

Suggest = Callable[[str, Range | Choice, bool], Any]
"""Draws a value: a name, a domain, and whether only whole numbers will do."""


class ExplainerSearch(Settings):
    """Optuna proposes settings of each explainer, Val judges them, Test sees the winners once."""

    n_trials: int = Field(
        30, ge=1, description="settings tried of each explainer, its own in this file first"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of the proposals")
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="tpe learns from the settings tried; random does not"
    )
    explainers: dict[str, dict[str, Domain]] = Field(
        {},
        description="by an explainer's label or name: what is searched instead of the defaults, as "
        "dotted setting and {low, high, log} or {choices}; {} leaves it as it is",
    )

    @field_validator("explainers", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """Takes `superpixels: {ratio: ...}` (what dotted keys make) for `superpixels.ratio`."""
        if not isinstance(value, dict):
            return value
        return {k: dict(_flat(v)) if isinstance(v, dict) else v for k, v in value.items()}


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value and not {"low", "high", "choices"} & set(value):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Candidate:
    """One point of a space.

    Attributes:
        explainer: with these settings.
        rule: what its threshold is chosen by.
        parameters: the searched settings that matter here, by dotted path.
    """

    explainer: Explainer
    rule: Rule
    parameters: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Equal for candidates that are the same in all but name."""
        raw = self.explainer.model_dump(mode="json", exclude={"label"})
        return json.dumps([raw, self.rule], sort_keys=True)


@dataclass(frozen=True)
class Space:
    """What of one explainer is searched.

    Attributes:
        explainer: as the sweep file has it; what is not searched stays.
        domains: by dotted path, what others depend on first.
    """

    explainer: Explainer
    domains: Mapping[str, Range | Choice]

    @classmethod
    def of(
        cls,
        explainer: Explainer,
        named: Mapping[str, Range | Choice] | None = None,
        with_lungs: bool = True,
    ) -> Space:
        """The space that was named, or the default one.

        Args:
            with_lungs: whether there are lung masks to clip to; the default space minds it.
        """
        found = default_space(explainer) if named is None else dict(named)
        if named is None and not with_lungs:
            for path in [p for p in found if p.rpartition(".")[2] in NEED_LUNGS]:
                del found[path]
        depends = conditions(explainer)

        def depth(path: str) -> int:
            return 1 + depth(depends[path][0]) if path in depends else 0

        order = sorted(found, key=lambda path: (path.count("."), depth(path)))
        return cls(explainer, {path: found[path] for path in order})

    @property
    def own_rule(self) -> Rule:
        """The threshold rule where it is not searched: a searched threshold is meant to be used."""
        return "fixed" if "threshold" in self.domains and RULE not in self.domains else "val"

    def own(self) -> Candidate:
        """The explainer as it stands in the sweep file."""
        return self.draw(lambda path, domain, whole: self._own_value(path))

    def holds_own(self) -> bool:
        """Whether the explainer's own settings lie in the space."""
        domains = [(self.domains[p], v) for p, v in self.own().parameters.items()]
        return all(
            isinstance(d, Choice) or (v is not None and d.low <= v <= d.high) for d, v in domains
        )

    def draw(self, suggest: Suggest) -> Candidate:
        """Draw one setting after the other, those that do not matter left out.

        Raises:
            pydantic.ValidationError: the drawn values do not go together.
        """
        explainer, drawn = self.explainer, dict[str, Any]()
        depends, raw = conditions(self.explainer), self.explainer.model_dump()
        for path, domain in self.domains.items():
            place = locate(explainer, path)
            rule = drawn.get(RULE, self.own_rule)
            if place is None or not holds(depends.get(path), explainer, raw, rule):
                continue
            drawn[path] = suggest(path, self._with_own(path, domain), place.whole)
            if path == RULE:
                continue
            place.put(raw, drawn[path])
            if place.kinds:  # what else there is to draw depends on it
                explainer = place.shown(explainer, raw)
        found: Rule = "fixed" if drawn.get(RULE, self.own_rule) == "fixed" else "val"
        return Candidate(type(explainer).model_validate(raw), found, drawn)

    def resolve(self, parameters: Mapping[str, Any]) -> Candidate:
        """The candidate of parameters that were drawn before."""
        return self.draw(lambda path, domain, whole: parameters[path])

    def variants(self) -> list[Explainer]:
        """The explainer with every combination of the kinds of its components.

        Each kind has its own defaults; whether they go together is not asked.
        """
        found = [self.explainer]
        for path, domain in self.domains.items():
            for explainer in list(found):
                place = locate(explainer, path)
                if place is None or not place.kinds or not isinstance(domain, Choice):
                    continue
                for value in domain.choices:
                    raw = explainer.model_dump()
                    place.put(raw, value)
                    found.append(place.shown(explainer, raw))
        return found

    def most_passes(self) -> int:
        """Forward passes an image of the dearest settings.

        Over every combination of kinds, and from each one setting after the other.
        """
        every = {v.model_dump_json(): v for v in self.variants()}  # its own kinds come up twice
        return max(Space(variant, self.domains)._dearest() for variant in every.values())

    def _dearest(self) -> int:
        """The same for this explainer's own kinds.

        Kinds are not drawn here, so that each setting's place is looked up once and not, as in
        `draw`, once a candidate.
        """
        found = ((path, locate(self.explainer, path)) for path in self.domains if path != RULE)
        places = {path: place for path, place in found if place is not None and not place.kinds}
        depends, own = conditions(self.explainer), self.explainer.model_dump()
        chosen: dict[str, Any] = {}
        most = self.explainer.n_forward_planned()
        for path in places:
            domain = self.domains[path]
            ends = domain.choices if isinstance(domain, Choice) else (domain.low, domain.high)
            for value in ends:
                tried, raw = chosen | {path: value}, deepcopy(own)
                for name, wanted in tried.items():
                    if holds(depends.get(name), self.explainer, raw, self.own_rule):
                        places[name].put(raw, plain(wanted, places[name].whole))
                try:
                    explainer = type(self.explainer).model_validate(raw)
                except ValidationError:  # it does not go with the others
                    continue
                if (passes := explainer.n_forward_planned()) > most:
                    most, chosen = passes, tried
        return most

    def _own_value(self, path: str) -> Any:
        place = locate(self.explainer, path)
        if path == RULE:
            return self.own_rule
        if place is not None:
            return place.value
        domain = self.domains[path]  # of a kind that is not the explainer's own
        return domain.choices[0] if isinstance(domain, Choice) else domain.low

    def _with_own(self, path: str, domain: Range | Choice) -> Range | Choice:
        """The domain; of a list, with the explainer's own value in it."""
        place = locate(self.explainer, path)
        if isinstance(domain, Range) or place is None:
            return domain
        own = self._own_value(path)
        known = any(  # 1 and True are equal, and not the same
            own == value and isinstance(own, bool) == isinstance(value, bool)
            for value in domain.choices
        )
        return domain if known else Choice(choices=(*domain.choices, own))


def default_space(explainer: Explainer) -> dict[str, Range | Choice]:
    """What is searched of an explainer where nobody says otherwise."""
    found = dict(OF_ANY_MAP) | dict(_spaces(explainer, type(explainer)))
    for path, domain in list(found.items()):
        place = locate(explainer, path)
        if place is None or not place.kinds or not isinstance(domain, Choice):
            continue
        possible = tuple(kind for kind in domain.choices if kind in place.kinds)
        if len(possible) > 1:  # an explainer may take fewer kinds than the one it is made from
            found[path] = Choice(choices=possible)
        else:
            del found[path]
    return found


def _spaces(settings: Settings | None, kind: type[Settings]) -> Iterator[tuple[str, Any]]:
    """A component's own space, and those of the components that it holds or may come to hold."""
    yield from kind.search_space.items()
    for name, field in kind.model_fields.items():
        domain = kind.search_space.get(name)
        held = getattr(settings, name, None)
        possible = domain.choices if isinstance(domain, Choice) else ()
        for member in members(field.annotation):
            if isinstance(held, member) or set(kinds_of(member)) & set(possible):
                prefix = ".".join((name, *kinds_of(member)))
                own = held if isinstance(held, member) else None
                for path, item in _spaces(own, member):
                    yield f"{prefix}.{path}", item


def plain(value: Any, whole: bool) -> Any:
    """The end of a range as the setting takes it: 5 and not 5.0 where numbers are whole."""
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value
