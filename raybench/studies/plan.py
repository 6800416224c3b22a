"""What a sweep will do, counted before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raybench.config import SweepConfig
from raybench.explain import Explainer
from raybench.explain.fills import Neighbour
from raybench.explain.spaces import Space
from raybench.models.checkpoint import ENSEMBLE
from raybench.settings import values_of
from raybench.studies import caching, looking_closer, lungs_stage, supervised_stage
from raybench.studies.context import explained_images, explains
from raybench.training.space import searched_settings
from raybench.types import SPLITS, Split, XrayRecord
from raybench.wording import counted


@dataclass(frozen=True)
class Plan:
    """Counts of one sweep.

    Attributes:
        images: images by split and class.
        explained: images explained, by split.
        records: of the data set that classifiers are trained on.
    """

    config: SweepConfig
    images: dict[Split, dict[str, int]]
    explained: dict[Split, int]
    records: Sequence[XrayRecord] = ()

    @property
    def n_trials(self) -> int:
        """Trials over all backbones."""
        return self.config.search.trials_per_backbone * len(self.config.backbones)

    @property
    def n_full(self) -> int:
        """Trials that every explainer explains on Val and Test."""
        everything = self.config.explain.trials == "all"
        return self.n_trials if everything else len(self.config.backbones)

    @property
    def n_members(self) -> int:
        """Members of the ensemble, at most; 0 where there is none."""
        ensemble, search = self.config.ensemble, self.config.search
        if ensemble is None:
            return 0
        return ensemble.n_members(len(self.config.backbones), search.trials_per_backbone)

    def with_ensemble(self, n_models: int, explainer: Explainer) -> int:
        """So many models, and the ensemble where there is one that an explainer can explain."""
        return n_models + bool(self.n_members and explains(explainer, ENSEMBLE))

    @property
    def spaces(self) -> list[Space]:
        """What is searched of each explainer; none where nothing is."""
        search = self.config.explainer_search
        if search is None:
            return []
        return [Space.of(e, search.explainers.get(e.title)) for e in self.config.explain.explainers]

    @property
    def n_settings(self) -> int:
        """Settings of explainers that are tried, those without a model once for all models."""
        search, n_best = self.config.explainer_search, len(self.config.backbones)
        n_trials = 0 if search is None else search.n_trials
        return n_trials * sum(
            self.with_ensemble(n_best, s.explainer) if s.explainer.uses_model else 1
            for s in self.spaces
        )

    @property
    def n_forward_search(self) -> int:
        """Forward passes of the search on Val and of its winners on Test, at most."""
        search, n_best = self.config.explainer_search, len(self.config.backbones)
        if search is None:
            return 0
        n_images = search.n_trials * self.explained["Val"] + self.explained["Test"]
        return n_images * sum(
            self.with_ensemble(n_best, s.explainer) * s.most_passes() for s in self.spaces
        )

    @property
    def n_forward_neighbours(self) -> int:
        """Passes that find neighbours: Train and what is explained, once for each model asked."""
        own = any(_looks_for_neighbours(e) for e in self.config.explain.explainers)
        searched = any(_looks_for_neighbours(e) for s in self.spaces for e in s.variants())
        n_models = self.n_full if own else len(self.config.backbones) if searched else 0
        n_models += bool(n_models and self.n_members)
        n_train = sum(self.images["Train"].values())
        return n_models * (n_train + self.explained["Val"] + self.explained["Test"])

    def passes(self, explainer: Explainer, split: Split) -> int:
        """Forward passes of one explainer on one trial's split, at most."""
        return self.explained[split] * explainer.n_forward_planned()

    @property
    def n_forward(self) -> int:
        """Forward passes of all explaining, at most."""
        total = 0
        for explainer in self.config.explain.explainers:
            both = self.passes(explainer, "Val") + self.passes(explainer, "Test")
            total += self.with_ensemble(self.n_full, explainer) * both
            if explainer.is_cheap:
                total += (self.n_trials - self.n_full) * self.passes(explainer, "Val")
        return total

    @property
    def n_units(self) -> int:
        """Units of work of all explaining, at most."""
        total = 0
        n_both = self.explained["Val"] + self.explained["Test"]
        for explainer in self.config.explain.explainers:
            if not explainer.uses_model:
                total += n_both
                continue
            each = explainer.n_units_planned()
            total += self.with_ensemble(self.n_full, explainer) * n_both * each
            if explainer.is_cheap:
                total += (self.n_trials - self.n_full) * self.explained["Val"] * each
        return total


def _looks_for_neighbours(explainer: Explainer) -> bool:
    fill = getattr(explainer, "fill", None)
    return isinstance(fill, Neighbour) and fill.embedding == "features"


def make_plan(
    config: SweepConfig,
    records: Sequence[XrayRecord],
    with_infection: frozenset[str] | None = None,
) -> Plan:
    """Count what the sweep will do.

    Args:
        with_infection: as for `explained_images`; None counts by names alone.
    """
    classes = config.data.classes
    images: dict[Split, dict[str, int]] = {split: dict.fromkeys(classes, 0) for split in SPLITS}
    for record in records:
        images[record.split][record.label] += 1
    limits: dict[Split, int | None] = {"Val": config.explain.n_val, "Test": config.explain.n_test}
    source = config.data.explain or config.data
    theirs = records if config.data.explain is None else config.data.explain.records()
    explained = explained_images(theirs, source.infection_class, limits, with_infection)
    counts = {split: len(chosen) for split, chosen in explained.items()}
    return Plan(config, images, counts, tuple(records))


def plan_lines(plan: Plan) -> Iterator[str]:
    """The plan for a person to read."""
    config = plan.config
    yield "Images"
    for split, counts in plan.images.items():
        total = sum(counts.values())
        yield f"  {split:<6}{total:>7,}   " + ", ".join(f"{n:,} {c}" for c, n in counts.items())
    yield from _training_lines(config, plan.n_trials, plan.explained["Val"])
    for recipe in config.recipes:
        phases = ", ".join(
            f"{' or '.join(map(str, values_of(p.unfreeze)))} {p.epochs}" for p in recipe.phases
        )
        searched = [path for path, _ in searched_settings(recipe)]
        looked = f"; searched: {', '.join(searched)}" if searched else ""
        yield f"  {recipe.name}: {counted(recipe.n_epochs, 'epoch')} ({phases}){looked}"
    yield from caching.plan_lines(config, plan.records)
    yield from lungs_stage.plan_lines(config, plan.records)
    yield from supervised_stage.plan_lines(config, plan.records)
    yield from _explain_lines(plan)
    yield from _search_lines(plan)
    n_best = len(config.backbones) + bool(plan.n_members)
    yield from looking_closer.plan_lines(config, plan.explained["Test"], n_best)
    yield from _file_lines(plan)


def _file_lines(plan: Plan) -> Iterator[str]:
    config = plan.config
    yield f"Files, below {config.run_folder}/"
    yield "  config.yaml, events.jsonl, trials.csv, predictions.parquet, scores.parquet,"
    found = "" if config.explainer_search is None else " explainer_search.csv,"
    found += "".join(f" {name}.csv, {name}.parquet," for name in looking_closer.asked_of(config))
    yield f"  report.html, leaderboard.csv, comparisons.csv, strata.csv,{found} figures/*.png,"
    tracked = "mlflow.db" if config.tracking.uri is None else f"(MLflow at {config.tracking.uri})"
    unets = [name for name in ("supervised", "lungs") if getattr(config, name) is not None]
    tables = "".join(f" trials_{name}.csv," for name in unets)
    n_files = plan.n_trials + bool(plan.n_members) + len(unets)
    learned = config.sanity is not None and config.sanity.shuffled_labels
    others = f", {len(config.backbones)} of permuted labels" if learned else ""
    yield f"  checkpoints/ ({n_files} files and cards{others}),"
    yield f"  parts/ (predictions and attribution maps),{tables} {tracked}"


def _passes(n: int) -> str:
    return counted(n, "forward pass", "forward passes")


def _training_lines(config: SweepConfig, n_trials: int, n_val: int) -> Iterator[str]:
    search = config.search
    limits = [
        counted(limit, words)
        for limit, words in ((search.hours, "hour"), (search.gpu_hours, "GPU hour"))
        if limit is not None
    ]
    most = "at most " if limits else ""
    yield f"Training: {most}{counted(n_trials, 'trial')}, {search.trials_per_backbone} a backbone"
    if limits:
        yield f"  for {' or '.join(limits)}: then no more begin, and each ends with its epoch"
    if search.localisation is not None:
        goal = search.localisation
        n = n_val if goal.n_images is None else min(goal.n_images, n_val)
        yield (
            f"  each judged at its end: {goal.score} of {goal.explainer.title} on "
            f"{counted(n, 'Val image')} ({_passes(goal.explainer.n_forward_planned())} each)"
        )


def _explain_lines(plan: Plan) -> Iterator[str]:
    config = plan.config
    n_val, n_test = plan.explained["Val"], plan.explained["Test"]
    source = config.data.explain or config.data
    kind = source.infection_class
    where = f" of data.explain ({source.name})" if config.data.explain else ""
    yield (
        f"Explaining: {n_test:,} {kind} images{where} with infection masks on Test, and "
        f"{n_val:,} on Val to choose thresholds"
    )
    for explainer in config.explain.explainers:
        each = explainer.n_forward_planned()
        if each == 0:
            yield f"  {explainer.title}: no model, {counted(n_test + n_val, 'image')} once"
            continue
        yield (
            f"  {explainer.title}: Test {n_test:,} x {each:,} = "
            f"{_passes(plan.passes(explainer, 'Test'))} a model; Val, for its "
            f"threshold, {n_val:,} x {each:,} = {plan.passes(explainer, 'Val'):,}"
        )
    which = "every trial" if config.explain.trials == "all" else "the best trial of each backbone"
    yield f"  by every explainer: {which} ({counted(plan.n_full, 'model')})"
    yield from _ensemble_lines(plan)
    if plan.n_trials > plan.n_full:
        yield f"  on Val by the cheap ones: the other {plan.n_trials - plan.n_full} trials"
    yield f"  in all at most {_passes(plan.n_forward)} in {plan.n_units:,} units of work"
    if plan.n_forward_neighbours:
        yield (
            f"  and {plan.n_forward_neighbours:,} to find neighbours: Train and what is explained, "
            "once a model"
        )


def _ensemble_lines(plan: Plan) -> Iterator[str]:
    """What it is made of, and who cannot explain it."""
    ensemble = plan.config.ensemble
    if ensemble is None:
        return
    members = "the best trial of each backbone" if ensemble.of == "best" else "all trials"
    chosen = "" if ensemble.top is None else f"of these the {ensemble.top} best on Val; "
    yield (
        f"  and the ensemble: the mean of {members} ({chosen}{plan.n_members} models, so one of "
        "its passes costs one of each)"
    )
    explainers = plan.config.explain.explainers
    left_out = [e.title for e in explainers if not explains(e, ENSEMBLE)]
    if left_out:
        yield (
            f"  but not the ensemble by {', '.join(left_out)}: they read one network's layers or "
            "gradients, and it has several"
        )


def _search_lines(plan: Plan) -> Iterator[str]:
    search, n_best = plan.config.explainer_search, len(plan.config.backbones)
    if search is None:
        return
    models = f"{counted(n_best, 'model')}{' and the ensemble' if plan.n_members else ''}"
    n_val, n_test = plan.explained["Val"], plan.explained["Test"]
    yield (
        f"Searching settings of the explainers: {search.n_trials:,} of each on {n_val:,} Val "
        f"images, {plan.n_settings:,} in all; the winners on {n_test:,} of Test"
    )
    for space in plan.spaces:
        each = space.most_passes()
        looked = ", ".join(space.domains) or "nothing: it stays as it is"
        cost = f"at most {_passes(each)} an image" if each else "no forward passes"
        yield f"  {space.explainer.title} ({cost}): {looked}"
    yield (
        f"  in all at most {plan.n_forward_search:,} more forward passes for {models}; "
        "what any setting asked before is not asked again"
    )
