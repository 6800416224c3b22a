"""What is searched of an explainer, what is drawn of it, and what is refused in the sweep file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import yaml

from raybench.config import SweepConfig, load_config
from raybench.errors import ConfigError
from raybench.explain import Explainer, Lime, WholeLung, spaces
from raybench.explain.fills import Noise
from raybench.explain.places import locate
from raybench.explain.spaces import ExplainerSearch, Space
from raybench.settings import Choice, Range, Settings
from raybench.studies.proposals import Proposer
from tests.studies.searching import CONFIG


class Fine(Settings):
    name: Literal["fine"] = "fine"
    side: int = 4
    search_space: ClassVar[dict[str, Any]] = {"side": Choice(choices=(2, 4))}


class Coarse(Settings):
    name: Literal["coarse"] = "coarse"
    n: int = 10
    wild: bool = False
    search_space: ClassVar[dict[str, Any]] = {"n": Range(low=5, high=20)}


class Toy(WholeLung):
    parts: Fine | Coarse = Fine()
    steps: int = 3
    search_space: ClassVar[dict[str, Any]] = {
        "parts": Choice(choices=("fine", "coarse")),
        "steps": Range(low=1, high=9),
    }

    def n_forward_planned(self) -> int:
        return self.steps * (self.parts.n if isinstance(self.parts, Coarse) else 1)


def test_what_only_one_kind_has_is_drawn_only_for_it() -> None:
    space = Space.of(Toy(parts=Fine(side=3)), with_lungs=False)
    kinds = ["parts.fine.side", "parts.coarse.n"]
    assert list(space.domains)[:3] == ["sign", "median_filter", "threshold_rule"]
    assert list(space.domains)[3:] == ["parts", "steps", "threshold", *kinds]
    values = {
        "sign": "for",
        "median_filter": 0,
        "threshold_rule": "val",
        "steps": 2,
        "threshold": 0.7,
    }
    values |= {"parts.coarse.n": 7, "parts.fine.side": 2}
    coarse = space.resolve(values | {"parts": "coarse"})
    assert coarse.explainer == Toy(parts=Coarse(n=7), steps=2, sign="for")
    assert set(coarse.parameters) == {*values, "parts"} - {"threshold", "parts.fine.side"}
    fixed = space.resolve(values | {"parts": "fine", "threshold_rule": "fixed"})
    assert fixed.explainer == Toy(parts=Fine(side=2), steps=2, threshold=0.7, sign="for")
    assert space.own().explainer == Toy(parts=Fine(side=3))  # the file's, not the kind's default
    assert space.holds_own()
    assert not Space.of(Toy(steps=12)).holds_own()
    assert space.most_passes() == 9 * 20
    named = Space.of(Toy(), {"threshold": Range(low=0.1, high=0.2)})
    assert named.own().rule == "fixed"  # a threshold that is searched is used


def test_the_dearest_of_a_big_space_is_found_with_few_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[str] = []

    def counting(explainer: Explainer, path: str) -> Any:
        looks.append(path)
        return locate(explainer, path)

    space = Space.of(Lime(n_samples=300))
    n_kinds = len({v.model_dump_json() for v in space.variants()})
    monkeypatch.setattr(spaces, "locate", counting)
    # KernelSHAP, a kind of surrogate, may ask for pairs: more than the own settings cost.
    assert space.most_passes() >= Lime(n_samples=300).n_forward_planned()
    assert n_kinds > 30
    assert len(looks) < 3 * n_kinds * len(space.domains), "about one a setting and combination"


AT = "explainer_search.explainers"
WRONG = [
    ("explainer_search.n_trial", "3", "explainer_search.n_trial: not a setting; did you mean n_tr"),
    ("explainer_search.n_trials", "0", "explainer_search.n_trials: expected a number of at least"),
    (f"{AT}.lim.alpha", "{low: 1, high: 2}", f"{AT}.lim: no such explainer; did you mean lime?"),
    (f"{AT}.lime.surrogate.kernel_with", "{low: 1, high: 2}", "mean surrogate.kernel_width?"),
    (f"{AT}.lime.superpixels.rato", "{choices: [0.1]}", "did you mean superpixels.ratio?"),
    (f"{AT}.lime.name", "{choices: [a]}", f"{AT}.lime.name: not a setting of lime; choose"),
    (f"{AT}.lime.n_samples", "{low: 5, high: 20}", "n_samples: expected a number of at least 10,"),
    (f"{AT}.lime.n_samples", "{low: 50.5, high: 99}", "expected a whole number, found 50.5"),
    (f"{AT}.lime.n_samples", "{low: 99, high: 20}", "low (99.0) must be below high (20.0)"),
    (f"{AT}.lime.n_samples", "{low: x, high: 20}", f"{AT}.lime.n_samples.low: expected a number,"),
    (
        f"{AT}.lime.n_samples",
        "100",
        "expected {low: ..., high: ...} or {choices: [...]}, found 100",
    ),
    (f"{AT}.lime", "100", f"{AT}.lime: expected keys and values, each {{low:"),
    (f"{AT}.lime.median_filter", "{low: 0, high: 9}", "median_filter: must be odd or 0, found 2"),
    (f"{AT}.lime.design", "{low: 0, high: 4}", "design: expected {choices: [...]}, found a range"),
    (f"{AT}.lime.design", "{choices: [paired, pared]}", "found 'pared'"),
    (f"{AT}.lime.superpixels.ratio", "{low: 0.5, high: 2}", f"{AT}.lime.superpixels.ratio: expe"),
    (
        f"{AT}.lime.threshold_rule",
        "{choices: [fixed, best]}",
        "expected fixed or val, found 'best'",
    ),
    (f"{AT}.grad_cam.threshold", "{low: 0.2, high: 1.4}", "threshold: expected a number less than"),
    ("explain.explainers.1.label", "lime_tuned", "the winner of lime would be called lime_tuned"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=[f"{k} {v}" for k, v, _ in WRONG])
def test_a_mistake_gets_its_path_and_what_is_valid(
    tmp_path: Path, key: str, value: str, said: str
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"explainer_search": {}}))
    with pytest.raises(ConfigError) as error:
        load_config(path, [(key, value)])
    (problem,) = error.value.problems
    assert problem.startswith("explainer_search")
    assert said in problem


def test_dotted_keys_and_nested_ones_name_the_same_setting() -> None:
    domain = {"low": 0.1, "high": 0.4}
    dotted = ExplainerSearch.model_validate({"explainers": {"lime": {"superpixels.ratio": domain}}})
    nested = {"explainers": {"lime": {"superpixels": {"ratio": domain}}}}
    assert ExplainerSearch.model_validate(nested) == dotted


def test_conditions_are_drawn_after_what_they_hang_on_in_any_order() -> None:
    domains: dict[str, Any] = {
        "completions": Choice(choices=(2, 8)),
        "design": Choice(choices=("paired", "completed")),
        "surrogate": Choice(choices=("ridge", "bayesian_ridge")),
    }
    space = Space.of(Lime(design="paired"), domains)
    assert list(space.domains) == ["surrogate", "design", "completions"]
    drawn = space.resolve({"surrogate": "ridge", "design": "completed", "completions": 2})
    assert drawn.explainer.completions == 2


def one_searched(tmp_path: Path, explainer: dict[str, Any], domains: dict[str, Any]) -> SweepConfig:
    raw = CONFIG | {"explain": {"explainers": [explainer]}}
    raw |= {"explainer_search": {"n_trials": 12, "explainers": {explainer["name"]: domains}}}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(raw))
    return load_config(path)


NEAR = {"name": "neighbour", "n": 1}
TOGETHER = [
    ({"name": "rise", "fill": NEAR}, {"fill.n": [1, 5], "fill.combine": ["turns", "mean"]}),
    ({"name": "occlusion"}, {"cells": [3, 14], "window": [2, 6]}),
]


@pytest.mark.parametrize(("explainer", "domains"), TOGETHER, ids=["fill.n", "cells"])
def test_values_that_go_with_others_alone_are_searched_and_the_rest_is_told_as_refused(
    tmp_path: Path, explainer: dict[str, Any], domains: dict[str, Any]
) -> None:
    choices = {path: {"choices": values} for path, values in domains.items()}
    config = one_searched(tmp_path, explainer, choices)
    search = config.explainer_search
    assert search is not None
    (own,) = config.explain.explainers
    space = Space.of(own, search.explainers[own.title])
    assert space.most_passes() > 0
    proposer = Proposer(space, search, "t0")
    proposals = []
    for number in range(search.n_trials):
        proposals.append(proposer.ask())
        fine = proposals[-1].candidate is not None
        proposer.tell(proposals[-1], (0.01 * number, 1.0) if fine else None)
    refused = [p for p in proposals if p.candidate is None]
    assert refused
    assert all(p.error for p in refused)
    assert {p.error.split()[0] for p in refused if p.error} == {"Value"}
    searched = {
        tuple(p.parameters.items()) for p in proposals if p.candidate is not None and p.parameters
    }
    assert len(searched) > 1
    if "window" in domains:
        assert {p.parameters["window"] > p.parameters["cells"] for p in refused} == {True}


@pytest.mark.parametrize(
    ("explainer", "domains", "said"),
    [
        ({"name": "rise", "fill": NEAR}, {"fill.n": [1, 5]}, "set combine: mean"),
        ({"name": "occlusion"}, {"cells": [3, 14]}, "as many cells as there are (3), found 4"),
        ({"name": "occlusion"}, {"cells": [3, 14], "window": [14]}, "there are (3), found 4"),
        ({"name": "rise"}, {"fill": ["black", "noise"]}, "found 8 that take turns"),
        ({"name": "rise"}, {"fill": ["black", "noise"], "fill.n_images": [1, 4]}, "found 4 that"),
        ({"name": "rise"}, {"fill": ["black", "noize"]}, "found 'noize'"),
        ({"name": "occlusion"}, {"cells": [0, 3], "window": [2]}, "number of at least 1, found 0"),
    ],
)
def test_values_that_go_with_nothing_that_is_searched_are_refused(
    tmp_path: Path, explainer: dict[str, Any], domains: dict[str, Any], said: str
) -> None:
    choices = {path: {"choices": values} for path, values in domains.items()}
    with pytest.raises(ConfigError) as error:
        one_searched(tmp_path, explainer, choices)
    (problem,) = error.value.problems
    assert problem.startswith(f"{AT}.{explainer['name']}.")
    assert said in problem


def test_a_kind_that_its_own_defaults_rule_out_is_searched_with_those_that_suit_it(
    tmp_path: Path,
) -> None:
    choices = {"fill": {"choices": ["black", "noise"]}, "fill.n_images": {"choices": [1]}}
    config = one_searched(tmp_path, {"name": "rise"}, choices)
    search = config.explainer_search
    assert search is not None
    space = Space.of(config.explain.explainers[0], search.explainers["rise"])
    drawn = space.resolve({"fill": "noise", "fill.n_images": 1}).explainer
    assert drawn.fill == Noise(n_images=1)  # type: ignore[attr-defined]
    proposer = Proposer(space, search, "t0")
    assert all(proposer.ask().error is None for _ in range(12))
