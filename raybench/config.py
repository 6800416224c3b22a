"""The sweep file: typed, frozen, checked whole before anything starts.

Every room's settings are its own components; this module only joins them. It sits below the
studies, which read it, and above all rooms that it parses into.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from raybench.config_errors import problems_of
from raybench.data import DatasetSettings, Folder, Phantom
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
from raybench.settings import Settings
from raybench.storage import Storage
from raybench.training.recipe import Recipe, Search, Training


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

    @model_validator(mode="after")
    def _titles(self) -> Self:
        titles = [e.title for e in self.explainers]
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            raise ValueError(f"explainers: give each its own label, found twice: {twice}")
        return self


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
    output: str = Field("runs", description="folder that the sweep's folder is made in")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="of training and search")
    on_bad_image: Literal["stop", "skip"] = Field(
        "stop", description="an image that cannot be used: stop and list all, or go on without"
    )
    data: DatasetSettings = Field(description="the data set")
    preprocess: Preprocess = Field(Preprocess(), description="what images go through")
    backbones: tuple[Recipe, ...] = Field(min_length=1, description="what is fine-tuned, and how")
    training: Training = Field(Training(), description="what holds for every trial")
    search: Search = Field(Search(), description="how hyperparameters are searched")
    explain: Explain = Field(Explain(), description="what is explained, and how")
    execution: Execution = Field(Execution(), description="where explaining runs")
    tracking: Tracking = Field(Tracking(), description="where figures are projected to")

    @field_validator("backbones")
    @classmethod
    def _unique(cls, recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        names = [r.name for r in recipes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"each backbone once, found twice: {twice}")
        return recipes

    @model_validator(mode="after")
    def _targets(self) -> Self:
        if isinstance(self.data, Folder):
            return self  # its classes stand in its index, which is read after this
        classes = self.data.classes
        wanted = {"explain.target": self.explain.target}
        for index, explainer in enumerate(self.explain.explainers):
            if explainer.target is not None:
                wanted[f"explain.explainers.{index}.target"] = explainer.target
        for path, target in wanted.items():
            if target not in ("predicted", "true", *classes):
                valid = ", ".join(("predicted", "true", *classes))
                raise ValueError(f"{path}: expected one of {valid}, found {target!r}")
        return self

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name what is computed; where it runs does not enter."""
        raw = self.model_dump(mode="json", exclude={"output", "execution", "tracking"})
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:16]

    def located(self) -> SweepConfig:
        """The same with absolute local paths: workers do not stand in this process's folder."""
        data = self.data
        if not isinstance(data, Phantom):
            data = data.model_copy(update={"root": Storage(data.root).path()})
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
    problems = [p for key, value in overrides if (p := _override(raw, key, value)) is not None]
    if problems:
        raise ConfigError(problems)
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(problems_of(error, SweepConfig)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(p) for p in Path("sweeps").glob("*.yaml"))
        there = f"; there are: {', '.join(near)}" if near else ""
        raise ConfigError([f"{path}: no such sweep file{there}"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: not a readable YAML file ({error})"]) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"{path}: expected keys and values, found {type(raw).__name__}"])
    return raw


def _override(raw: dict[str, Any], key: str, text: str) -> str | None:
    """Set one dotted key; what is wrong with it, or None."""
    *parents, leaf = key.split(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    node: Any = raw
    for depth, part in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(part, {})
            continue
        found = _element(node, part)
        if found is None:
            return f"{key}: {'.'.join(parents[: depth + 1])} is not there{_valid(node)}"
        node = found
    if isinstance(node, dict):
        node[leaf] = value
        return None
    if isinstance(node, list) and leaf.isdigit() and int(leaf) < len(node):
        node[int(leaf)] = value
        return None
    return f"{key}: {'.'.join(parents)} has no {leaf!r}{_valid(node)}"


def _element(node: Any, part: str) -> Any:
    if not isinstance(node, list):
        return None
    if part.isdigit():
        return node[int(part)] if int(part) < len(node) else None
    named = [e for e in node if isinstance(e, Mapping) and part in (e.get("label"), e.get("name"))]
    return named[0] if named else None


def _valid(node: Any) -> str:
    if not isinstance(node, list):
        return ""
    names = [str(e.get("label") or e.get("name")) for e in node if isinstance(e, Mapping)]
    return f"; choose {', '.join(names)} or a number below {len(node)}"
