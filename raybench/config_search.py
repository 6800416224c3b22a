"""Whether what is to be searched of the explainers can be: every mistake as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError

from raybench.config_errors import problems_of
from raybench.explain import Explainer
from raybench.explain.places import RULE, Place, locate, names
from raybench.explain.spaces import ExplainerSearch, Space, plain
from raybench.settings import Choice, Range

TUNED = "_tuned"
"""What the titles of the winners end in."""

_LONGEST_TITLE = 55
_MOST_TRIED = 64


def search_problems(search: ExplainerSearch, explainers: Sequence[Explainer]) -> Iterator[str]:
    """A line a mistake, each beginning with its path.

    Args:
        explainers: those of the sweep.
    """
    by_title = {explainer.title: explainer for explainer in explainers}
    for title in by_title:
        if f"{title}{TUNED}" in by_title or len(title) > _LONGEST_TITLE:
            yield (
                f"explainer_search: the winner of {title} would be called {title}{TUNED}, which is "
                "taken or too long; give the explainer another label"
            )
    for title, domains in search.explainers.items():
        path = f"explainer_search.explainers.{title}"
        if title in by_title:
            yield from _of_one(path, by_title[title], domains)
        else:
            yield f"{path}: no such explainer; {_nearest(title, list(by_title))}"


def _of_one(
    path: str, explainer: Explainer, domains: Mapping[str, Range | Choice]
) -> Iterator[str]:
    space = Space.of(explainer, domains)
    try:
        variants = space.variants()
    except ValidationError as error:
        yield from (f"{path}.{line}" for line in problems_of(error, type(explainer)))
        return
    for name, domain in domains.items():
        places = [(v, place) for v in variants if (place := locate(v, name)) is not None]
        if places:
            yield from sorted(
                {line for v, place in places for line in _ends(path, name, domain, v, place)}
            )
        else:
            of = getattr(explainer, "name", explainer.title)
            yield f"{path}.{name}: not a setting of {of}; {_nearest(name, names(variants))}"


def _ends(
    path: str, name: str, domain: Range | Choice, explainer: Explainer, place: Place
) -> Iterator[str]:
    """What the explainer says to the ends of a range, to every value of a list."""
    if name == RULE:
        wrong = [value for value in _tried(domain, False) if value not in ("fixed", "val")]
        yield from (f"{path}.{name}: expected fixed or val, found {value!r}" for value in wrong)
        return
    if isinstance(domain, Range) and (place.kinds or isinstance(place.value, bool | str)):
        listed = ", ".join(place.kinds) or "..."
        yield f"{path}.{name}: expected {{choices: [{listed}]}}, found a range"
        return
    for value in _tried(domain, place.whole):
        raw = explainer.model_dump()
        place.put(raw, value)
        try:
            type(explainer).model_validate(raw)
        except ValidationError as error:
            for line in problems_of(error, type(explainer)):
                yield f"{path}.{line}"
            return


def _tried(domain: Range | Choice, whole: bool) -> list[object]:
    """Values that stand for all: of a short range of whole numbers each one."""
    if isinstance(domain, Choice):
        return list(domain.choices)
    low, high = plain(domain.low, whole), plain(domain.high, whole)
    if isinstance(low, int) and isinstance(high, int) and high - low < _MOST_TRIED:
        return list(range(low, high + 1))
    return [low, high]


def _nearest(name: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.65)
    return f"did you mean {near[0]}?" if near else f"choose {', '.join(valid)}"
