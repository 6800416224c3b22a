"""The search over explainers' settings: on Val alone, the same budget for every explainer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from raybench.config_search import TUNED
from raybench.executor import Pool
from raybench.executor.remembering import RememberingPool
from raybench.explain import Lime
from raybench.explain.spaces import ExplainerSearch, Space
from raybench.studies.context import Context, Tuned, Winners, explains, progress_bar
from raybench.studies.explain_stage import keys_of
from raybench.studies.judging_settings import Judge
from raybench.studies.material import Material
from raybench.studies.one_search import Before, Study, run_study
from raybench.studies.tried import Tried
from raybench.studies.truths import load_truths
from raybench.tracking.maps import NO_TRIAL

COLUMNS = (
    *("trial_id", "backbone", "explainer", "number", "parameters", "threshold", "val_iou"),
    *("val_iou_cv", "n_forward", "seconds", "on_front", "winner", "error"),
)


def search(
    context: Context, pool: Pool, sizes: dict[str, tuple[int, int]], best: Mapping[str, str]
) -> Winners:
    """Search what the sweep asks for, or nothing, and write `explainer_search.csv`.

    Args:
        sizes: input size of every trial with a checkpoint.
        best: backbone of each trial that is searched for.

    Returns:
        The winners by trial.

    Raises:
        RunFolderError: the settings proposed now are not those of before an interruption.
    """
    settings = context.config.explainer_search
    if settings is None:
        return {}
    studies = list(_studies(context, settings, best))
    with context.stage("searching", settings=len(studies) * settings.n_trials):
        ended = _run_all(context, pool, sizes, studies)
        context.run.write_csv("explainer_search.csv", _table(studies, ended))
    found: dict[str, list[Tuned]] = {}
    for study, tried in zip(studies, ended, strict=True):
        tuned = _winner(context, study, tried)
        if tuned is not None:
            found.setdefault(study.trial_id, []).append(tuned)
    return found


def found_before(context: Context) -> Winners:
    """The winners of a search that ended, read back from `explainer_search.csv`.

    They are what maps were made with. The images that thresholds were chosen on are not told.
    """
    settings, table = context.config.explainer_search, context.run.read_csv("explainer_search.csv")
    if settings is None or table.empty:
        return {}
    by_title = {space.explainer.title: space for space in spaces(context, settings)}
    found: dict[str, list[Tuned]] = {}
    for row in table[table.winner].to_dict("records"):
        title = str(row["explainer"])
        tuned = _tuned(by_title[title], f"{title}{TUNED}", str(row["parameters"]), ())
        found.setdefault(str(row["trial_id"]), []).append(tuned)
    return found


def _tuned(space: Space, title: str, parameters: str, images: tuple[str, ...]) -> Tuned:
    """A winner from the settings found, as they are written down."""
    candidate = space.resolve(json.loads(parameters))
    named = candidate.explainer.model_copy(update={"label": title})
    return Tuned(named, candidate.rule, images)


def _table(studies: Sequence[Study], ended: Sequence[Tried]) -> pd.DataFrame:
    """A row a setting tried, columns as in `COLUMNS`."""
    tables = [
        tried.table(study.space, study.groups).assign(
            explainer=study.title, trial_id=study.trial_id, backbone=study.backbone
        )
        for study, tried in zip(studies, ended, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _winner(context: Context, study: Study, tried: Tried) -> Tuned | None:
    """What a study found; a warning where it found nothing."""
    if tried.winner is None:
        context.warn_once(
            f"no settings of {study.title} ({study.trial_id}) were found, its own fail on every "
            f"Val image: {tried.rows[0]['error']}"
        )
        return None
    parameters = tried.rows[tried.winner]["parameters"]
    val = context.explained["Val"]
    images = [r.image_id for r, there in zip(val, tried.images.tolist(), strict=True) if there]
    return _tuned(study.space, study.winner_title, parameters, tuple(images))


def spaces(context: Context, settings: ExplainerSearch) -> list[Space]:
    """What is searched of each explainer; lungs are not clipped to where a mask is missing."""
    records = [record for split in context.explained.values() for record in split]
    with_lungs = all(record.lung_mask is not None for record in records)
    return [
        Space.of(explainer, settings.explainers.get(explainer.title), with_lungs)
        for explainer in context.config.explain.explainers
    ]


def _studies(context: Context, settings: ExplainerSearch, best: Mapping[str, str]) -> list[Study]:
    """Those that ask no model first, then model by model."""
    found = []
    groups = tuple(
        r.image_id if r.patient is None else f"patient {r.patient}"
        for r in context.explained["Val"]
    )
    for trial_id, backbone in {NO_TRIAL: "", **best}.items():
        for space in spaces(context, settings):
            asked = space.explainer.uses_model == (trial_id != NO_TRIAL)
            if asked and explains(space.explainer, trial_id):
                found.append(Study(trial_id, backbone, space, settings, groups))
    return found


def _run_all(
    context: Context, pool: Pool, sizes: dict[str, tuple[int, int]], studies: Sequence[Study]
) -> list[Tried]:
    """The trials of each study, those of before an interruption included."""
    before = [Before.of(context, study) for study in studies]
    pairs = list(zip(studies, before, strict=True))
    if all(known.is_all(study.settings.n_trials) for study, known in pairs):
        return [known.tried() for known in before]
    remembering = RememberingPool(pool)
    truths = load_truths(context, ["Val"])
    asked = sorted({s.trial_id for s in studies if isinstance(s.space.explainer, Lime)})
    material = Material(context, sizes)
    lime = ((s.trial_id, s.space.explainer) for s in studies if s.trial_id in asked)
    material.prepare(pool, lime)
    keys = keys_of(context, pool, asked, material)
    bar = progress_bar(sum(s.settings.n_trials for s in studies), "searching", "setting")
    ended: list[Tried] = []
    trial_id = NO_TRIAL
    try:
        for study, known in pairs:
            if study.trial_id != trial_id:
                material.release(trial_id)
                trial_id = study.trial_id
            judge = Judge(context, remembering, trial_id, truths, material, keys.get(trial_id))
            ended.append(run_study(context, study, judge, known, bar))
            context.run.compact(study.table)
    finally:
        bar.close()
        remembering.close()
    return ended
