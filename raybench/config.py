"""The sweep file: typed, frozen, checked whole before anything starts.

Every room's settings are its own components; this module only joins them. It sits below the
studies, which read it, and above all rooms that it parses into.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from raybench.config_ensemble import Ensemble
from raybench.config_errors import problems_of
from raybench.config_explain import Explain, Scoring, Tracking
from raybench.config_goal import Search
from raybench.config_overrides import override
from raybench.config_sanity import Sanity, Stability
from raybench.config_search import search_problems
from raybench.config_yaml import read_sweep_file
from raybench.data import CheXlocalize, DatasetSettings, Folder
from raybench.data.preprocess import Preprocess, in_effect
from raybench.errors import ConfigError
from raybench.executor import Execution
from raybench.explain.faithfulness import SweepFaithfulness
from raybench.explain.spaces import ExplainerSearch
from raybench.settings import Choice, Range, Settings, settled, values_of
from raybench.storage import Storage
from raybench.training.recipe import PreprocessDomains, Recipe
from raybench.training.segment import LungSegmentation, Segmentation
from raybench.training.settings import Training


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
    supervised: Segmentation | None = Field(
        None, description="a U-Net that learns Train's infection masks, as a reference; null: none"
    )
    lungs: LungSegmentation | None = Field(
        None,
        description="a U-Net that finds the lungs of images that have no lung mask; null: none",
    )
    explain: Explain = Field(Explain(), description="what is explained, and how")
    scoring: Scoring = Field(Scoring(), description="how maps are held against the infection")
    explainer_search: ExplainerSearch | None = Field(
        None, description="whether the explainers' settings are searched on Val; null: no"
    )
    faithfulness: SweepFaithfulness | None = Field(
        None, description="whether the maps' faithfulness to the models is asked; null: no"
    )
    sanity: Sanity | None = Field(
        None, description="whether maps change as models are randomised is asked; null: no"
    )
    stability: Stability | None = Field(
        None, description="whether maps stay over seeds and noise is asked; null: no"
    )
    ensemble: Ensemble | None = Field(
        None, description="the mean of several trials as one more classifier; null: none"
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

    @field_validator("sanity")
    @classmethod
    def _has_stages(cls, sanity: Sanity | None, info: ValidationInfo) -> Sanity | None:
        if sanity is not None:
            sanity.check(recipe.name for recipe in info.data.get("backbones", ()))
        return sanity

    @field_validator("ensemble")
    @classmethod
    def _members(cls, ensemble: Ensemble | None, info: ValidationInfo) -> Ensemble | None:
        recipes, search = info.data.get("backbones"), info.data.get("search")
        if ensemble is not None and recipes is not None and search is not None:
            problem = ensemble.problem(len(recipes), search.trials_per_backbone)
            if problem is not None:
                raise ValueError(problem)
        return ensemble

    @model_validator(mode="after")
    def _lungs(self) -> Self:
        inner = self.data.explain
        no_lungs = isinstance(inner, CheXlocalize) and inner.lung_masks is None
        if self.masks_lungs and no_lungs and self.lungs is None:
            raise ValueError(
                "preprocess.lung_masking: CheXlocalize has no lung masks: set it false, name a "
                "folder of them in data.explain.lung_masks, or have them predicted (lungs)"
            )
        return self

    @model_validator(mode="after")
    def _one_way_of_seeing(self) -> Self:
        if self.ensemble is not None and self.varies_preprocess:
            raise ValueError(
                "ensemble: its members see one image, so all must preprocess it in one way; here "
                f"{'; '.join(self._ways_of_seeing())}: set it in the sweep's preprocess, the same "
                "for all"
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
    def supervised_recipe(self) -> Recipe | None:
        """The supervised U-Net's, with the sweep's preprocessing and augmentation likewise."""
        own = self.supervised
        return None if own is None else own.filled(self.base_preprocess, self.training.augment)

    @property
    def lungs_recipe(self) -> Recipe | None:
        """Likewise the lungs', without lung masking."""
        own = self.lungs
        return None if own is None else own.filled(self.base_preprocess, self.training.augment)

    @property
    def base_preprocess(self) -> Preprocess:
        """What images go through where no trial is asked: of searched settings the first choice."""
        raw = {name: getattr(self.preprocess, name) for name in Preprocess.model_fields}
        return Preprocess.model_validate({name: settled(value) for name, value in raw.items()})

    @property
    def varies_preprocess(self) -> bool:
        """Whether trials' images may go through other things than `base_preprocess`."""
        return bool(self._ways_of_seeing())

    def _ways_of_seeing(self) -> list[str]:
        """Where backbones depart from `base_preprocess`; what is idle does not count."""
        base = in_effect(dict(self.base_preprocess))
        found: dict[str, list[str]] = {}
        for recipe in self.backbones:
            own = in_effect(dict(recipe.preprocess or self.preprocess))
            for name in (name for name in base if name in own and own[name] != base[name]):
                searched = isinstance(own[name], Range | Choice)
                is_what = "searched" if searched else f"{own[name]} and not {base[name]}"
                found.setdefault(f"preprocess.{name} is {is_what}", []).append(recipe.name)
        return [f"{what} for {', '.join(names)}" for what, names in found.items()]

    @property
    def masks_lungs(self) -> bool:
        """Whether any trial, or what is explained without one, can be masked to the lungs."""
        every = [r.preprocess for r in self.recipes] + [self.preprocess]
        if self.supervised_recipe is not None:
            every.append(self.supervised_recipe.preprocess)
        return any(True in values_of(one.lung_masking) for one in every)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name what is computed; where it runs does not enter."""
        where: dict[str, Any] = dict.fromkeys(("output", "execution", "tracking"), True)
        where["training"] = {"cache", "cache_gb"}
        raw = self.model_dump(mode="json", exclude=where)
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:16]

    def located(self) -> SweepConfig:
        """The same with absolute local paths: workers do not stand in this process's folder."""
        data = _located(self.data)
        if data.explain is not None:
            data = data.model_copy(update={"explain": _located(data.explain)})
        found: dict[str, Any] = {
            "data": data,
            "backbones": tuple(_with_weights_at(r) for r in self.backbones),
        }
        for name in ("supervised", "lungs"):
            own = getattr(self, name)
            if own is not None:
                found[name] = own.model_copy(update={"recipe": _with_weights_at(own.recipe)})
        return self.model_copy(update=found)

    @property
    def image_cache(self) -> str:
        """Local folder of the decoded images, on each machine that trains."""
        beside = Storage(f"{self.output.rstrip('/')}/cache")
        if self.training.cache is None and not beside.is_local:
            return str(Path(tempfile.gettempdir()) / "raybench-cache")
        return Storage(self.training.cache or beside.root).path()

    @property
    def run_folder(self) -> str:
        """Where everything of this sweep lies."""
        return f"{self.output.rstrip('/')}/{self.name}"


def _with_weights_at(recipe: Recipe) -> Recipe:
    """The recipe with an absolute path where its weights are a file."""
    if recipe.weights in ("hub", "none"):
        return recipe
    return recipe.model_copy(update={"weights": str(Path(recipe.weights).absolute())})


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
    raw = read_sweep_file(path)
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
