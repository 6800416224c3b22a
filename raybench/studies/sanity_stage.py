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
    finished,
    make_again,
    some_of_test,
)
from raybench.studies.material import Material
from raybench.studies.sanity_table import COLUMNS, FIGURES, LABELS, summary
from raybench.studies.shuffled_stage import shuffled_key
from raybench.types import Mask, Values


@dataclass(frozen=True)
class Randomised(Method):
    """The model is drawn anew to some depth, or is the one that learned permuted labels.

    All else, the explained class too, stays.

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
        if again.change == LABELS:
            model = key.replace(again.trial_id, shuffled_key(again.trial_id), 1)
        else:
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
    learned: Mapping[str, float],
) -> pd.DataFrame:
    """Ask what is not known yet; write `sanity.csv`, `sanity.parquet` and the figure.

    Args:
        sizes: input size of every trial with a checkpoint.
        chosen: the best trial of each backbone (the ensemble is left out: its members are asked),
            and the backbone of each.
        winners: of the search over settings.
        learned: trials that have a model trained on permuted labels, and how many it learned.

    Returns:
        The table, columns as in `COLUMNS`; empty where the sweep does not ask for it.
    """
    settings = context.config.sanity
    if settings is None:
        return pd.DataFrame(columns=list(COLUMNS))
    trials = [trial_id for trial_id in chosen if trial_id != ENSEMBLE]
    everything = list(_items(context, settings, trials, winners, learned))
    method = Randomised(context.config.seed)
    known = len(finished(context, method, everything))
    with context.stage("sanity", maps=len(everything), known=known):
        rows = make_again(context, pool, sizes, method, everything)
        rows.insert(0, "backbone", [chosen[trial_id] for trial_id in rows.trial_id])
        rows = rows.rename(columns={"change": "depth", "number": "draw"})
        context.run.write_parquet("sanity.parquet", rows)
        explainers = {
            (chosen[t], t): {e.title: e.uses_model for e in explainers_of(context, t, winners)}
            for t in trials
        }
        records, seed = context.explained["Test"], context.config.seed
        found = summary(rows, settings, explainers, records, seed, learned)
        _write(context, settings, found)
    return found


def _write(context: Context, settings: Sanity, found: pd.DataFrame) -> None:
    context.run.write_csv("sanity.csv", found)
    if found["rank"].notna().any():
        figure = sanity_curves(found, settings.unmoved_above)
        context.run.write_figure("sanity.png", png(figure))


def _items(
    context: Context,
    settings: Sanity,
    trials: Sequence[str],
    winners: Winners,
    learned: Mapping[str, float],
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
        if trial_id in learned:
            for explainer in asked:
                for _, record in records:
                    yield Again(trial_id, explainer, record, LABELS, 0)


def plan_lines(config: SweepConfig, n_test: int) -> Iterator[str]:
    """What will be asked, for a person to read.

    Args:
        n_test: Test images that are explained.
    """
    settings = config.sanity
    if settings is None:
        return
    asked = [e for e in config.explain.explainers if e.uses_model]
    ways = len(settings.depths) + settings.shuffled_labels
    n = min(settings.n_images, n_test) * ways * len(config.backbones)
    n *= 1 if config.explainer_search is None else 2  # and the winners
    passes = n * sum(e.n_forward_planned() for e in asked)
    yield (
        f"Sanity: models randomised {ways} ways, at most {n * len(asked):,} maps of them, "
        f"{passes:,} forward passes"
    )
    if settings.shuffled_labels:
        n = len(config.backbones)
        yield f"  and {n} trained once more, on permuted labels (checkpoints/*_shuffled)"
