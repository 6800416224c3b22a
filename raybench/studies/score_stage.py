"""Localisation scores: thresholds chosen on Val, salient masks held against infection masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, tee
from typing import Any

import pandas as pd

from raybench.errors import ExecutionError
from raybench.executor import Job, Pool, run_jobs
from raybench.explain import Explainer, WholeLung
from raybench.scoring.binarise import choose_threshold, oriented
from raybench.scoring.cuts import Cut, Cutter, TopK
from raybench.scoring.metrics import SCORES
from raybench.scoring.severity import SEVERITY
from raybench.scoring.thresholds import Shares, ThresholdRule
from raybench.scoring.top_regions import MOST, k_of
from raybench.studies.context import Context, Winners, explains, progress_bar, winners_for
from raybench.studies.cut_regions import cut_regions, regions_of
from raybench.studies.score_units import AT_ONCE, ScoreMaps, ToScore
from raybench.studies.supervised_stage import Supervised
from raybench.studies.truths import Truth, load_truths
from raybench.tracking.maps import NO_TRIAL, last_rows, table_name, values_of
from raybench.types import Split, Values

COLUMNS = (
    "trial_id",
    "backbone",
    "image_id",
    "split",
    "label",
    "predicted",
    "explainer",
    "threshold_rule",
    "threshold",
    *SCORES,
    *SEVERITY,
    "seconds",
    "n_forward",
    "error",
)


_MAP_COLUMNS = (
    *("image_id", "split", "error", "seconds", "n_forward"),
    *("height", "width", "values"),
)


def score(
    context: Context,
    pool: Pool,
    judged: pd.DataFrame,
    full: Sequence[str],
    winners: Winners,
    supervised: Supervised | None = None,
) -> pd.DataFrame:
    """Score every map under the sweep's threshold rules and write `scores.parquet`.

    `fixed` is the explainer's own threshold; `val` is the one with the highest mean IoU on Val for
    this trial and explainer, so its figures on Val are those it was chosen by. `otsu` and `area`
    give each image its own (`scoring.thresholds`), `top_k` has the number of superpixels with the
    highest mean IoU on Val for its threshold. A winner of the search over settings has `fixed` only
    where its threshold was searched too, and its `val` and `top_k` are chosen on the images that
    the search compared settings on.

    Args:
        pool: does a few maps at a time, on helpers without a GPU where there are any.
        judged: trials with `trial_id`, `backbone` and `has_checkpoint`.
        full: trials with figures on Test.
        winners: of the search over settings.
        supervised: the U-Net whose maps are scored likewise, under its own trial.

    Returns:
        The table, columns as in `COLUMNS`.
    """
    truths = load_truths(context)
    lacking = sum(truth.lungs is None for truth in truths.values())
    if lacking:
        context.warn_once(
            f"no severity for {lacking} of {len(truths)} explained images: they have no lung mask "
            "(`lungs` predicts them)"
        )
    predicted = _predicted(context)
    usable = judged[judged.has_checkpoint]
    rows: list[dict[str, Any]] = []
    shared: dict[str, list[dict[str, Any]]] = {}
    with context.stage("scoring"):
        cut_regions(context, pool)
        for image_id, regions in regions_of(context).items():
            truths[image_id] = replace(truths[image_id], regions=regions)
        tables = [(t, _tables(context, winners, t)) for t in usable.trial_id]
        bar = progress_bar(sum(len(of_trial) for _, of_trial in tables), "scoring", "table")
        for (trial_id, of_trial), backbone in zip(tables, usable.backbone, strict=True):
            splits: tuple[Split, ...] = ("Val", "Test") if trial_id in full else ("Val",)
            for scored in of_trial:
                for row in _rows_of(context, pool, trial_id, scored, truths, shared):
                    if row["split"] in splits:
                        answer = predicted.get((trial_id, row["image_id"]))
                        whose = {"trial_id": trial_id, "backbone": backbone}
                        rows.append(whose | row | {"predicted": answer})
                bar.update(1)
        bar.close()
        if supervised is not None:
            whose = {"trial_id": supervised.trial_id, "backbone": supervised.backbone}
            scored = _Scored(supervised, context.config.scoring.threshold_rules, None)
            found = _score_table(context, pool, supervised.table, scored, truths)
            rows += [whose | row for row in found]
    table_of_scores = pd.DataFrame(rows, columns=list(COLUMNS))
    context.run.write_parquet("scores.parquet", table_of_scores)
    return table_of_scores


@dataclass(frozen=True)
class _Scored:
    """An explainer or the supervised U-Net, its rules, and the Val images for its threshold.

    None: all that it can explain.
    """

    explainer: Explainer | Supervised
    rules: Sequence[ThresholdRule]
    images: frozenset[str] | None


def _tables(context: Context, winners: Winners, trial_id: str) -> list[_Scored]:
    """What is scored for a trial: every explainer as set, and its winners."""
    explainers = [e for e in context.config.explain.explainers if explains(e, trial_id)]
    asked = context.config.scoring.threshold_rules
    as_set = [_Scored(e, asked, None) for e in explainers]
    found = winners_for(winners, trial_id)
    return as_set + [_Scored(w.explainer, w.rules(asked), frozenset(w.images)) for w in found]


def _rows_of(
    context: Context,
    pool: Pool,
    trial_id: str,
    scored: _Scored,
    truths: Mapping[str, Truth],
    shared: dict[str, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The scores of an explainer's maps for a trial; `shared` holds those of every trial."""
    is_own = scored.explainer.uses_model
    table = table_name(trial_id if is_own else NO_TRIAL, scored.explainer.title)
    if table in shared:
        return shared[table]
    found = _score_table(context, pool, table, scored, truths)
    if not is_own:
        shared[table] = found
    return found


def _predicted(context: Context) -> dict[tuple[str, str], str]:
    frame = context.run.read("predictions" if context.other is None else "predictions_explained")
    keys = zip(frame.trial_id, frame.image_id, strict=True)
    return dict(zip(keys, frame.predicted, strict=True))


def _score_table(
    context: Context, pool: Pool, table: str, scored: _Scored, truths: Mapping[str, Truth]
) -> list[dict[str, Any]]:
    """In the order of the images, not in that in which maps were made: it differs from run to run,
    and with it the last digit of a mean.

    Raises:
        ExecutionError: some maps could not be scored.
    """
    place = {
        r.image_id: n for n, r in enumerate(r for of in context.explained.values() for r in of)
    }
    cuts = _cuts(context, table, scored, truths)
    task = ScoreMaps(scored.explainer.title, cutter_of(scored.explainer), cuts)
    rows: list[dict[str, Any]] = []
    for outcome in run_jobs(_jobs(context, table, task, truths), pool):
        if outcome.error is not None:
            raise ExecutionError(f"scoring {table}: {outcome.error}")
        rows += outcome.result
    return sorted(rows, key=lambda row: place[row["image_id"]])


def cutter_of(explainer: Explainer | Supervised) -> Cutter:
    """How an explainer's maps become masks, or the U-Net's.

    The whole lung is clipped to the lungs whatever its settings say. That takes nothing from it,
    and superpixels that reach beyond the lungs (`top_k`) add nothing to it.
    """
    return Cutter(
        explainer.sign,
        explainer.clip_to_lungs or isinstance(explainer, WholeLung),
        explainer.median_filter,
        not explainer.is_probability,
    )


def _jobs(
    context: Context, table: str, task: ScoreMaps, truths: Mapping[str, Truth]
) -> Iterator[Job]:
    """A few maps each, with the masks that they are held against."""
    known = (
        ToScore(row, truths[row["image_id"]])
        for row in last_rows(context.run, table, _MAP_COLUMNS)
        if row["image_id"] in truths
    )
    for number, chunk in enumerate(iter(lambda: list(islice(known, AT_ONCE)), [])):
        yield Job((table, number), task, chunk)


def _cuts(
    context: Context, table: str, scored: _Scored, truths: Mapping[str, Truth]
) -> dict[ThresholdRule, Cut]:
    """What each rule cuts by, learned from Val or from nothing; rules that Val leaves open lack."""
    found: dict[ThresholdRule, Cut] = {}
    for rule in scored.rules:
        if rule == "fixed":
            found[rule] = scored.explainer.threshold
        elif rule in ("val", "top_k"):
            chosen = _chosen_on_val(context, table, scored, truths, rule == "top_k")
            if chosen is not None:
                found[rule] = chosen
        elif rule == "otsu":
            found[rule] = None
        elif val := [truths[r.image_id] for r in context.explained["Val"]]:
            found[rule] = Shares.of((t.infection, t.lungs) for t in val)
    return found


def _chosen_on_val(
    context: Context, table: str, scored: _Scored, truths: Mapping[str, Truth], by_region: bool
) -> float | TopK | None:
    """The threshold, or the number of superpixels, that serves Val best.

    None where no Val image could be explained.
    """
    cutter = cutter_of(scored.explainer)
    truths = {i: t for i, t in truths.items() if scored.images is None or i in scored.images}
    first = next(_val_maps(context, table, truths), None)
    if first is None:
        return None
    # One stream, read in step by three: no more than a map or two are held at a time.
    maps, masks, lungs = tee(_val_maps(context, table, truths), 3)
    if by_region:
        looked_at = (cutter.ranked(values, truth.place) for values, truth in maps)
    else:
        looked_at = (oriented(values, cutter.sign) for values, _ in maps)
    chosen = choose_threshold(
        looked_at,
        (truth.infection for _, truth in masks),
        (truth.lungs if cutter.clip_to_lungs else None for _, truth in lungs),
        cutter.median,
        stretch=cutter.stretch and not by_region,
    )[0]
    if not by_region:
        return chosen
    k = k_of(chosen)
    if k == MOST:
        context.warn_once(
            f"top_k: {scored.explainer.title} is best on Val with {MOST} superpixels, and no more "
            "are tried: it may do better with more"
        )
    return TopK(k)


def _val_maps(
    context: Context, table: str, truths: Mapping[str, Truth]
) -> Iterator[tuple[Values, Truth]]:
    for row in last_rows(context.run, table, _MAP_COLUMNS):
        if row["split"] == "Val" and pd.isna(row["error"]) and row["image_id"] in truths:
            yield values_of(row), truths[row["image_id"]]
