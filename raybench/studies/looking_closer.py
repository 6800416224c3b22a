"""What is asked of maps beside localisation: faithfulness, sanity and stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from raybench.executor import Pool
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


def look_closer(
    context: Context,
    make_pool: Callable[[], Pool],
    sizes: Mapping[str, tuple[int, int]],
    chosen: Mapping[str, str],
    winners: Winners,
    scores: pd.DataFrame,
    resume: bool,
) -> Join:
    """Ask what the sweep asks for; the stages write their own tables and figures.

    In a pool of their own: models may be trained before, for which there is no room beside one.

    Args:
        sizes: input size of every trial with a checkpoint.
        chosen: the best trial of each backbone, and the ensemble; and the backbone of each.
        winners: of the search over settings.
        scores: of all maps, with the thresholds that they were cut by.
    """
    config = context.config
    if config.faithfulness is None and config.sanity is None and config.stability is None:
        return lambda board: board
    learned: dict[str, float] = {}
    if config.sanity is not None and config.sanity.shuffled_labels:
        learned = train_shuffled(context, chosen, resume)
    pool = make_pool()
    try:
        faithful = faithfulness(context, pool, sizes, chosen, winners)
        sane = sanity(context, pool, sizes, chosen, winners, learned)
        stable = stability(context, pool, sizes, chosen, winners, scores)
    finally:
        pool.close()
    return lambda board: with_stability(with_sanity(beside(board, faithful), sane), stable)
