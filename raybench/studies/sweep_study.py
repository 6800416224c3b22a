"""The main study, from the data set to the leaderboard. It reads top-down like the README."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from rich.console import Console

from raybench import __version__
from raybench.config import SweepConfig
from raybench.errors import DataError
from raybench.executor import Pool, make_pool
from raybench.storage import Storage
from raybench.studies.cards import checkpoint_name
from raybench.studies.checks import Found, check_names, look
from raybench.studies.closer_words import closer_headlines
from raybench.studies.comparing import compare
from raybench.studies.context import Context, explained_images
from raybench.studies.ensemble_stage import shown
from raybench.studies.explain_stage import explain
from raybench.studies.figures_stage import draw
from raybench.studies.judge_stage import input_sizes, judge
from raybench.studies.leaderboard import leaderboard
from raybench.studies.looking_closer import Asked, look_closer
from raybench.studies.lungs_stage import with_lungs
from raybench.studies.plan import Plan, make_plan
from raybench.studies.published_stage import write_published
from raybench.studies.report_stage import write_report
from raybench.studies.score_stage import score
from raybench.studies.search_stage import search
from raybench.studies.sentences import headlines
from raybench.studies.shortcut_check import warn_of_shortcuts
from raybench.studies.strata_stage import strata
from raybench.studies.summary import show
from raybench.studies.supervised_stage import supervise
from raybench.studies.train_stage import check_gpu_hours, train
from raybench.tracking.live import LiveProjection
from raybench.tracking.run_folder import RunFolder
from raybench.types import Split

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
    check_names(config, records)
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
            found = look(config, resume=state == "resumed")
            start_ray()
            check_gpu_hours(config, run, resume=state == "resumed")
        except BaseException:
            run.abandon()
            raise
        run.begin()
        _compute(_context(config.located(), run, found), resume=state == "resumed")
        show(run, console)


def _context(config: SweepConfig, run: RunFolder, found: Found) -> Context:
    """Note what is started on which data, and choose the images that are explained."""
    started = [e for e in run.events.read() if e["kind"] == "sweep_started"]
    if started and started[0]["data_digest"] != found.digest:
        raise DataError(
            f"{run.where}: the images are not those that this sweep began with (digest "
            f"{found.digest}, found then {started[0]['data_digest']}); put them back, or pass "
            "--overwrite to start again"
        )
    run.events.append(
        "sweep_resumed" if started else "sweep_started",
        version=__version__,
        config_digest=run.digest,
        data_digest=found.digest,
    )
    if found.bad and not started:
        run.events.append(
            "warning",
            message=f"{len(found.bad)} of {len(found.bad) + found.n_usable} images were left "
            f"out (on_bad_image: skip): {'; '.join(found.bad)}",
        )
    if not started:
        warn_of_shortcuts(run.events, found.trained, config.base_preprocess)
    dataset, usable = config.data, found.of_explained
    inner = dataset.explain
    limits: dict[Split, int | None] = {"Val": config.explain.n_val, "Test": config.explain.n_test}
    explained = explained_images(
        usable.records,
        (inner or dataset).infection_class,
        limits,
        usable.with_infection,
    )
    trained = found.trained
    return Context(config, run, dataset, trained.records, explained, inner, trained.digest)


def _compute(context: Context, resume: bool) -> None:
    config, run = context.config, context.run
    live = (
        LiveProjection(run, config.tracking.uri, config.tracking.experiment)
        if config.tracking.live
        else None
    )
    try:
        context = with_lungs(context, resume)
        trials = train(context, resume)
        supervised = supervise(context, resume)
        pool = _pool(context)
        try:
            judged, full = judge(context, pool, trials)
            run.write_csv("trials.csv", judged)
            sizes = input_sizes(judged)
            winners = search(context, pool, sizes, _searched(judged))
            explain(context, pool, sizes, full, winners)
            scores, best = (
                score(context, pool, judged, full, winners, supervised),
                _searched(judged),
            )
            asked = Asked(sizes, best, winners, scores)
            join = look_closer(context, pool, partial(_pool, context), asked, resume)
        finally:
            pool.close()
        chosen = list(best)
        compared = compare(scores, chosen, context, supervised)
        board = join(compared.join(leaderboard(scores, chosen, context, supervised)))
        run.write_csv("leaderboard.csv", board)
        said = headlines(compared.pairs, board, config, winners, compared.whole)
        said += closer_headlines(board, config, winners, compared.whole)
        run.events.append("compared", sentences=said)
        strata(scores, chosen, context)
        write_published(context)
        draw(context, judged, scores, board, winners, supervised)
        with context.stage("reporting"):
            write_report(context, shown(judged), winners, supervised)
        run.mark_finished()
    except BaseException:
        if live is not None:
            live.close(final=False, timeout=1.0)
        raise
    _project(live or LiveProjection(run, config.tracking.uri, config.tracking.experiment))


def _project(live: LiveProjection) -> None:
    """The last projection, of all that is there."""
    outcome = live.close(final=True)
    if isinstance(outcome, str):
        log.warning("%s", outcome)


def _searched(judged: pd.DataFrame) -> dict[str, str]:
    """The best trial of each backbone, and the ensemble; and the backbone of each."""
    rows = shown(judged)
    return dict(zip(rows.trial_id, rows.backbone, strict=True))


def _pool(context: Context) -> Pool:
    def read(trial_id: str) -> bytes:
        return context.run.storage.read(checkpoint_name(trial_id))

    config = context.config
    store = Storage(config.execution.store or f"{config.output}/answers").path()
    return make_pool(config.execution, read, store)
