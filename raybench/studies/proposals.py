"""Optuna's part in the search over explainers' settings: what to try next.

A study is replayed rather than stored: the sampler is asked the same again and told what came of it
then, so that it stands exactly where it stood.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from pydantic import ValidationError

from raybench.explain.spaces import Candidate, ExplainerSearch, Space
from raybench.settings import Choice, Range


@dataclass(frozen=True)
class Proposal:
    """Settings to be tried.

    Attributes:
        parameters: what was drawn, by dotted setting.
        candidate: the explainer with it; None where it refuses the values together.
        error: why, in one line.
    """

    trial: Any
    parameters: Mapping[str, Any]
    candidate: Candidate | None
    error: str | None = None


class Proposer:
    """Proposes settings of one explainer for one model, its own in the sweep file first.

    The higher the first value that is told, and the lower the second, the better.

    Args:
        space: what is searched.
        settings: sampler and seed.
        name: of the study; each name has proposals of its own.
    """

    def __init__(self, space: Space, settings: ExplainerSearch, name: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = zlib.crc32(f"{settings.seed} {name}".encode())
        self._space = space
        self._study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=_sampler(settings.sampler, seed)
        )
        self._own: Candidate | None = None
        if space.holds_own():
            self._study.enqueue_trial(dict(space.own().parameters))
        else:  # tried all the same, but the sampler cannot be told of it
            self._own = space.own()

    def ask(self) -> Proposal:
        """The next settings."""
        if self._own is not None:
            own, self._own = self._own, None
            return Proposal(None, own.parameters, own)
        trial = self._study.ask()
        drawn: dict[str, Any] = {}

        def suggest(path: str, domain: Range | Choice, whole: bool) -> Any:
            if isinstance(domain, Choice):
                value = trial.suggest_categorical(path, list(domain.choices))
            elif whole:
                value = trial.suggest_int(path, int(domain.low), int(domain.high), log=domain.log)
            else:
                value = trial.suggest_float(path, domain.low, domain.high, log=domain.log)
            drawn[path] = value
            return value

        try:
            return Proposal(trial, drawn, self._space.draw(suggest))
        except ValidationError as error:
            said = "; ".join(str(item["msg"]) for item in error.errors())
            return Proposal(trial, drawn, None, " ".join(said.split()))

    def tell(self, proposal: Proposal, values: tuple[float, float] | None) -> None:
        """What came of a proposal: mean IoU and forward passes, or None where it failed."""
        if proposal.trial is None:
            return
        if values is None:
            self._study.tell(proposal.trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(proposal.trial, values)


def _sampler(name: str, seed: int) -> Any:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        # `group` is called experimental; conditional spaces are the case it was made for.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=False
        )
