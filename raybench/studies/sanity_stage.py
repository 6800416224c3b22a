"""Sanity of the best trials' maps: is a randomised model explained by other maps?

Asked on Test, of the images that the leaderboard and faithfulness speak of; nothing is chosen by
the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from raybench.config import SweepConfig
from raybench.config_sanity import Sanity
from raybench.executor import Job, Pool
from raybench.models.checkpoint import ENSEMBLE
from raybench.models.randomise import depth_named, with_depth
from raybench.report.figures import png
from raybench.report.sanity_curves import sanity_curves
from raybench.scoring.agreement import rank_agreement, ssim
from raybench.studies.context import Context, Winners
from raybench.studies.made_again import (
    Again,
    Known,
    Method,
    explainers_of,
    make_again,
    some_of_test,
)
from raybench.studies.material import Material
from raybench.studies.sanity_table import COLUMNS, FIGURES, summary
from raybench.types import Mask, Values


@dataclass(frozen=True)
class Randomised(Method):
    """The model is drawn anew to some depth; all else, the explained class too, stays.

    Attributes:
        seed: the sweep's.
    """

    seed: int

    @property
    def stage(self) -> str:
        """See `Method`."""
        return "sanity"

    @property
    def figures(self) -> tuple[str, ...]:
        """See `Method`."""
        return FIGURES

    def job(self, again: Again, material: Material, known: Known, keys: Mapping[str, str]) -> Job:
        """See `Method`: the explainer as it is, so with the same perturbations."""
        subject = material.subject(again.explainer, again.record, again.trial_id)
        asked = replace(subject, target=known.target)
        key = keys.get(again.trial_id, again.trial_id)
        model = with_depth(key, depth_named(again.change), draw_seed(self.seed, again.number))
        return Job(again, again.explainer, asked, model)

    def compare(
        self, again: Again, known: Values, found: Values, lungs: Mask | None
    ) -> dict[str, float]:
        """See `Method`."""
        sizes = np.abs(known), np.abs(found)
        of_sizes = rank_agreement(*sizes)
        if again.explainer.sign == "absolute":
            return {"rank": of_sizes, "rank_of_sizes": of_sizes, "ssim": ssim(*sizes)}
        rank = rank_agreement(known, found)
        return {"rank": rank, "rank_of_sizes": of_sizes, "ssim": ssim(known, found)}


def draw_seed(seed: int, number: int) -> int:
    """Of a random network: from the sweep's seed and the number of the draw."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def sanity(
    context: Context,
    pool: Pool,
    sizes: Mapping[str, tuple[int, int]],
    chosen: Mapping[str, str],
    winners: Winners,
) -> pd.DataFrame:
    """Ask what is not known yet; write `sanity.csv`, `sanity.parquet` and the figure.

    Args:
        sizes: input size of every trial with a checkpoint.
        chosen: the best trial of each backbone (the ensemble is left out: its members are asked),
            and the backbone of each.
        winners: of the search over settings.

    Returns:
        The table, columns as in `COLUMNS`; empty where the sweep does not ask for it.
    """
    settings = context.config.sanity
    if settings is None:
        return pd.DataFrame(columns=list(COLUMNS))
    trials = [trial_id for trial_id in chosen if trial_id != ENSEMBLE]
    everything = list(_items(context, settings, trials, winners))
    with context.stage("sanity", maps=len(everything)):
        rows = make_again(context, pool, sizes, Randomised(context.config.seed), everything)
        rows.insert(0, "backbone", [chosen[trial_id] for trial_id in rows.trial_id])
        rows = rows.rename(columns={"change": "depth", "number": "draw"})
        context.run.write_parquet("sanity.parquet", rows)
        blind = {
            (chosen[trial_id], trial_id): [
                e.title for e in explainers_of(context, trial_id, winners) if not e.uses_model
            ]
            for trial_id in trials
        }
        found = summary(rows, settings, blind, context.explained["Test"], context.config.seed)
        context.run.write_csv("sanity.csv", found)
        if found["rank"].notna().any():
            context.run.write_figure(
                "sanity.png", png(sanity_curves(found, settings.unmoved_above))
            )
    return found


def _items(
    context: Context, settings: Sanity, trials: Sequence[str], winners: Winners
) -> Iterator[Again]:
    """Network by network, so that each is made once."""
    records = list(enumerate(some_of_test(context, settings.n_images)))
    for trial_id in trials:
        asked = [e for e in explainers_of(context, trial_id, winners) if e.uses_model]
        for depth in settings.depths:
            for draw in range(settings.draws):
                for explainer in asked:
                    for number, record in records:
                        if number % settings.draws == draw:
                            yield Again(trial_id, explainer, record, str(depth), draw)


def plan_lines(config: SweepConfig, n_test: int) -> Iterator[str]:
    """What will be asked, for a person to read.

    Args:
        n_test: Test images that are explained.
    """
    settings = config.sanity
    if settings is None:
        return
    asked = [e for e in config.explain.explainers if e.uses_model]
    n = min(settings.n_images, n_test) * len(settings.depths) * len(config.backbones)
    n *= 1 if config.explainer_search is None else 2  # and the winners
    passes = n * sum(e.n_forward_planned() for e in asked)
    yield (
        f"Sanity: models randomised {len(settings.depths)} ways, at most {n * len(asked):,} maps "
        f"of them, {passes:,} forward passes"
    )
