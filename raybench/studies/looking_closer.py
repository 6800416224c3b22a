"""What is asked of maps beside localisation: faithfulness, sanity and stability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from raybench.config import SweepConfig
from raybench.executor import Pool
from raybench.studies import faithfulness_stage, sanity_stage, stability_stage
from raybench.studies.context import Context, Winners
from raybench.studies.faithfulness_stage import faithfulness
from raybench.studies.faithfulness_table import beside
from raybench.studies.sanity_stage import sanity
from raybench.studies.sanity_table import with_sanity
from raybench.studies.shuffled_stage import train_shuffled
from raybench.studies.stability_stage import stability
from raybench.studies.stability_table import with_stability

Join = Callable[[pd.DataFrame], pd.DataFrame]
"""From the leaderboard to one with further columns."""


@dataclass(frozen=True)
class Asked:
    """Whose maps are looked at.

    Attributes:
        sizes: input size of every trial with a checkpoint.
        chosen: the best trial of each backbone, and the ensemble; and the backbone of each.
        winners: of the search over settings.
        scores: of all maps, with the thresholds that they were cut by.
    """

    sizes: Mapping[str, tuple[int, int]]
    chosen: Mapping[str, str]
    winners: Winners
    scores: pd.DataFrame


def look_closer(
    context: Context, pool: Pool, make_pool: Callable[[], Pool], asked: Asked, resume: bool
) -> Join:
    """Ask what the sweep asks for; the stages write their own tables and figures.

    Args:
        pool: closed where models have to be trained first, for which there is no room beside it.
        make_pool: makes another one then.
    """
    settings = context.config.sanity
    if settings is None or not settings.shuffled_labels:
        return _look(context, pool, asked, {})
    pool.close()
    learned = train_shuffled(context, asked.chosen, resume)
    other = make_pool()
    try:
        return _look(context, other, asked, learned)
    finally:
        other.close()


def _look(context: Context, pool: Pool, asked: Asked, learned: Mapping[str, float]) -> Join:
    common = context, pool, asked.sizes, asked.chosen, asked.winners
    faithful = faithfulness(*common)
    sane = sanity(*common, learned)
    stable = stability(*common, asked.scores)
    return lambda board: with_stability(with_sanity(beside(board, faithful), sane), stable)


def asked_of(config: SweepConfig) -> list[str]:
    """Which of the looks a sweep asks for."""
    return [n for n in ("faithfulness", "sanity", "stability") if getattr(config, n) is not None]


def plan_lines(config: SweepConfig, n_test: int, n_models: int) -> Iterator[str]:
    """What will be asked, for a person to read.

    Args:
        n_test: Test images that are explained.
        n_models: the best trial of each backbone, and the ensemble where there is one.
    """
    yield from faithfulness_stage.plan_lines(config, n_test, n_models)
    yield from sanity_stage.plan_lines(config, n_test)
    yield from stability_stage.plan_lines(config, n_test, n_models)
