"""The sweep file: typed, frozen, checked whole before anything starts.

Every room's settings are its own components; this module only joins them. It sits below the
studies, which read it, and above all rooms that it parses into.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from raybench.config_errors import problems_of
from raybench.config_goal import Search
from raybench.config_overrides import override
from raybench.config_search import search_problems
from raybench.data import CheXlocalize, DatasetSettings, Folder
from raybench.data.preprocess import Preprocess
from raybench.errors import ConfigError
from raybench.executor import Execution
from raybench.explain import (
    AnyExplainer,
    CentrePrior,
    GradCam,
    Lime,
    RandomSuperpixels,
    WholeLung,
)
from raybench.explain.spaces import ExplainerSearch
from raybench.settings import Settings, settled, values_of
from raybench.storage import Storage
from raybench.training.recipe import PreprocessDomains, Recipe
from raybench.training.settings import Training


class Explain(Settings):
    """What is explained, and how."""

    trials: Literal["best", "all"] = Field(
        "best",
        description="trials that every explainer explains on Val and Test: the best of each "
        "backbone (by Val), or all; the others get the cheap explainers on Val",
    )
    target: str = Field("predicted", description="class explained: predicted, true or a class")
    grid: Literal["model", "image"] = Field(
        "model",
        description="where superpixels and perturbations are made: at the model's input size, or "
        "at the image's own as in the study",
    )
    n_val: int | None = Field(
        None,
        ge=1,
        description="Val images with infection explained, to choose thresholds; null: all",
    )
    n_test: int | None = Field(
        None, ge=1, description="Test images with infection explained; null: all"
    )
    panels: int = Field(6, ge=0, le=50, description="Test images drawn as infection maps")
    explainers: tuple[AnyExplainer, ...] = Field(
        (Lime(), GradCam(), WholeLung(), CentrePrior(), RandomSuperpixels()),
        min_length=1,
        description="the explainers compared",
    )

    @field_validator("explainers")
    @classmethod
    def _titles(cls, explainers: tuple[AnyExplainer, ...]) -> tuple[AnyExplainer, ...]:
        titles = [e.title for e in explainers]
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            raise ValueError(f"give each its own label, found twice: {', '.join(twice)}")
        return explainers


class Tracking(Settings):
    """Where the figures are projected to. The run folder holds them whatever happens to it."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; null: mlflow.db in the run folder"
    )
    experiment: str | None = Field(None, description="MLflow experiment; null: the sweep's name")
    live: bool = Field(True, description="project while the sweep runs, not only at its end")


class SweepConfig(Settings):
    """One study: data, backbones, search, explainers, and where it runs."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name of the sweep and its folder"
    )
    output: str = Field(
        "runs", min_length=1, description="folder that the sweep's folder is made in"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of training and search")
    on_bad_image: Literal["stop", "skip"] = Field(
        "stop", description="an image that cannot be used: stop and list all, or go on without"
    )
    data: DatasetSettings = Field(description="the data set")
    preprocess: PreprocessDomains = Field(PreprocessDomains(), description="what images go through")
    backbones: tuple[Recipe, ...] = Field(min_length=1, description="what is fine-tuned, and how")
    training: Training = Field(Training(), description="what holds for every trial")
    search: Search = Field(Search(), description="how hyperparameters are searched")
    explain: Explain = Field(Explain(), description="what is explained, and how")
    explainer_search: ExplainerSearch | None = Field(
        None, description="whether the explainers' settings are searched on Val; null: no"
    )
    execution: Execution = Field(Execution(), description="where explaining runs")
    tracking: Tracking = Field(Tracking(), description="where figures are projected to")

    @field_validator("backbones")
    @classmethod
    def _unique(cls, recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        names = [r.name for r in recipes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"each backbone once, found twice: {', '.join(twice)}")
        return recipes

    @field_validator("explain")
    @classmethod
    def _targets(cls, explain: Explain, info: ValidationInfo) -> Explain:
        data = info.data.get("data")  # not there where it is wrong itself
        if data is None or (isinstance(data, Folder) and data.class_names is None):
            return explain  # a folder's classes stand in its index, which is read after this
        wanted: dict[str, str | None] = {"explain.target": explain.target}
        for index, explainer in enumerate(explain.explainers):
            wanted[f"explain.explainers.{index}.target"] = explainer.target
        valid = ("predicted", "true", *data.classes)
        wrong = {path: target for path, target in wanted.items() if target not in (None, *valid)}
        if wrong:
            expected = f"expected one of {', '.join(valid)}, found"
            raise ValueError("\n".join(f"{p}: {expected} {t!r}" for p, t in wrong.items()))
        return explain

    @field_validator("explainer_search")
    @classmethod
    def _searchable(
        cls, search: ExplainerSearch | None, info: ValidationInfo
    ) -> ExplainerSearch | None:
        explain = info.data.get("explain")  # not there where it is wrong itself
        if search is not None and explain is not None:
            problems = list(search_problems(search, explain.explainers))
            if problems:
                raise ValueError("\n".join(problems))
        return search

    @model_validator(mode="after")
    def _lungs(self) -> Self:
        inner = self.data.explain
        if self.masks_lungs and isinstance(inner, CheXlocalize) and inner.lung_masks is None:
            raise ValueError(
                "preprocess.lung_masking: CheXlocalize has no lung masks: set it false, or "
                "name a folder of them in data.explain.lung_masks"
            )
        return self

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The backbones, with the sweep's preprocessing and augmentation where they have no own."""
        return tuple(
            r.model_copy(
                update={
                    "preprocess": r.preprocess or self.preprocess,
                    "augment": r.augment or self.training.augment,
                }
            )
            for r in self.backbones
        )

    @property
    def base_preprocess(self) -> Preprocess:
        """What images go through where no trial is asked: of searched settings the first choice."""
        raw = {name: getattr(self.preprocess, name) for name in Preprocess.model_fields}
        return Preprocess.model_validate({name: settled(value) for name, value in raw.items()})

    @property
    def varies_preprocess(self) -> bool:
        """Whether trials' images may go through other things than `base_preprocess`."""
        base = self.base_preprocess.model_dump()
        return any((r.preprocess or self.preprocess).model_dump() != base for r in self.backbones)

    @property
    def masks_lungs(self) -> bool:
        """Whether any trial, or what is explained without one, can be masked to the lungs."""
        every = [r.preprocess for r in self.recipes] + [self.preprocess]
        return any(True in values_of(one.lung_masking) for one in every)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name what is computed; where it runs does not enter."""
        raw = self.model_dump(mode="json", exclude={"output", "execution", "tracking"})
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:16]

    def located(self) -> SweepConfig:
        """The same with absolute local paths: workers do not stand in this process's folder."""
        data = _located(self.data)
        if data.explain is not None:
            data = data.model_copy(update={"explain": _located(data.explain)})
        recipes = tuple(
            r
            if r.weights in ("hub", "none")
            else r.model_copy(update={"weights": str(Path(r.weights).absolute())})
            for r in self.backbones
        )
        return self.model_copy(update={"data": data, "backbones": recipes})

    @property
    def run_folder(self) -> str:
        """Where everything of this sweep lies."""
        return f"{self.output.rstrip('/')}/{self.name}"


_AnyData = TypeVar("_AnyData", bound=Settings)


def _located(data: _AnyData) -> _AnyData:
    """A data set's settings with absolute local paths."""
    paths = {key: getattr(data, key, None) for key in ("root", "lung_masks")}
    found = {key: Storage(path).path() for key, path in paths.items() if path is not None}
    return data.model_copy(update=found)


def load_config(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> SweepConfig:
    """Read a sweep file and put the overrides in.

    Args:
        path: a YAML file.
        overrides: dotted key and value (YAML). An element of a list is named by its number or by
            its `label` or `name`: `explain.explainers.lime.n_samples`.

    Raises:
        ConfigError: every mistake at once.
    """
    raw = _read(path)
    problems = [
        p for key, value in overrides if (p := override(SweepConfig, raw, key, value)) is not None
    ]
    try:
        config = SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError([*problems, *problems_of(error, SweepConfig)]) from None
    if problems:
        raise ConfigError(problems)
    return config


class _Loader(yaml.SafeLoader):
    """YAML, but a key that stands twice is a mistake: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                problem = f"the key {key.value!r} stands here for the second time"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        beside = sorted(path.parent.glob("*.yaml")) or sorted(Path("sweeps").glob("*.yaml"))
        there = f"; there are: {', '.join(map(str, beside))}" if beside else ""
        raise ConfigError([f"{path}: no such sweep file{there}"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: expected a YAML file; {_unreadable(error)}"]) from None
    if not isinstance(raw, dict):
        found = {list: "a list", type(None): "nothing"}.get(type(raw), repr(raw))
        raise ConfigError([f"{path}: expected keys and values, found {found}"])
    return raw


def _unreadable(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    if isinstance(error, OSError):
        return f"it cannot be read ({error.strerror})"
    return " ".join(str(error).split())
