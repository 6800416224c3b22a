"""Thresholds and columns of the score stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybench.explain import Lime
from raybench.scoring.metrics import METRICS
from raybench.scoring.ranking import MAP_SCORES, map_scores
from raybench.scoring.severity import SEVERITY
from raybench.signs import oriented
from raybench.studies.context import Tuned
from raybench.studies.leaderboard import leaderboard
from raybench.studies.score_stage import score
from raybench.tracking.maps import table_name, to_row
from raybench.types import AttributionMap
from tests.studies.searching import context_at


@pytest.mark.parametrize(("n_chosen_on", "threshold"), [(2, 0.1), (3, 0.25)])
def test_a_winners_threshold_is_chosen_on_the_images_it_won_on(
    n_chosen_on: int, threshold: float, tmp_path: Path
) -> None:
    """On the first two images those below 0.12 are best; on the third, only those above 0.2 do."""
    context = context_at(tmp_path)
    val = context.explained["Val"]
    rows = []
    for number, record in enumerate(val):
        infection = context.dataset.load(record).infection_mask
        assert infection is not None
        values = np.where(infection, 0.3, 0.22 if number == 2 else 0.0).astype(np.float32)
        if number < 2:
            values[tuple(np.argwhere(infection)[::4].T)] = 0.12
        values[np.unravel_index(infection.argmax(), infection.shape)] = 1.0
        values[0, 0] = 0.0
        rows.append(to_row(record.image_id, "Val", AttributionMap(values, None, 0), None, 0.0))
    context.run.append(table_name("t0", "lime_tuned"), pd.DataFrame(rows))
    answers = {"trial_id": ["t0"], "image_id": [val[0].image_id], "predicted": ["COVID-19"]}
    context.run.append("predictions", pd.DataFrame(answers))
    images = tuple(record.image_id for record in val[:n_chosen_on])
    winner = Tuned(Lime(label="lime_tuned"), "val", images)
    judged = pd.DataFrame(
        {"trial_id": ["t0"], "backbone": ["test_resnet"], "has_checkpoint": [True]}
    )
    found = score(context, judged, [], {"t0": [winner]})
    assert found.explainer.unique().tolist() == ["lime_tuned"]
    assert found.image_id.tolist() == [record.image_id for record in val], "all are scored"
    assert found.threshold.unique().tolist() == [threshold]


def test_scores_of_the_map_stand_in_every_rules_row_and_failed_maps_have_none(
    tmp_path: Path,
) -> None:
    context = context_at(tmp_path)
    rng = np.random.default_rng(0)
    expected, rows, failed = {}, [], context.explained["Test"][0].image_id
    explainer = next(e for e in context.config.explain.explainers if e.title == "grad_cam")
    explainer = explainer.model_copy(update={"sign": "against"})
    explain = context.config.explain.model_copy(update={"explainers": [explainer]})
    context = replace(context, config=context.config.model_copy(update={"explain": explain}))
    for split in ("Val", "Test"):
        for record in context.explained[split]:
            xray = context.dataset.load(record)
            assert xray.infection_mask is not None
            values = rng.standard_normal(xray.infection_mask.shape).astype(np.float32)
            found = AttributionMap(values, None, 0)
            if record.image_id == failed:
                rows.append(to_row(failed, split, None, "it broke", 0.0))
                continue
            rows.append(to_row(record.image_id, split, found, None, 0.0))
            expected[record.image_id] = map_scores(
                oriented(values, "against"), xray.infection_mask, xray.lung_mask
            )
    context.run.append(table_name("t0", "grad_cam"), pd.DataFrame(rows))
    answers = {"trial_id": ["t0"], "image_id": [failed], "predicted": ["COVID-19"]}
    context.run.append("predictions", pd.DataFrame(answers))
    judged = pd.DataFrame(
        {"trial_id": ["t0"], "backbone": ["test_resnet"], "has_checkpoint": [True]}
    )
    scores = score(context, judged, ["t0"], {})
    assert scores.threshold_rule.value_counts().to_dict() == {"fixed": 5, "val": 5}
    for row in scores[scores.image_id != failed].to_dict("records"):
        assert {name: row[name] for name in MAP_SCORES} == expected[row["image_id"]]
        assert np.isfinite([row[name] for name in (*METRICS, *MAP_SCORES, *SEVERITY)]).all()
    broken = scores[scores.image_id == failed]
    assert len(broken) == 2
    assert broken[[*METRICS, *MAP_SCORES, *SEVERITY]].isna().all(axis=None)
    board = leaderboard(scores, ["t0"], context)
    other = next(r.image_id for r in context.explained["Test"] if r.image_id != failed)
    assert (board.n_errors == 1).all()
    for name in MAP_SCORES:
        assert board[name].tolist() == [expected[other][name]] * 2
    good = scores[scores.image_id == other].set_index("threshold_rule")
    for name in METRICS:
        assert board[name].tolist() == [good[name][rule] for rule in board.threshold_rule]
