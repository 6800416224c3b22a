"""Stability of the best trials' maps on Test: over explainers' seeds, and over a little noise.

Nothing is chosen by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raybench.config import SweepConfig
from raybench.config_sanity import Stability
from raybench.executor import Job, Pool
from raybench.explain import Explainer
from raybench.explain.regions import Labels
from raybench.report.figures import png
from raybench.report.stability_dots import stability_dots
from raybench.scoring.agreement import rank_agreement
from raybench.scoring.binarise import oriented
from raybench.scoring.cuts import Cut, Place
from raybench.scoring.cuts import known as known_cut
from raybench.scoring.overlap import iou
from raybench.scoring.thresholds import RULES, Shares
from raybench.studies.context import Context, Winners
from raybench.studies.cut_regions import regions_of
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
from raybench.studies.noise import Noise, classes_that_change
from raybench.studies.score_stage import cutter_of
from raybench.studies.stability_table import COLUMNS, NOISE, SEEDS, jaccard, summary
from raybench.types import Mask, Values


@dataclass(frozen=True)
class Shaken(Method):
    """Another seed of the explainer, or a noisy image; the explained class stays.

    Attributes:
        noise: of images.
        cuts: by trial, explainer's title and threshold rule, the threshold on Test; where a rule
            gives each image its own, it is found anew on each map.
        rules: that any map is scored by.
        shares: what the rule `area` knows of Val.
        regions: by image, the superpixels that the rule `top_k` ranks; those of the image as it is.
    """

    noise: Noise
    cuts: Mapping[tuple[str, str, str], float]
    rules: tuple[str, ...]
    shares: Shares | None
    regions: Mapping[str, Labels]

    @property
    def stage(self) -> str:
        """See `Method`."""
        return "stability"

    @property
    def figures(self) -> tuple[str, ...]:
        """See `Method`."""
        return ("rank", *(jaccard(rule) for rule in self.rules))

    def job(self, again: Again, material: Material, known: Known, keys: Mapping[str, str]) -> Job:
        """See `Method`."""
        explainer, model, change = again.explainer, None, None
        if again.change == SEEDS:
            explainer = reseeded(explainer, self.noise.seed_of(again.number)) or explainer
        else:
            change = self.noise.of(again.record.image_id, again.number)
        if explainer.uses_model:
            model = again.trial_id
        subject = material.subject(explainer, again.record, model, change)
        asked = replace(subject, target=known.target) if model else subject
        return Job(again, explainer, asked, model and keys.get(model, model))

    def compare(
        self, again: Again, known: Values, found: Values, lungs: Mask | None
    ) -> dict[str, float]:
        """See `Method`: rules that the explainer is not scored by have no figure."""
        explainer, cutter = again.explainer, cutter_of(again.explainer)
        place = Place(lungs, self.regions.get(again.record.image_id))
        whole = (known, found)
        row = {"rank": rank_agreement(*(oriented(values, explainer.sign) for values in whole))}
        for rule in self.rules:
            cut = self.cuts.get((again.trial_id, explainer.title, rule))
            if cut is not None:
                masks = [cutter.cut(values, self._cut(rule, cut), place)[1] for values in whole]
                row[jaccard(rule)] = iou(*masks)
        return row

    def _cut(self, rule: str, threshold: float) -> Cut:
        """Rules that look at each map do so again."""
        if rule == "otsu":
            return None
        return self.shares if rule == "area" else known_cut(rule, threshold)


def reseeded(explainer: Explainer, seed: int) -> Explainer | None:
    """The same explainer with another seed, of its fill's noise too; None where it has none."""
    update: dict[str, object] = {}
    if "seed" in type(explainer).model_fields:
        update["seed"] = seed
    fill = getattr(explainer, "fill", None)
    if fill is not None and "seed" in type(fill).model_fields:
        update["fill"] = fill.model_copy(update={"seed": seed})
    return explainer.model_copy(update=update) if update else None


def stability(
    context: Context,
    pool: Pool,
    sizes: Mapping[str, tuple[int, int]],
    chosen: Mapping[str, str],
    winners: Winners,
    scores: pd.DataFrame,
) -> pd.DataFrame:
    """Ask what is not known yet; write `stability.csv` and `stability.parquet`.

    Args:
        sizes: input size of every trial with a checkpoint.
        chosen: the best trial of each backbone, and the ensemble; and the backbone of each.
        winners: of the search over settings.
        scores: of all maps, with the thresholds that they were cut by.

    Returns:
        The table, columns as in `COLUMNS`; empty where the sweep does not ask for it.
    """
    settings = context.config.stability
    if settings is None:
        return pd.DataFrame(columns=list(COLUMNS))
    method = _method(context, settings, scores)
    changed = _changed(context, pool, Material(context, sizes), method.noise, chosen)
    everything = [
        again
        for again in _items(context, settings, list(chosen), winners)
        if again.change == SEEDS
        or (again.record.image_id, again.number) not in changed[again.trial_id]
    ]
    known = len(finished(context, method, everything))
    with context.stage("stability", maps=len(everything), known=known):
        rows = make_again(context, pool, sizes, method, everything)
        rows.insert(0, "backbone", [chosen[trial_id] for trial_id in rows.trial_id])
        context.run.write_parquet("stability.parquet", rows)
        explainers = {
            (chosen[t], t): {e.title: _has_seed(e) for e in explainers_of(context, t, winners)}
            for t in chosen
        }
        left_out = {t: len(of) for t, of in changed.items()}
        records, seed = context.explained["Test"], context.config.seed
        found = summary(rows, method.cuts, explainers, left_out, records, seed)
        _write(context, found)
    return found


def _write(context: Context, found: pd.DataFrame) -> None:
    context.run.write_csv("stability.csv", found)
    rule = context.config.scoring.main_rule
    if found[found.threshold_rule == rule]["rank"].notna().any():
        context.run.write_figure("stability.png", png(stability_dots(found, rule)))


def _changed(
    context: Context, pool: Pool, material: Material, noise: Noise, chosen: Mapping[str, str]
) -> dict[str, set[tuple[str, int]]]:
    """By trial, the pairs of image and noise that are left out."""
    settings = context.config.stability
    assert settings is not None
    records = some_of_test(context, settings.n_images)
    return {t: classes_that_change(context, pool, material, t, noise, records) for t in chosen}


def _has_seed(explainer: Explainer) -> bool:
    return reseeded(explainer, 0) is not None


def _method(context: Context, settings: Stability, scores: pd.DataFrame) -> Shaken:
    test = scores[scores.split == "Test"]
    names = zip(test.trial_id, test.explainer, test.threshold_rule, strict=True)
    cuts = dict(zip(names, test.threshold.astype(float), strict=True))
    # Winners of the search over settings are scored by their own rule too.
    scored = {*context.config.scoring.threshold_rules, *(rule for _, _, rule in cuts)}
    rules = tuple(rule for rule in RULES if rule in scored)
    shares = None
    if "area" in rules and context.explained["Val"]:
        val = (context.source.load(record) for record in context.explained["Val"])
        pairs = ((x.infection_mask, x.lung_mask) for x in val)
        shares = Shares.of((drawn, lungs) for drawn, lungs in pairs if drawn is not None)
    noise = Noise(settings.noise, settings.n_noise, context.config.seed)
    return Shaken(noise, cuts, rules, shares, regions_of(context))


def _items(
    context: Context, settings: Stability, trials: Sequence[str], winners: Winners
) -> Iterator[Again]:
    records = some_of_test(context, settings.n_images)
    for trial_id in trials:
        for explainer in explainers_of(context, trial_id, winners):
            n_seeds = settings.n_seeds if _has_seed(explainer) else 0
            for change, n in ((SEEDS, n_seeds), (NOISE, settings.n_noise)):
                for number in range(n):
                    for record in records:
                        yield Again(trial_id, explainer, record, change, number)


def plan_lines(config: SweepConfig, n_test: int, n_models: int) -> Iterator[str]:
    """What will be asked, for a person to read.

    Args:
        n_test: Test images that are explained.
        n_models: the best trial of each backbone, and the ensemble where there is one.
    """
    settings = config.stability
    if settings is None:
        return
    n = min(settings.n_images, n_test) * n_models
    n *= 1 if config.explainer_search is None else 2  # and the winners
    maps, passes = 0, 0
    for explainer in config.explain.explainers:
        seeds = settings.n_seeds if _has_seed(explainer) else 0
        of_one = n * (seeds + settings.n_noise)
        maps, passes = maps + of_one, passes + of_one * explainer.n_forward_planned()
    yield (
        f"Stability: {settings.n_seeds} seeds, {settings.n_noise} times noise of "
        f"{settings.noise:g} grey levels: at most {maps:,} maps, {passes:,} forward passes"
    )
