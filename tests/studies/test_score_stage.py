"""Thresholds of the score stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybench.explain import Lime
from raybench.studies.context import Tuned
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
