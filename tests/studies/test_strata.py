"""Strata of images: what they are sorted by, and the means over them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybench.scoring.overlap import iou
from raybench.scoring.strata import Lesions, confidence_of, number_of, size_of, terciles
from raybench.studies.strata_stage import COLUMNS, by_strata, strata
from raybench.studies.truths import load_truths
from tests.studies.searching import context_at


def test_lesions_are_regions_by_sides_or_corners() -> None:
    mask = np.zeros((6, 10), bool)
    mask[0, 0] = mask[1, 1] = mask[4:6, 4:6] = mask[0, 9] = True
    assert Lesions.of(mask) == Lesions(7 / 60, 3)
    assert Lesions.of(mask & False) == Lesions(0.0, 0)
    with pytest.raises(ValueError, match="bool array"):
        Lesions.of(mask.astype(np.uint8))


def test_sizes_are_thirds_of_val() -> None:
    cuts = terciles([0.4, 0.1, 0.2, 0.3])
    assert cuts == pytest.approx((0.2, 0.3))
    assert [size_of(a, (0.2, 0.3)) for a in (0.1, 0.2, 0.25, 0.3, 0.31)] == [
        *("small", "small", "medium", "medium", "large")
    ]
    with pytest.raises(ValueError, match="Val image"):
        terciles([])
    assert [number_of(n) for n in (1, 2, 3, 9)] == ["1", "2", "3 or more", "3 or more"]
    found = [confidence_of(p) for p in (0.4, 0.7, 0.89, 0.9, 1.0)]
    assert found == ["below 0.7", *["0.7 to 0.9"] * 2, *["0.9 and above"] * 2]


def test_means_over_strata_add_up_to_the_mean() -> None:
    rng = np.random.default_rng(0)
    n = 30
    scores = pd.DataFrame({"image_id": [f"x{i}" for i in range(n)], "iou": rng.random(n)})
    scores = scores.assign(dice=0.5, trial_id="t0", backbone="net", explainer="e")
    scores = scores.assign(threshold_rule="val")
    facts = scores[["trial_id", "image_id"]].assign(
        lesion_size=["small", "large", None] * 10,
        n_lesions="1",
        confidence="below 0.7",
        prediction=["right"] * 29 + ["wrong"],
    )
    found = by_strata(scores, facts, {f"x{i}": i // 2 for i in range(n)})
    assert list(found.columns) == list(COLUMNS)
    rows = found.set_index(["fact", "stratum"])
    assert set(rows.index.get_level_values(1)) == {
        *("small", "large", "1", "below 0.7", "right", "wrong")
    }
    assert rows.loc[("n_lesions", "1"), "iou"] == pytest.approx(scores.iou.mean())
    right, wrong = rows.loc[("prediction", "right")], rows.loc[("prediction", "wrong")]
    assert (right.n * right.iou + wrong.iou) / n == pytest.approx(scores.iou.mean())
    assert right.iou_low < right.iou < right.iou_high
    assert math.isnan(wrong.iou_low), "one patient has no interval"
    assert rows.loc[("lesion_size", "small"), "iou"] == pytest.approx(scores.iou[::3].mean())


def test_facts_are_read_off_masks_and_predictions_and_cuts_off_val(tmp_path: Path) -> None:
    context = context_at(tmp_path)
    test = context.explained["Test"]
    truths = load_truths(context)
    n_classes = len(context.dataset.classes)
    answers = pd.DataFrame(
        {
            "trial_id": "t0",
            "image_id": [r.image_id for r in test],
            "split": "Test",
            "label": "COVID-19",
            "predicted": ["COVID-19", context.dataset.classes[-1]],
        }
    )
    for i, name in enumerate(context.dataset.classes):
        answers[f"p_{name}"] = 0.95 if i == 0 else 0.05 / (n_classes - 1)
    context.run.append("predictions", answers)
    scores = answers[["trial_id", "image_id", "split"]].assign(
        backbone="net",
        explainer="e",
        threshold_rule="val",
        error=None,
        iou=[iou(truths[r.image_id].infection, truths[r.image_id].infection) for r in test],
        dice=1.0,
    )
    found = strata(scores, ["t0"], context).set_index(["fact", "stratum"])
    assert found.n.to_dict()[("prediction", "right")] == 1
    assert found.n.to_dict()[("prediction", "wrong")] == 1
    assert found.n.to_dict()[("confidence", "0.9 and above")] == 2
    cuts = terciles([truths[r.image_id].infection.mean() for r in context.explained["Val"]])
    sizes = [size_of(float(truths[r.image_id].infection.mean()), cuts) for r in test]
    for size in set(sizes):
        assert found.n.to_dict()[("lesion_size", size)] == sizes.count(size)
    assert context.run.read_csv("strata.csv").shape == (len(found), len(COLUMNS))
    without = replace(context, explained={**context.explained, "Val": ()})
    assert "lesion_size" not in set(strata(scores, ["t0"], without).fact)
