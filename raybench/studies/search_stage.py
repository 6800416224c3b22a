"""The search over explainers' settings: on Val alone, the same budget for every explainer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raybench.config_search import TUNED
from raybench.errors import RunFolderError
from raybench.executor import Pool
from raybench.executor.remembering import RememberingPool
from raybench.explain import Lime
from raybench.explain.spaces import ExplainerSearch, Space
from raybench.studies.context import Context, Tuned, Winners, progress_bar
from raybench.studies.explain_stage import keys_of
from raybench.studies.judging_settings import Judge
from raybench.studies.material import Material
from raybench.studies.proposals import Proposal, Proposer
from raybench.studies.tried import Tried, judgement_of, make_row
from raybench.studies.truths import load_truths
from raybench.tracking.maps import NO_TRIAL

COLUMNS = (
    *("trial_id", "backbone", "explainer", "number", "parameters", "threshold", "val_iou"),
    *("val_iou_cv", "n_forward", "seconds", "on_front", "winner", "error"),
)


@dataclass(frozen=True)
class Study:
    """One explainer, searched for one model.

    Attributes:
        trial_id: the model's; `NO_TRIAL` for an explainer that asks none.
        groups: of each Val image, what is left out together.
    """

    trial_id: str
    backbone: str
    space: Space
    settings: ExplainerSearch
    groups: tuple[str, ...]

    @property
    def title(self) -> str:
        """The explainer's."""
        return self.space.explainer.title

    @property
    def table(self) -> str:
        """Where its trials are kept."""
        return f"search_{self.trial_id}_{self.title}"


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
        tables = []
        for study, tried in zip(studies, ended, strict=True):
            of_study = {"trial_id": study.trial_id, "backbone": study.backbone}
            table = tried.table(study.space, study.groups)
            tables.append(table.assign(explainer=study.title, **of_study))
        whole = pd.concat(tables, ignore_index=True)
        context.run.write_csv("explainer_search.csv", whole[list(COLUMNS)])
    found: dict[str, list[Tuned]] = {}
    for study, tried in zip(studies, ended, strict=True):
        if tried.winner is None:
            context.run.events.append(
                "warning",
                message=f"no settings of {study.title} ({study.trial_id}) were found, its own fail "
                f"on every Val image: {tried.rows[0]['error']}",
            )
        else:
            parameters = json.loads(tried.rows[tried.winner]["parameters"])
            candidate = study.space.resolve(parameters)
            titled = candidate.explainer.model_copy(update={"label": f"{study.title}{TUNED}"})
            found.setdefault(study.trial_id, []).append(Tuned(titled, candidate.rule))
    return found


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
            if space.explainer.uses_model == (trial_id != NO_TRIAL):
                found.append(Study(trial_id, backbone, space, settings, groups))
    return found


def _run_all(
    context: Context, pool: Pool, sizes: dict[str, tuple[int, int]], studies: Sequence[Study]
) -> list[Tried]:
    """The trials of each study, those of before an interruption included."""
    n_trials = sum(study.settings.n_trials for study in studies)
    done = [context.run.read(study.table) for study in studies]
    if sum(map(len, done)) == n_trials:
        return [Tried(_rows(frame)) for frame in done]
    remembering = RememberingPool(pool)
    truths = load_truths(context, ["Val"])
    asked = sorted({s.trial_id for s in studies if isinstance(s.space.explainer, Lime)})
    material = Material(context, sizes)
    lime = ((s.trial_id, s.space.explainer) for s in studies if s.trial_id in asked)
    material.prepare(pool, lime)
    keys = keys_of(context, pool, asked, material)
    bar = progress_bar(n_trials, "searching", "setting")
    ended = []
    try:
        for study, before in zip(studies, done, strict=True):
            model = keys.get(study.trial_id)
            judge = Judge(context, remembering, study.trial_id, truths, material, model)
            ended.append(_run(context, study, judge, before, bar))
            context.run.compact(study.table)
    finally:
        bar.close()
        remembering.close()
    return ended


def _run(context: Context, study: Study, judge: Judge, before: pd.DataFrame, bar: Any) -> Tried:
    """One study; the trials of before are told to the sampler again, and not judged again."""
    old = _rows(before)
    bar.update(len(old))
    if len(old) == study.settings.n_trials:
        return Tried(old)
    proposer = Proposer(study.space, study.settings, f"{study.trial_id} {study.title}")
    tried = Tried()
    for number in range(study.settings.n_trials):
        proposal = proposer.ask()
        if number < len(old):
            _expect_same(study, old[number], proposal)
            tried.add(old[number])
            if proposal.candidate is not None:
                judge.remember(proposal.candidate, judgement_of(old[number]))
        else:
            row = make_row(number, proposal, judge)
            context.run.append(study.table, pd.DataFrame([row]))
            tried.add(row)
            _show(bar, study, tried, judge.n_asked)
        proposer.tell(proposal, tried.values(number))
    return tried


def _expect_same(study: Study, old: Mapping[Any, Any], proposal: Proposal) -> None:
    if json.loads(old["parameters"]) != dict(proposal.parameters):
        raise RunFolderError(
            f"explainer_search: trial {old['number']} of {study.title} ({study.trial_id}) was "
            f"{old['parameters']} before the interruption, and is now proposed as "
            f"{json.dumps(dict(proposal.parameters))}: another version of Optuna or of raybench; "
            "go on with that of before, or pass --overwrite"
        )


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _show(bar: Any, study: Study, tried: Tried, n_asked: int) -> None:
    bar.update(1)
    if tried.winner is not None:
        model = "" if study.trial_id == NO_TRIAL else f" {study.trial_id}"
        bar.set_postfix_str(
            f"{study.title}{model}: IoU on Val {tried.scores[tried.winner]:.3f}, as set "
            f"{tried.scores[0]:.3f}, {n_asked:,} forward passes"
        )
