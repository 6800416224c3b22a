"""The main study, from the data set to the leaderboard. It reads top-down like the README."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from rich.console import Console

from raybench import __version__
from raybench.config import SweepConfig
from raybench.data.across import Explained, class_problems
from raybench.data.scan import Scan, check, check_infection, scan
from raybench.errors import ConfigError, DataError, ModelError, TrackingError
from raybench.executor import Pool, make_pool
from raybench.explain import Explainer
from raybench.explain.spaces import NEED_LUNGS
from raybench.models.backbones import module_at
from raybench.models.build import build
from raybench.models.runtime import check_backend
from raybench.storage import Storage
from raybench.studies.context import Context, explained_images, progress_bar
from raybench.studies.explain_stage import explain
from raybench.studies.figures_stage import draw
from raybench.studies.judge_stage import input_sizes, judge
from raybench.studies.plan import Plan, make_plan
from raybench.studies.score_stage import leaderboard, score
from raybench.studies.search_stage import search
from raybench.studies.summary import show
from raybench.studies.train_stage import train
from raybench.tracking.live import LiveProjection
from raybench.tracking.mlflow_projection import check_uri
from raybench.tracking.run_folder import RunFolder
from raybench.types import SPLITS, Dataset, Split, XrayRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a sweep is started: `resume` goes on with an interrupted one, `overwrite` begins anew."""

    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class _Found:
    """What looking at the images found: the classifiers', and those of `data.explain`."""

    trained: Scan
    explained: Scan | None

    @property
    def of_explained(self) -> Scan:
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
        return self.trained.bad + (() if self.explained is None else self.explained.bad)

    @property
    def n_usable(self) -> int:
        return len(self.trained.records) + len(self.explained.records if self.explained else ())


def plan_sweep(config: SweepConfig) -> Plan:
    """Count what a sweep will do, by file names alone.

    Raises:
        DataError: the data set's layout is not what it should be.
    """
    records = config.data.records()
    _check_names(config, records)
    return make_plan(config, records)


def run_sweep(
    config: SweepConfig, options: Options, console: Console, start_ray: Callable[[], None]
) -> None:
    """Run the sweep, or go on with it, or show the result of a finished one.

    Args:
        start_ray: joins or starts Ray; called once, after every check has passed.

    Raises:
        RaybenchError: what is wrong, before anything is computed where that can be told; work
            already done stays in the run folder.
    """
    with RunFolder(config.run_folder) as run:
        state = run.open(
            config.model_dump(mode="json"),
            config.digest,
            options.resume,
            options.overwrite,
            defer=True,
        )
        if state == "finished":
            console.print(f"{config.name} is finished; this is its result.", highlight=False)
            show(run, console)
            return
        try:
            found = _look(config, resume=state == "resumed")
            start_ray()
        except BaseException:
            run.abandon()
            raise
        run.begin()
        _compute(_context(config.located(), run, found), resume=state == "resumed")
        show(run, console)


def _look(config: SweepConfig, resume: bool) -> _Found:
    """Every check, before anything is written: data, tracking, targets, layers, weights."""
    dataset = config.data
    records = dataset.records()
    _check_names(config, records)
    _check_tracking(config, resume)
    _check_explainers(config)
    if config.execution.backend == "openvino":  # whether others can run, the workers will say
        check_backend("openvino", "cpu")
    needs_lungs = config.preprocess.lung_masking or any(
        e.needs_lungs or _needs_lungs_in_search(config, e) for e in config.explain.explainers
    )
    inner = dataset.explain
    judged: tuple[Split, ...] = ("Val", "Test")
    trained = _look_at(
        config,
        dataset,
        SPLITS,
        needs_lungs if inner is None else config.preprocess.lung_masking,
    )
    found = _Found(trained, None)
    if inner is None:
        check(trained.records, dataset, SPLITS)
        check_infection(trained, dataset, judged)
    else:
        check(trained.records, dataset, SPLITS, None)
        found = _Found(trained, _look_at(config, inner, judged, needs_lungs))
        check_infection(found.of_explained, inner, judged)
    for recipe in config.backbones:
        if recipe.weights != "none":
            build(recipe.name, len(dataset.classes), recipe.weights)
    return found


def _check_names(config: SweepConfig, records: Sequence[XrayRecord]) -> None:
    """What file names tell: that no split, class or mask lacks, that classes have counterparts."""
    inner = config.data.explain
    check(records, config.data, SPLITS, "Test" if inner is None else None)
    if inner is not None:
        problems = class_problems(config.data.classes, inner)
        if problems:
            raise ConfigError(problems)
        _check_explained(inner, inner.records())


def _check_explained(inner: Explained, records: Sequence[XrayRecord]) -> None:
    chosen = explained_images(records, inner.infection_class, {"Val": None, "Test": None})
    lacking = [
        f"{split}/{inner.infection_class}: expected images with infection masks, found none"
        for split, found in chosen.items()
        if not found
    ]
    if lacking:
        raise DataError("data.explain lacks what the sweep needs:", lacking)


def _look_at(
    config: SweepConfig, dataset: Dataset, splits: Sequence[Split], needs_lungs: bool
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
        )
    finally:
        bar.close()


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
    """Targets that are classes, layers that every backbone has."""
    classes = config.data.classes
    valid = ("predicted", "true", *classes)
    wanted = {"explain.target": config.explain.target}
    problems = []
    for index, explainer in enumerate(config.explain.explainers):
        path = f"explain.explainers.{index}"
        if explainer.target is not None:
            wanted[f"{path}.target"] = explainer.target
        layer = getattr(explainer, "layer", None)
        for recipe in config.backbones if layer else ():
            with torch.device("meta"):
                net = build(recipe.name, len(classes))
            try:
                module_at(net, str(layer))
            except ModelError as error:
                problems.append(f"{path}.layer: {recipe.name}: {error}")
    for path, target in wanted.items():
        if target not in valid:
            problems.append(f"{path}: expected one of {', '.join(valid)}, found {target!r}")
    if problems:
        raise ConfigError(problems)


def _context(config: SweepConfig, run: RunFolder, found: _Found) -> Context:
    """Note what is started on which data, and choose the images that are explained."""
    started = [e for e in run.events.read() if e["kind"] == "sweep_started"]
    if started and started[0]["data_digest"] != found.digest:
        raise DataError(
            f"{run.path}: the images are not those that this sweep began with (digest "
            f"{found.digest}, found then {started[0]['data_digest']}); put them back, or pass "
            "--overwrite to start again"
        )
    run.events.append(
        "sweep_resumed" if started else "sweep_started",
        version=__version__,
        config_digest=config.digest,
        data_digest=found.digest,
    )
    if found.bad and not started:
        run.events.append(
            "warning",
            message=f"{len(found.bad)} of {len(found.bad) + found.n_usable} images were left "
            f"out (on_bad_image: skip): {'; '.join(found.bad)}",
        )
    dataset, usable = config.data, found.of_explained
    inner = dataset.explain
    limits: dict[Split, int | None] = {"Val": config.explain.n_val, "Test": config.explain.n_test}
    explained = explained_images(
        usable.records,
        (inner or dataset).infection_class,
        limits,
        usable.with_infection,
    )
    return Context(config, run, dataset, found.trained.records, explained, inner)


def _compute(context: Context, resume: bool) -> None:
    config, run = context.config, context.run
    live = (
        LiveProjection(run, config.tracking.uri, config.tracking.experiment)
        if config.tracking.live
        else None
    )
    try:
        trials = train(context, resume)
        pool = _pool(context)
        try:
            judged, full = judge(context, pool, trials)
            run.write_csv("trials.csv", judged)
            sizes = input_sizes(trials)
            winners = search(context, pool, sizes, _best(judged))
            explain(context, pool, sizes, full, winners)
        finally:
            pool.close()
        scores = score(context, judged, full, winners)
        board = leaderboard(scores, list(judged[judged.best].trial_id))
        run.write_csv("leaderboard.csv", board)
        draw(context, judged, scores, board, winners)
        run.mark_finished()
    except BaseException:
        if live is not None:
            live.close(final=False, timeout=1.0)
        raise
    live = live or LiveProjection(run, config.tracking.uri, config.tracking.experiment)
    outcome = live.close(final=True)
    if isinstance(outcome, str):
        log.warning("%s", outcome)


def _best(judged: pd.DataFrame) -> dict[str, str]:
    """The best trial of each backbone, and the backbone."""
    best = judged[judged.best]
    return dict(zip(best.trial_id, best.backbone, strict=True))


def _pool(context: Context) -> Pool:
    def read(trial_id: str) -> bytes:
        return context.run.storage.read(f"checkpoints/{trial_id}.safetensors")

    config = context.config
    store = Storage(config.execution.store or f"{config.output}/answers").path()
    return make_pool(config.execution, read, store)
