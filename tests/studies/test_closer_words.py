"""Sentences about faithfulness, sanity and stability."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from raybench.config import SweepConfig
from raybench.config_explain import Scoring
from raybench.explain import Lime
from raybench.studies.closer_words import closer_headlines
from raybench.studies.context import Tuned
from raybench.studies.sentences import leading
from tests.studies.searching import CONFIG

CONFIG_OF = SweepConfig.model_validate(
    CONFIG
    | {"explainer_search": None}
    | {"explain": {"explainers": [{"name": n} for n in ("lime", "rise", "saliency", "whole_lung")]}}
)


def board(unmoved: object) -> pd.DataFrame:
    rows = []
    for trial, better in (("t0", 0.0), ("t1", 0.1)):
        for name, iou, gap, rank, jaccard in (
            ("lime", 0.30, 0.17, -0.13, 0.69),
            ("rise", 0.20, 0.05, 0.78, 0.95),
            ("saliency", 0.10, np.nan, 0.0, 0.43),
            ("whole_lung", 0.40, 0.14, 1.0, 1.0),
        ):
            figures = {"road_gap": gap, "sanity_rank": rank, "noise_jaccard": jaccard}
            row = {"backbone": f"net of {trial}", "trial_id": trial, "explainer": name}
            row |= {"threshold_rule": "val", "iou": iou + better}
            row |= {"unmoved": unmoved if name == "rise" else name == "whole_lung"}
            for column, value in figures.items():
                row |= {column: value, f"{column}_low": value - 0.1, f"{column}_high": value + 0.1}
            rows += [row, row | {"threshold_rule": "fixed", "road_gap": 9.0, "noise_jaccard": 9.0}]
    return pd.DataFrame(rows)


def test_one_sentence_a_look_about_the_family_with_the_best_explainer() -> None:
    said = closer_headlines(board(False), CONFIG_OF, {}, "whole_lung")
    assert said == [
        "On Test (net of t1): the model's answer follows the map of lime most (ROAD, LeRF less "
        "MoRF: 0.17 [0.07, 0.27], the whole lung 0.14 [0.04, 0.24]).",
        "On Test (net of t1): no explainer's map stays when the model is randomised: rank "
        "correlation at most 0.78 [0.68, 0.88] (rise).",
        "On Test (net of t1): over a little noise the masks of saliency change most (Jaccard "
        "index 0.43 [0.33, 0.53]).",
    ]


def test_where_val_is_no_rule_of_the_sweep_nothing_is_told_of_winners_alone() -> None:
    scoring = CONFIG_OF.scoring.model_copy(update={"threshold_rules": ("otsu", "fixed")})
    config = CONFIG_OF.model_copy(update={"scoring": scoring})
    rows = board(False)
    rows["threshold_rule"] = rows.threshold_rule.replace({"val": "otsu"})
    winner = rows[rows.explainer == "lime"].assign(explainer="lime_tuned", threshold_rule="val")
    whole = pd.concat([winner, rows], ignore_index=True)
    tuned = Tuned(Lime(label="lime_tuned"), "val", ())
    led = leading(whole, config, {"t1": [tuned]})
    assert led.explainer.tolist() == ["lime", "rise", "saliency"]
    assert led.threshold_rule.unique().tolist() == ["otsu"]
    as_set = CONFIG_OF.model_copy(update={"scoring": Scoring(threshold_rules=("fixed", "val"))})
    assert leading(board(False), as_set, {}).threshold_rule.unique().tolist() == ["val"]


def test_who_is_unmoved_is_named() -> None:
    said = closer_headlines(board(True), CONFIG_OF, {}, "")
    assert "whole lung" not in said[0]
    assert said[1] == (
        "On Test (net of t1): rise shows much the same map whatever the model has learned: rank "
        "correlation 0.78 [0.68, 0.88] with that of a randomised one."
    )


@pytest.mark.parametrize("column", ["road_gap", "sanity_rank", "noise_jaccard"])
def test_nothing_is_said_of_what_was_not_asked(column: str) -> None:
    whole = closer_headlines(board(False), CONFIG_OF, {}, "whole_lung")
    assert len(closer_headlines(board(False).drop(columns=column), CONFIG_OF, {}, "")) == 2
    unknown = board(None)
    unknown["unmoved"] = None
    assert len(closer_headlines(unknown, CONFIG_OF, {}, "")) == len(whole) - 1
    nothing = board(False).assign(iou=np.nan)
    assert closer_headlines(nothing, CONFIG_OF, {}, "") == []
