"""Families of settings by their short names, and what is said of mistakes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field, ValidationError

from raybench.config import load_config
from raybench.config_errors import problems_of
from raybench.errors import ConfigError
from raybench.settings import Choice, Range, Settings, named
from raybench.training.recipe import Recipe


class Fine(Settings):
    name: Literal["fine"] = "fine"
    n_regions: int = Field(50, ge=1)


class Coarse(Settings):
    name: Literal["coarse"] = "coarse"
    width: float = Field(2.0, gt=0)


class Method(Settings):
    name: Literal["method"] = "method"
    regions: named(Fine | Coarse) = Coarse()  # type: ignore[valid-type]


class Kindly(Method):
    regions: named(Fine | Coarse, default="coarse") = Coarse()  # type: ignore[valid-type]


class Other(Settings):
    name: Literal["other"] = "other"


class Sweep(Settings):
    methods: tuple[named(Method | Other), ...]  # type: ignore[valid-type]


def test_a_string_stands_for_the_member_with_its_defaults() -> None:
    for short in ("fine", {"name": "fine"}, Fine()):
        assert Method(regions=short).regions == Fine()
    assert Method().regions == Coarse()
    found = Sweep.model_validate({"methods": ["other", {"name": "method", "regions": "fine"}]})
    assert found.methods == (Other(), Method(regions=Fine()))
    assert Sweep.model_validate(found.model_dump()) == found
    assert Sweep.model_validate_json(found.model_dump_json()) == found


def test_keys_without_a_name_belong_to_the_default() -> None:
    assert Kindly(regions={"width": 3}).regions == Coarse(width=3)
    assert Kindly(regions={"name": "fine"}).regions == Fine()
    with pytest.raises(ValidationError, match="Unable to extract tag"):
        Method(regions={"width": 3})


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ("fne", "methods.0.regions.name: expected one of fine, coarse, found 'fne'; did you mean "),
        (
            {"name": "fine", "n_region": 3},
            "methods.0.regions.n_region: not a setting of fine; did you mean n_regions?",
        ),
        (
            {"name": "fine", "n_regions": 0},
            "methods.0.regions.n_regions: expected a number of at least 1, found 0",
        ),
        ({"width": 3}, "methods.0.regions.name: required, and not there; choose fine, coarse"),
        (3, "methods.0.regions: expected keys and values, name: one of fine, coarse among them"),
    ],
)
def test_mistakes_are_told_with_their_path(regions: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Sweep.model_validate({"methods": [{"name": "method", "regions": regions}]})
    (problem,) = problems_of(caught.value, Sweep)
    assert problem.startswith(said)


def test_a_short_form_in_a_file_can_be_changed_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "{name: a, data: {name: phantom}, backbones: [{name: test_resnet, weights: none, phases: "
        "[{epochs: 1, lr: 0.1}]}], explain: {explainers: [{name: lime, superpixels: slic}]}}"
    )
    key = "explain.explainers.lime.superpixels"
    for overrides, expected in (
        ([], {"name": "slic"}),
        ([(f"{key}.n_segments", "9")], {"name": "slic", "n_segments": 9}),
        ([(key, "grid")], {"name": "grid"}),
        ([(key, "grid"), (f"{key}.cells", "4")], {"name": "grid", "cells": 4}),
    ):
        superpixels = load_config(path, overrides).explain.explainers[0].superpixels
        assert expected.items() <= superpixels.model_dump().items()


FIRSTS = [
    ({"low": 1e-5, "high": 1e-3, "first": 1e-2}, "first must lie from 1e-05 to 0.001, found 0.01"),
    ({"choices": [1e-4, 1e-3], "first": 1e-2}, "first must be one of 0.0001, 0.001, found 0.01"),
    ({"choices": [8, 16], "first": True}, "first must be one of 8, 16, found True"),
]


@pytest.mark.parametrize(("domain", "said"), FIRSTS)
def test_what_the_first_trial_takes_lies_in_the_domain(domain: dict[str, Any], said: str) -> None:
    kind = Choice if "choices" in domain else Range
    with pytest.raises(ValidationError) as error:
        kind.model_validate(domain)
    assert said in str(error.value)


def test_first_is_of_the_settings_own_type() -> None:
    raw = {"name": "test_resnet", "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]}
    lr = {"choices": ["1e-5", "1e-4"], "first": "1e-4"}  # text to YAML
    found = Recipe.model_validate(raw | {"phases": [{"epochs": 1, "lr": lr}]}).phases[0].lr
    assert found == Choice(choices=(1e-5, 1e-4), first=1e-4)
    mixed = {"choices": ["1e-5", 1e-4], "first": 1e-5}
    found = Recipe.model_validate(raw | {"phases": [{"epochs": 1, "lr": mixed}]}).phases[0].lr
    assert found == Choice(choices=(1e-5, 1e-4), first=1e-5)
    assert Recipe.model_validate(raw | {"batch_size": {"low": 4, "high": 9, "first": 6}})
    with pytest.raises(ValidationError, match="first"):
        Recipe.model_validate(raw | {"batch_size": {"low": 4, "high": 9, "first": 6.5}})


def test_a_search_over_explainers_has_its_own_first_trial(tmp_path: Path) -> None:
    config = {
        "name": "x",
        "data": {"name": "phantom"},
        "backbones": [{"name": "test_resnet", "phases": [{"epochs": 1, "lr": 1e-3}]}],
        "explainer_search": {
            "explainers": {"lime": {"n_samples": {"choices": [50, 100], "first": 50}}}
        },
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as error:
        load_config(path)
    (problem,) = error.value.problems
    assert problem.startswith("explainer_search.explainers.lime.n_samples.first: not here")
