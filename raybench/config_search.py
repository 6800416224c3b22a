"""Whether what is to be searched of the explainers can be: every mistake as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import combinations, islice, product

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
_MOST_TOGETHER = 4096


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
    for name in domains:
        places = [(v, place) for v in variants if (place := locate(v, name)) is not None]
        if places:
            yield from _of_setting(path, name, domains, places)
        else:
            of = getattr(explainer, "name", explainer.title)
            yield f"{path}.{name}: not a setting of {of}; {_nearest(name, names(variants))}"


def _of_setting(
    path: str,
    name: str,
    domains: Mapping[str, Range | Choice],
    places: Sequence[tuple[Explainer, Place]],
) -> Iterator[str]:
    """What is wrong with what one setting is searched in.

    Args:
        places: where it stands, in each explainer of other kinds that has it.
    """
    domain, place = domains[name], places[0][1]
    if domain.first is not None:
        yield (
            f"{path}.{name}.first: not here: what is tried first is always the explainer as the "
            "sweep file has it"
        )
    elif name == RULE:
        wrong = [value for value in _tried(domain, False) if value not in ("fixed", "val")]
        yield from (f"{path}.{name}: expected fixed or val, found {value!r}" for value in wrong)
    elif isinstance(domain, Range) and (place.kinds or isinstance(place.value, bool | str)):
        listed = ", ".join(place.kinds) or "..."
        yield f"{path}.{name}: expected {{choices: [{listed}]}}, found a range"
    else:
        yield from _ends(path, name, domains, places)


def _ends(
    path: str,
    name: str,
    domains: Mapping[str, Range | Choice],
    places: Sequence[tuple[Explainer, Place]],
) -> Iterator[str]:
    """What the explainer says to the ends of a range, to every value of a list.

    A value that does not go with the explainer's other settings is no mistake where it goes with
    some that are searched too: the search counts the combinations that are refused as failed.
    """
    for value in _tried(domains[name], places[0][1].whole):
        lines, goes = set[str](), False
        for explainer, place in places:
            raw = explainer.model_dump()
            place.put(raw, value)
            error = _refused(explainer, raw)
            if error is not None and not _goes_with_others(explainer, raw, name, domains, error):
                of_value = {f"{path}.{line}" for line in problems_of(error, type(explainer))}
                if not _is_joint(error):
                    yield from sorted(of_value)
                    return
                lines |= of_value
            else:
                goes = True
        if not goes:
            yield from sorted(lines)
            return


def _refused(explainer: Explainer, raw: Mapping[str, object]) -> ValidationError | None:
    try:
        type(explainer).model_validate(raw)
    except ValidationError as error:
        return error
    return None


def _is_joint(error: ValidationError) -> bool:
    """Whether it may be about several settings: those of one are told by their type and limits."""
    return all(item["type"] == "value_error" for item in error.errors())


def _goes_with_others(
    explainer: Explainer,
    raw: Mapping[str, object],
    name: str,
    domains: Mapping[str, Range | Choice],
    error: ValidationError,
) -> bool:
    """Whether one or two other searched settings have values that make these settings valid."""
    if not _is_joint(error):
        return False
    others: list[tuple[Place, list[object]]] = []
    for other, domain in domains.items():
        place = locate(explainer, other)
        if place is not None and not place.kinds and other not in (name, RULE):
            others.append((place, _tried(domain, place.whole)))
    for tried in islice(_together(others), _MOST_TOGETHER):
        changed = deepcopy(dict(raw))
        for place, value in tried:
            place.put(changed, value)
        if _refused(explainer, changed) is None:
            return True
    return False


def _together(
    others: Sequence[tuple[Place, Sequence[object]]],
) -> Iterator[list[tuple[Place, object]]]:
    """Each value of each setting alone, then with each of each other one."""
    for n in (1, 2):
        for chosen in combinations(others, n):
            for values in product(*(values for _, values in chosen)):
                yield [(place, value) for (place, _), value in zip(chosen, values, strict=True)]


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
