"""Every check of a sweep, before anything is written or computed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raybench.config import SweepConfig
from raybench.data.across import Explained, class_problems, has_same_patients
from raybench.data.scan import Scan, Taken, check, check_infection, scan
from raybench.errors import ConfigError, DataError, ModelError, TrackingError
from raybench.explain import Explainer
from raybench.explain.spaces import NEED_LUNGS
from raybench.models.backbones import module_at
from raybench.models.build import build
from raybench.models.runtime import check_backend
from raybench.models.unet import build_unet
from raybench.studies.context import explained_images, progress_bar
from raybench.studies.lungs_stage import check_lungs_to_learn
from raybench.studies.supervised_stage import absent
from raybench.tracking.mlflow_projection import check_uri
from raybench.types import SPLITS, Dataset, Split, XrayRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What looking at the images found: the classifiers', and those of `data.explain`."""

    trained: Scan
    explained: Scan | None

    @property
    def of_explained(self) -> Scan:
        """Of the data set that is explained."""
        return self.trained if self.explained is None else self.explained

    @property
    def digest(self) -> str:
        """As `Scan.digest`, of both data sets."""
        if self.explained is None:
            return self.trained.digest
        both = f"{self.trained.digest} {self.explained.digest}"
        return hashlib.sha256(both.encode()).hexdigest()[:16]

    @property
    def bad(self) -> tuple[str, ...]:
        """A message for each image that was skipped."""
        return self.trained.bad + (() if self.explained is None else self.explained.bad)

    @property
    def n_usable(self) -> int:
        """Images that can be used."""
        return len(self.trained.records) + len(self.explained.records if self.explained else ())


def look(config: SweepConfig, resume: bool) -> Found:
    """Every check, before anything is written: data, tracking, targets, layers, weights.

    Raises:
        RaybenchError: what is wrong.
    """
    dataset = config.data
    records = dataset.records()
    check_names(config, records)
    _check_tracking(config, resume)
    _check_explainers(config)
    if config.execution.backend == "openvino":  # whether others can run, the workers will say
        check_backend("openvino", "cpu")
    found = _look_at_both(config, _check_lungs(config))
    for recipe in config.backbones:
        if recipe.weights != "none":
            build(recipe.name, len(dataset.classes), recipe.weights)
    _check_unets(config, found.trained.records)
    return found


def check_names(config: SweepConfig, records: Sequence[XrayRecord]) -> None:
    """What file names tell: that no split, class or mask lacks, that classes have counterparts.

    Raises:
        RaybenchError: something does; all of it is listed.
    """
    inner = config.data.explain
    check(records, config.data, SPLITS, "Test" if inner is None else None)
    if config.lungs is not None:
        check_lungs_to_learn(records)
    if inner is not None:
        problems = class_problems(config.data.classes, inner)
        if problems:
            raise ConfigError(problems)
        _check_explained(inner, inner.records())


def _check_unets(config: SweepConfig, records: Sequence[XrayRecord]) -> None:
    """Whether the weights of the U-Nets that will be trained can be had."""
    if config.supervised is not None and absent(config.data, records) is None:
        build_unet(config.supervised.recipe.name, config.supervised.recipe.weights)
    if config.lungs is not None:
        build_unet(config.lungs.recipe.name, config.lungs.recipe.weights)


def _check_explained(inner: Explained, records: Sequence[XrayRecord]) -> None:
    chosen = explained_images(records, inner.infection_class, {"Val": None, "Test": None})
    lacking = [
        f"{split}/{inner.infection_class}: expected images with infection masks, found none"
        for split, found in chosen.items()
        if not found
    ]
    if lacking:
        raise DataError("data.explain lacks what the sweep needs:", lacking)


def _look_at_both(config: SweepConfig, needing: bool) -> Found:
    """Open every image of what classifiers are trained on, and of what is explained.

    Args:
        needing: whether an explainer needs lung masks.
    """
    dataset = config.data
    needs_lungs = config.masks_lungs or needing
    inner = dataset.explain
    judged: tuple[Split, ...] = ("Val", "Test")
    trained = _look_at(
        config,
        dataset,
        SPLITS,
        needs_lungs if inner is None else config.masks_lungs,
    )
    if inner is None:
        check(trained.records, dataset, SPLITS)
        check_infection(trained, dataset, judged)
        return Found(trained, None)
    check(trained.records, dataset, SPLITS, None)
    taken = Taken.of(trained, "Train", has_same_patients(dataset, inner))
    found = Found(trained, _look_at(config, inner, judged, needs_lungs, taken))
    check_infection(found.of_explained, inner, judged)
    return found


def _look_at(
    config: SweepConfig,
    dataset: Dataset,
    splits: Sequence[Split],
    needs_lungs: bool,
    taken: Taken | None = None,
) -> Scan:
    n_images = sum(r.split in splits for r in dataset.records())
    bar = progress_bar(n_images, "checking images", "image")
    try:
        return scan(
            dataset,
            splits,
            config.on_bad_image,
            needs_lungs,
            progress=lambda done, _: bar.update(done - bar.n),
            taken=taken,
            lungs_to_come=config.lungs is not None,
        )
    finally:
        bar.close()


def _check_lungs(config: SweepConfig) -> bool:
    """Whether anything needs lung masks; an error where it does and no file name has one."""
    explainers = config.explain.explainers
    needing = {
        f"explain.explainers.{index}": explainer.title
        for index, explainer in enumerate(explainers)
        if explainer.needs_lungs or _needs_lungs_in_search(config, explainer)
    }
    goal = config.search.localisation
    if goal is not None and goal.explainer.needs_lungs:
        needing["search.localisation.explainer"] = goal.explainer.title
    if "top_k" in config.scoring.threshold_rules and config.scoring.superpixels.confine:
        needing["scoring.superpixels"] = "confine"
    source: Dataset = config.data if config.data.explain is None else config.data.explain
    to_come = config.lungs is not None
    if needing and not to_come and all(r.lung_mask is None for r in source.records()):
        where = "data" if config.data.explain is None else "data.explain"
        said = f"needs lung masks and {where} has none: name them there, predict them (lungs)"
        said += ", or leave it out"
        raise ConfigError([f"{path}: {title} {said}" for path, title in needing.items()])
    return bool(needing)


def _needs_lungs_in_search(config: SweepConfig, explainer: Explainer) -> bool:
    """Whether the sweep file itself names what needs lungs among what is searched."""
    search = config.explainer_search
    named = {} if search is None else search.explainers.get(explainer.title, {})
    return any(path.rpartition(".")[2] in NEED_LUNGS for path in named)


def _check_tracking(config: SweepConfig, resume: bool) -> None:
    """A server that is away stops a new sweep, and only delays the figures of a resumed one."""
    if config.tracking.uri is None:
        return
    try:
        check_uri(config.tracking.uri)
    except TrackingError as error:
        if not resume:
            raise
        log.warning("%s", error)


def _check_explainers(config: SweepConfig) -> None:
    """Targets that are classes, classes that have neighbours, layers that every backbone has."""
    classes = config.data.classes
    valid = ("predicted", "true", *classes)
    wanted = {"explain.target": (config.explain.target, valid)}
    layers: dict[str, str] = {}
    for path, settings in _all_settings(config):
        for key, value in settings.items():
            if key.endswith("target") and value is not None:
                wanted[f"{path}.{key}"] = (value, valid)
            elif key.endswith("among") and value is not None:
                wanted[f"{path}.{key}"] = (value, classes)
            elif key == "layer" and value is not None:
                layers[f"{path}.{key}"] = value
    problems = [
        f"{path}: expected one of {', '.join(known)}, found {value!r}"
        for path, (value, known) in wanted.items()
        if value not in known
    ]
    problems += list(_layer_problems(config, layers))
    if problems:
        raise ConfigError(problems)


def _all_settings(config: SweepConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every explainer's settings by dotted key, and those that the search may give it."""
    for index, explainer in enumerate(config.explain.explainers):
        found: dict[str, Any] = dict(explainer.model_dump())
        fill = found.pop("fill", None)
        if isinstance(fill, dict):
            found |= {f"fill.{key}": value for key, value in fill.items()}
        yield f"explain.explainers.{index}", found
    if config.search.localisation is not None:
        yield "search.localisation.explainer", config.search.localisation.explainer.model_dump()
    search = config.explainer_search
    for title, domains in ({} if search is None else search.explainers).items():
        for key, domain in domains.items():
            for value in getattr(domain, "choices", ()):
                yield f"explainer_search.explainers.{title}", {key: value}


def _layer_problems(config: SweepConfig, layers: Mapping[str, str]) -> Iterator[str]:
    for recipe in config.backbones if layers else ():
        with torch.device("meta"):
            net = build(recipe.name, len(config.data.classes))
        for path, layer in layers.items():
            try:
                module_at(net, layer)
            except ModelError as error:
                yield f"{path}: {recipe.name}: {error}"
