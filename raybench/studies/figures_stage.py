"""The figures of a sweep: curves, classification, bars of explainers, infection maps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raybench.config_search import TUNED
from raybench.data.preprocess import resize_gray
from raybench.explain import Explainer, Lime
from raybench.models.checkpoint import ENSEMBLE
from raybench.report.distributions import cost, distributions
from raybench.report.figures import (
    PanelCell,
    PanelRow,
    SeverityPanel,
    confusion_matrix,
    explainer_bars,
    explanation_panel,
    pareto,
    png,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
    severity_scatter,
    training_curves,
)
from raybench.report.infection_map import infection_map, superpixel_map
from raybench.report.trials_front import trials_front
from raybench.scoring.classification import confusion, reliability
from raybench.studies.context import Context, Winners, explains
from raybench.studies.ensemble_stage import shown
from raybench.studies.judge_stage import predictions_of
from raybench.studies.supervised_stage import Supervised
from raybench.tracking.maps import NO_TRIAL, last_rows, superpixels_of, table_name, values_of
from raybench.training.segment import SUPERVISED
from raybench.types import Gray

_Maps = dict[tuple[str, str], Mapping[Hashable, Any]]


def draw(
    context: Context,
    judged: pd.DataFrame,
    scores: pd.DataFrame,
    board: pd.DataFrame,
    winners: Winners,
    supervised: Supervised | None = None,
) -> None:
    """Draw everything anew into `figures/`.

    Args:
        judged: trials with their column `best`.
        scores: the table of `score_stage.score`.
        board: the leaderboard.
        winners: of the search over settings.
        supervised: the U-Net, where there is one.
    """
    run = context.run
    with context.stage("drawing"):
        epochs = _epochs(context, judged)
        best = list(judged[judged.best].trial_id)
        if len(epochs):
            run.write_figure("training_curves.png", png(training_curves(epochs, best)))
        goal = context.config.search.localisation
        if goal is not None:
            what = f"mean {goal.score} of {goal.explainer.title} on Val"
            n_images = len(context.of("Val"))
            tried = judged[judged.trial_id != ENSEMBLE]
            run.write_figure(
                "trials_front.png", png(trials_front(tried, n_images, what, goal.give_up))
            )
        references = [e.title for e in context.config.explain.explainers if not e.uses_model]
        references += [w.explainer.title for w in winners.get(NO_TRIAL, ())]
        if len(board):
            unet = None if supervised is None else supervised.title
            run.write_figure("explainers.png", png(explainer_bars(board, references, unet)))
            _by_image(context, scores, board, references, unet)
            if scores.severity.notna().any():
                run.write_figure("severity.png", png(_severity(context, scores, board)))
        searched = run.read_csv("explainer_search.csv")
        if len(searched):
            run.write_figure("pareto.png", png(pareto(searched)))
        for trial in shown(judged).to_dict("records"):
            _classification(context, trial)
            if context.config.explain.panels:
                figure = _panel(context, trial, scores, supervised)
                run.write_figure(f"infection_maps_{trial['trial_id']}.png", png(figure))


def _by_image(
    context: Context,
    scores: pd.DataFrame,
    board: pd.DataFrame,
    references: Sequence[str],
    unet: str | None,
) -> None:
    """What stands behind the means, by the main rule."""
    rule = context.config.scoring.main_rule
    whose = scores.trial_id.isin(board.trial_id) & (scores.threshold_rule == rule)
    test = scores[(scores.split == "Test") & whose & scores.error.isna()]
    of_models = test[test.explainer != unet]
    if of_models.iou.notna().any():
        figure = distributions(test, references, unet)
        context.run.write_figure("distributions.png", png(figure))
    ranked = board[(board.threshold_rule == rule) & (board.explainer != unet)]
    if {"iou_low", "iou_high"} <= set(ranked) and ranked.iou.notna().any():
        context.run.write_figure("cost.png", png(cost(ranked, references, rule)))


def _explainers(context: Context, trial_id: str) -> list[Explainer]:
    return [e for e in context.config.explain.explainers if explains(e, trial_id)]


def _epochs(context: Context, judged: pd.DataFrame) -> pd.DataFrame:
    """A row an epoch and classifier's trial; of one that was trained twice the last counts."""
    ids = set(judged.trial_id)
    events = context.run.events.read()
    frame = pd.DataFrame([e for e in events if e["kind"] == "epoch" and e["trial_id"] in ids])
    if frame.empty:
        return frame
    return frame.drop_duplicates(["trial_id", "epoch"], keep="last").sort_values(
        ["trial_id", "epoch"]
    )


def _classification(context: Context, trial: Mapping[Hashable, Any]) -> None:
    classes = context.dataset.classes
    frame = context.run.read("predictions")
    part = frame[(frame.trial_id == trial["trial_id"]) & (frame.split == "Test")]
    if part.empty:
        return
    probabilities, labels = predictions_of(part, classes)
    title = f"{trial['backbone']} ({trial['trial_id']}), Test"
    matrix = confusion(probabilities, labels, len(classes))
    ece = (trial["test_ece"], trial["test_ece_low"], trial["test_ece_high"])
    for name, figure in (
        ("roc", roc_curves(probabilities, labels, classes, title)),
        ("precision_recall", precision_recall_curves(probabilities, labels, classes, title)),
        ("confusion", confusion_matrix(matrix, classes, title)),
        ("reliability", reliability_diagram(*reliability(probabilities, labels), ece, title)),
    ):
        context.run.write_figure(f"{name}_{trial['trial_id']}.png", png(figure))


def _severity(context: Context, scores: pd.DataFrame, board: pd.DataFrame) -> Figure:
    """Shares of Test by every explainer of the best trials, by the main rule.

    Winners that have no figure by it are shown by their own. What asks no model is the same for
    every trial and shown once.
    """
    own = {e.title for e in context.config.explain.explainers if not e.uses_model}
    shared = own | {f"{title}{TUNED}" for title in own}
    main = context.config.scoring.main_rule
    ranked = board.sort_values("threshold_rule", key=lambda rules: rules != main, kind="stable")
    alone = ranked.explainer.isin([*shared, SUPERVISED])
    ranked = ranked.assign(whose=ranked.backbone.where(~alone, ""))
    test = scores[(scores.split == "Test") & scores.error.isna()]
    shown = []
    for row in (
        ranked.drop_duplicates(["whose", "explainer"])
        .sort_values("severity_mae", kind="stable")
        .to_dict("records")
    ):
        part = test[
            (test.trial_id == row["trial_id"])
            & (test.explainer == row["explainer"])
            & (test.threshold_rule == row["threshold_rule"])
        ]
        drawn, found = part.severity_truth.to_numpy(), part.severity.to_numpy()
        shown.append(SeverityPanel(str(row["explainer"]), str(row["whose"]), drawn, found))
    return severity_scatter(shown, reference=SUPERVISED)


def _panel(
    context: Context,
    trial: Mapping[Hashable, Any],
    scores: pd.DataFrame,
    supervised: Supervised | None,
) -> Figure:
    """Infection maps of some Test images by every explainer, the IoU of the main rule beneath."""
    wanted = context.explained["Test"]
    n = min(context.config.explain.panels, len(wanted))
    records = [wanted[i * len(wanted) // n] for i in range(n)]
    scores = scores[scores.threshold_rule == context.config.scoring.main_rule]
    trial_id = str(trial["trial_id"])
    maps = _rows(context, trial_id, [r.image_id for r in records], supervised)
    rows = []
    for record in records:
        xray = context.source.load(record)
        image = context.preprocess_of(trial_id).apply(xray)
        cells: list[PanelCell] = []
        for explainer in _explainers(context, trial_id):
            cells += _cells(maps, trial_id, explainer, record.image_id, image, scores)
        if supervised is not None:
            whose = supervised.trial_id
            cells += _cells(maps, whose, supervised, record.image_id, image, scores)
        name = record.image_id.rsplit("/", 1)[-1]
        rows.append(PanelRow(name, image, xray.lung_mask, xray.infection_mask, tuple(cells)))
    return explanation_panel(rows, f"{trial['backbone']} ({trial['trial_id']}), Test")


def _cells(
    maps: _Maps,
    trial_id: str,
    explainer: Explainer | Supervised,
    image_id: str,
    image: Gray,
    scores: pd.DataFrame,
) -> list[PanelCell]:
    """One picture, and for LIME a second one of the superpixels for and against."""
    row = maps.get((explainer.title, image_id))
    has_regions = isinstance(explainer, Lime)
    plain = np.repeat(image[:, :, None], 3, axis=2)
    if row is None or not bool(pd.isna(row["error"])):
        cell = PanelCell(explainer.title, plain, note="no map")
        blank = PanelCell(f"{explainer.title} regions", plain)
        return [cell, blank] if has_regions else [cell]
    iou = _iou(scores, trial_id, explainer.title, image_id)
    cells = [PanelCell(explainer.title, infection_map(image, values_of(row)), iou)]
    found = superpixels_of(row)
    if has_regions and found is not None:
        labels, weights = found
        shape = (labels.shape[0], labels.shape[1])
        regions = superpixel_map(resize_gray(image, shape), labels, weights)
        key = "green for, red against"
        cells.append(PanelCell(f"{explainer.title} regions", regions, note=key))
    return cells


def _rows(
    context: Context, trial_id: str, image_ids: Sequence[str], supervised: Supervised | None
) -> _Maps:
    """The maps of some images by every explainer, by explainer and image."""
    found: _Maps = {}
    tables = {
        e.title: table_name(trial_id if e.uses_model else NO_TRIAL, e.title)
        for e in _explainers(context, trial_id)
    }
    if supervised is not None:
        tables[supervised.title] = supervised.table
    for title, table in tables.items():
        for row in last_rows(context.run, table):
            if row["image_id"] in image_ids:
                found[title, row["image_id"]] = row
    return found


def _iou(scores: pd.DataFrame, trial_id: str, explainer: str, image_id: str) -> float | None:
    hit = scores[
        (scores.trial_id == trial_id)
        & (scores.explainer == explainer)
        & (scores.image_id == image_id)
    ]
    return float(hit.iou.iloc[0]) if len(hit) else None
