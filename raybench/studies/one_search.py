"""One study of the search over settings: trial after trial, the same ones after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raybench.config_search import TUNED
from raybench.errors import RunFolderError
from raybench.explain.spaces import ExplainerSearch, Space
from raybench.studies.context import Context
from raybench.studies.judging_settings import Judge
from raybench.studies.proposals import Proposal, Proposer
from raybench.studies.tried import Row, Tried, is_failed, judgement_of, make_row
from raybench.tracking.maps import NO_TRIAL, table_name


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

    @property
    def winner_title(self) -> str:
        """What its winner is called."""
        return f"{self.title}{TUNED}"


@dataclass(frozen=True)
class Before:
    """The trials of a study that are there already.

    Attributes:
        first: by number, as they came out at first: what the sampler was told of.
        last: by number, as they came out when they were tried last.
        is_settled: whether its winner has made maps: it stays the winner then.
    """

    first: Mapping[int, Row]
    last: Mapping[int, Row]
    is_settled: bool

    @classmethod
    def of(cls, context: Context, study: Study) -> Before:
        """What the run folder holds of a study."""
        rows = [
            {str(key): value for key, value in row.items()}
            for row in context.run.read(study.table).to_dict("records")
        ]
        maps = table_name(study.trial_id, study.winner_title)
        return cls(
            {row["number"]: row for row in reversed(rows)},
            {row["number"]: row for row in rows},
            any(len(frame) for frame in context.run.iterate(maps, ["image_id"])),
        )

    def is_again(self, number: int) -> bool:
        """Whether a trial is tried again: it failed, and nothing hangs on it yet."""
        return not self.is_settled and is_failed(self.last[number])

    def is_all(self, n_trials: int) -> bool:
        """Whether there is nothing left to try."""
        return all(n in self.last and not self.is_again(n) for n in range(n_trials))

    def tried(self) -> Tried:
        """The trials in order."""
        return Tried([self.last[number] for number in sorted(self.last)])


def run_study(context: Context, study: Study, judge: Judge, before: Before, bar: Any) -> Tried:
    """One study; of the trials of before only those that failed are judged again.

    The sampler is told of these what it was told then, so that it proposes the same.

    Raises:
        RunFolderError: it proposes other settings than those of before.
    """
    if before.is_all(study.settings.n_trials):
        bar.update(study.settings.n_trials)
        return before.tried()
    proposer = Proposer(study.space, study.settings, f"{study.trial_id} {study.title}")
    told, tried = Tried(), Tried()
    for number in range(study.settings.n_trials):
        proposal = proposer.ask()
        row = _known(study, judge, before, number, proposal)
        if row is None:
            row = make_row(number, proposal, judge)
            context.run.append(study.table, pd.DataFrame([row]))
        tried.add(row)
        told.add(before.first.get(number, row))
        proposer.tell(proposal, told.values(number))
        _show(bar, study, tried, judge.n_asked)
    return tried


def _known(
    study: Study, judge: Judge, before: Before, number: int, proposal: Proposal
) -> Row | None:
    """A trial of before; None where there is none, or it has to be tried again."""
    if number not in before.last:
        return None
    row = before.last[number]
    _expect_same(study, row, proposal)
    if before.is_again(number):
        return None
    if proposal.candidate is not None:
        judge.remember(proposal.candidate, judgement_of(row))
    return row


def _expect_same(study: Study, old: Row, proposal: Proposal) -> None:
    if json.loads(old["parameters"]) != dict(proposal.parameters):
        raise RunFolderError(
            f"explainer_search: trial {old['number']} of {study.title} ({study.trial_id}) was "
            f"{old['parameters']} before the interruption, and is now proposed as "
            f"{json.dumps(dict(proposal.parameters))}: another version of Optuna or of raybench; "
            "go on with that of before, or pass --overwrite"
        )


def _show(bar: Any, study: Study, tried: Tried, n_asked: int) -> None:
    bar.update(1)
    if tried.winner is not None:
        model = "" if study.trial_id == NO_TRIAL else f" {study.trial_id}"
        bar.set_postfix_str(
            f"{study.title}{model}: IoU on Val {tried.scores[tried.winner]:.3f}, as set "
            f"{tried.scores[0]:.3f}, {n_asked:,} forward passes"
        )
