"""The main study, from the data set to the leaderboard. It reads top-down like the README."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from raybench import __version__
from raybench.config import SweepConfig
from raybench.data.scan import check, check_infection, scan
from raybench.errors import TrackingError
from raybench.executor import Pool, make_pool
from raybench.models.classifier import build
from raybench.studies.context import Context, explained_images, progress_bar
from raybench.studies.explain_stage import explain
from raybench.studies.figures_stage import draw
from raybench.studies.judge_stage import input_sizes, judge
from raybench.studies.plan import Plan, make_plan
from raybench.studies.score_stage import leaderboard, score
from raybench.studies.summary import show
from raybench.studies.train_stage import train
from raybench.tracking.live import LiveProjection
from raybench.tracking.mlflow_projection import check_uri
from raybench.tracking.run_folder import RunFolder
from raybench.types import SPLITS, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a sweep is started: `resume` goes on with an interrupted one, `overwrite` begins anew."""

    resume: bool = False
    overwrite: bool = False


def plan_sweep(config: SweepConfig) -> Plan:
    """Count what a sweep will do, by file names alone.

    Raises:
        DataError: the data set's layout is not what it should be.
    """
    records = config.data.records()
    check(records, config.data, SPLITS)
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
    check(config.data.records(), config.data, SPLITS)
    if config.tracking.uri is not None:
        check_uri(config.tracking.uri)
    run = RunFolder(config.run_folder)
    with run:
        state = run.open(
            config.model_dump(mode="json"), config.digest, options.resume, options.overwrite
        )
        if state == "finished":
            console.print(f"{config.name} is finished; this is its result.", highlight=False)
            show(run, console)
            return
        try:
            context = _prepare(config, run, state)
        except BaseException:
            if state == "new":
                run.discard()
            raise
        start_ray()
        _compute(context, resume=state == "resumed")
        show(run, console)


def _prepare(config: SweepConfig, run: RunFolder, state: str) -> Context:
    """Look at every image, and make sure that the weights can be had."""
    config = config.located()
    dataset = config.data
    total = len(dataset.records())
    bar = progress_bar(total, "checking images", "image")
    try:
        found = scan(
            dataset,
            SPLITS,
            config.on_bad_image,
            config.preprocess.lung_masking,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    finally:
        bar.close()
    check(found.records, dataset, SPLITS)
    check_infection(found, dataset, ("Val", "Test"))
    for recipe in config.backbones:
        if recipe.weights != "none":
            build(recipe.name, len(dataset.classes), recipe.weights)
    kind = "sweep_started" if state == "new" else "sweep_resumed"
    run.events.append(
        kind, version=__version__, config_digest=config.digest, data_digest=found.digest
    )
    if found.bad and state == "new":
        run.events.append(
            "warning",
            message=f"{len(found.bad)} of {total} images were left out (on_bad_image: skip): "
            + "; ".join(found.bad[:10]),
        )
    limits: dict[Split, int | None] = {"Val": config.explain.n_val, "Test": config.explain.n_test}
    explained = explained_images(
        found.records, dataset.infection_class, limits, found.with_infection
    )
    return Context(config, run, dataset, found.records, explained)


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
            explain(context, pool, input_sizes(trials), full)
        finally:
            pool.close()
        scores = score(context, judged, full)
        board = leaderboard(scores, list(judged[judged.best].trial_id))
        run.write_csv("leaderboard.csv", board)
        draw(context, judged, scores, board)
        run.mark_finished()
    except BaseException:
        if live is not None:
            live.close(final=False, timeout=1.0)
        raise
    live = live or LiveProjection(run, config.tracking.uri, config.tracking.experiment)
    outcome = live.close(final=True)
    if isinstance(outcome, str):
        log.warning("%s", outcome)


def _pool(context: Context) -> Pool:
    def read(trial_id: str) -> bytes:
        return context.run.storage.read(f"checkpoints/{trial_id}.safetensors")

    return make_pool(context.config.execution, read)


__all__ = ["Options", "TrackingError", "plan_sweep", "run_sweep"]
