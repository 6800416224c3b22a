"""Comparisons on Test, what they add to the leaderboard, and the sentences about them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybench.explain import GradCam, Lime, WholeLung
from raybench.scoring.metrics import METRICS
from raybench.scoring.paired import holm, paired
from raybench.scoring.ranking import MAP_SCORES
from raybench.scoring.severity import SEVERITY
from raybench.studies.comparing import COLUMNS, KEY, Comparisons, compare
from raybench.studies.context import Context
from raybench.studies.leaderboard import leaderboard
from raybench.studies.sentences import headlines, sentence
from raybench.studies.supervised_stage import Supervised
from raybench.types import XrayRecord
from tests.studies.searching import context_at

LEVELS = {"lime": 0.5, "grad_cam": 0.3, "lungs": 0.4}
N = 24


def context_of(folder: Path, patients: bool) -> Context:
    context = context_at(folder)
    records = tuple(
        XrayRecord(
            f"x{i}", "Test", "COVID-19", "", patient=f"secret-{i // 2}" if patients else None
        )
        for i in range(N)
    )
    explainers = (Lime(), GradCam(), WholeLung(label="lungs"))
    explain = context.config.explain.model_copy(update={"explainers": explainers})
    config = context.config.model_copy(update={"explain": explain})
    return replace(context, config=config, explained={"Val": (), "Test": records})


def scores_of(context: Context, levels: dict[str, float], noise: float = 0.05) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for explainer, level in levels.items():
        for rule in ("fixed", "val"):
            for record in context.explained["Test"]:
                row = {
                    **dict.fromkeys((*METRICS, *MAP_SCORES, *SEVERITY), 0.5),
                    "trial_id": "t0",
                    "backbone": "net",
                    "image_id": record.image_id,
                    "split": "Test",
                    "explainer": explainer,
                    "threshold_rule": rule,
                    "threshold": 0.5,
                    "seconds": 1.0,
                    "n_forward": 1,
                    "error": None,
                }
                rows.append(row | {"iou": level + noise * rng.standard_normal()})
    learned = [{**r, "trial_id": "s0", "backbone": "unet", "explainer": "supervised"} for r in rows]
    return pd.DataFrame(rows + learned[: 2 * N] * ("supervised" in levels))


@pytest.mark.parametrize("patients", [True, False])
def test_every_pair_is_compared_and_told_in_words(tmp_path: Path, patients: bool) -> None:
    context = context_of(tmp_path, patients)
    scores = scores_of(context, LEVELS)
    scores.loc[(scores.image_id == "x3") & (scores.explainer == "lime"), ["iou", "dice"]] = math.nan
    scores.loc[(scores.image_id == "x3") & (scores.explainer == "lime"), "error"] = "it broke"
    found = compare(scores, ["t0"], context)
    assert list(found.pairs.columns) == list(COLUMNS)
    assert len(found.pairs) == 3 * 2 * 2, "pairs, rules, metrics"
    pd.testing.assert_frame_equal(
        context.run.read_csv("comparisons.csv"), found.pairs, check_dtype=False
    )
    iou = found.pairs[(found.pairs.metric == "iou") & (found.pairs.threshold_rule == "val")]
    order = [("lime", "grad_cam"), ("lime", "lungs"), ("lungs", "grad_cam")]
    assert list(zip(iou.explainer, iou.other, strict=True)) == order
    assert (iou.difference > 0).all()
    assert iou.significant.all()
    row = iou.iloc[2]
    part = scores[scores.threshold_rule == "val"].pivot(
        index="image_id", columns="explainer", values="iou"
    )
    part = part.loc[[r.image_id for r in context.explained["Test"]]]
    groups = np.arange(N) // 2 if patients else np.arange(N)
    one = paired(part.lungs.to_numpy(), part.grad_cam.to_numpy(), groups)
    for name in ("difference", "low", "high", "p", "rank_biserial", "dz", "n_groups", "n_needed"):
        assert row[name] == pytest.approx(getattr(one, name)), name
    assert iou.p_holm.tolist() == pytest.approx(holm(iou.p.to_numpy()))
    assert (iou.p_holm > iou.p).any()
    assert (iou.n.tolist(), iou.n_left_out.tolist()) == ([N - 1, N - 1, N], [1, 1, 0])
    counted = "n = 23 images of 12 patients" if patients else "n = 23 images (by image: patients"
    text = iou.iloc[0].sentence
    assert text.startswith("lime above grad_cam by 0.2")
    for piece in (counted, "1 left out", "(Holm)", "; only lime is above the whole lung"):
        assert piece in text
    assert "secret" not in found.pairs.to_csv()


def test_the_leaderboard_keeps_its_columns_and_gets_more(tmp_path: Path) -> None:
    context = context_of(tmp_path, True)
    scores = scores_of(context, {**LEVELS, "supervised": 0})
    scores = scores[(scores.explainer != "supervised") | (scores.trial_id == "s0")]
    unet = Supervised("s0", "unet")
    board = leaderboard(scores, ["t0"], context, unet)
    joined = compare(scores, ["t0"], context, unet).join(board)
    pd.testing.assert_frame_equal(joined[board.columns], board)
    assert len(joined) == 8
    for name in (*METRICS, *MAP_SCORES):
        assert (joined[f"{name}_low"] <= joined[name]).all()
        assert (joined[f"{name}_high"] >= joined[name]).all()
    val = joined[joined.threshold_rule == "val"].set_index("explainer")
    assert val.above_whole_lung.to_dict() == {
        "lime": "yes",
        "grad_cam": "no",
        "lungs": "n.a.",
        "supervised": "yes",
    }
    assert val.iou_rank["grad_cam"] == val.iou_rank_low["grad_cam"] == 4
    assert (val.iou_rank_low <= val.iou_rank).all()
    assert (val.iou_rank <= val.iou_rank_high).all()


def test_nothing_is_claimed_where_there_is_nothing_to_claim(tmp_path: Path) -> None:
    context = context_of(tmp_path, True)
    same = scores_of(context, {"lime": 0.4, "grad_cam": 0.4}, noise=0.0)
    found = compare(same, ["t0"], context)
    assert not found.pairs.significant.any()
    assert found.pairs.sentence.str.contains("cannot be told apart: 0.00").all()
    assert not found.pairs.sentence.str.contains("whole lung").any(), "it was not asked"
    joined = found.join(leaderboard(same, ["t0"], context))
    assert (joined.above_whole_lung == "n.a.").all()
    assert (joined.iou_rank == 1.5).all()
    none = compare(same[:0], [], context)
    assert none.pairs.empty
    assert none.join(pd.DataFrame()).empty


def test_means_of_images_against_ranks_of_patients_make_no_winner(tmp_path: Path) -> None:
    """One patient's images carry the mean, all others say the reverse."""
    context = context_of(tmp_path, True)
    scores = scores_of(context, {"lime": 0.5, "grad_cam": 0.52}, noise=0.001)
    far = scores.image_id.isin(["x0", "x1"]) & (scores.explainer == "lime")
    scores.loc[far, "iou"] = 1.0
    row = compare(scores, ["t0"], context).pairs.iloc[0]
    assert (row.explainer, row.difference > 0, row.rank_biserial < 0) == ("lime", True, True)
    assert row.p_holm < 0.05
    assert not row.significant


def test_the_summary_gets_at_most_three_sentences(tmp_path: Path) -> None:
    context = context_of(tmp_path, True)
    scores = scores_of(context, {**LEVELS, "supervised": 0})
    scores = scores[(scores.explainer != "supervised") | (scores.trial_id == "s0")]
    unet = Supervised("s0", "unet")
    found = compare(scores, ["t0"], context, unet)
    board = found.join(leaderboard(scores, ["t0"], context, unet))
    said = headlines(found.pairs, board, context.config, {}, found.whole)
    assert len(said) == 3
    assert said[0].startswith("On Test (net, threshold val): lime above lungs by ")
    assert "lime above grad_cam" in said[1]
    assert "supervised" in said[2]
    assert all(text.endswith(".") for text in said)
    alone = scores[scores.explainer == "lungs"]
    only = compare(alone, ["t0"], context)
    board = only.join(leaderboard(alone, ["t0"], context))
    assert headlines(only.pairs, board, context.config, {}, only.whole) == []


def test_words() -> None:
    row = {
        "explainer": "lime",
        "other": "grad_cam",
        "metric": "iou",
        "difference": 0.08,
        "low": 0.05,
        "high": 0.11,
        "p_holm": 0.003,
        "significant": True,
        "n": 26,
        "n_left_out": 0,
        "n_groups": 20,
        "unit": "patient",
    }
    assert sentence(row, {"lime": False, "grad_cam": False}) == (
        "lime above grad_cam by 0.08 IoU [0.05, 0.11], p = 0.003 (Holm), n = 26 images of 20 "
        "patients; neither is above the whole lung"
    )
    assert sentence(row, {"lime": True, "grad_cam": True}).endswith(
        "; both are above the whole lung"
    )
    one = row | {"n": 1, "n_groups": 1, "low": math.nan, "high": math.nan, "significant": False}
    one |= {"p_holm": 0.0001}
    assert sentence(one, {}) == (
        "lime and grad_cam cannot be told apart: 0.08 IoU [no interval], p < 0.001 (Holm), "
        "n = 1 image of 1 patient"
    )
    assert sentence(row | {"n": 0}, {}) == "lime and grad_cam have no image in common"


def test_comparisons_join_by_what_names_a_row() -> None:
    beside = pd.DataFrame([["net", "t0", "lime", "val", 0.1]], columns=[*KEY, "iou_low"])
    board = pd.DataFrame([["net", "t0", "lime", "fixed"]], columns=KEY)
    joined = Comparisons(pd.DataFrame(), beside, "").join(board)
    assert joined.iou_low.isna().all()
