"""Thresholds and columns of the score stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench.config_explain import Scoring
from raybench.executor.local import LocalPool
from raybench.explain import Lime, Quickshift
from raybench.scoring.metrics import METRICS
from raybench.scoring.ranking import MAP_SCORES, map_scores
from raybench.scoring.severity import SEVERITY
from raybench.scoring.thresholds import RULES
from raybench.signs import oriented
from raybench.studies.context import Tuned
from raybench.studies.cut_regions import TABLE, cut_regions, regions_of
from raybench.studies.leaderboard import leaderboard
from raybench.studies.score_stage import score
from raybench.tracking.maps import table_name, to_row
from raybench.types import AttributionMap, ChestXray, Dataset, XrayRecord
from tests.studies.searching import context_at


def pool() -> LocalPool:
    return LocalPool(lambda key: b"", 1)


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
    found = score(context, pool(), judged, [], {"t0": [winner]})
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
    scores = score(context, pool(), judged, ["t0"], {})
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


class _Altered:
    """The data set with other infection masks on Test."""

    def __init__(self, source: Dataset) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def load(self, record: XrayRecord) -> ChestXray:
        xray = self._source.load(record)
        if record.split != "Test":
            return xray
        assert xray.infection_mask is not None
        return replace(xray, infection_mask=xray.infection_mask[::-1, ::-1].copy())


def _scored(folder: Path, maps_seed: int, altered: bool) -> pd.DataFrame:
    """Scores by every rule of maps that on Val are always the same."""
    context = context_at(folder)
    scoring = Scoring(threshold_rules=RULES)
    found = [e for e in context.config.explain.explainers if e.title == "grad_cam"]
    explain = context.config.explain.model_copy(update={"explainers": found})
    config = context.config.model_copy(update={"explain": explain, "scoring": scoring})
    context = replace(context, config=config)
    rows = []
    for split, seed in (("Val", 0), ("Test", maps_seed)):
        rng = np.random.default_rng(seed)
        for record in context.explained[split]:
            shape = context.dataset.load(record).image.shape
            values = AttributionMap(rng.standard_normal(shape).astype(np.float32), None, 0)
            rows.append(to_row(record.image_id, split, values, None, 0.0))
    context.run.append(table_name("t0", "grad_cam"), pd.DataFrame(rows))
    answers = {"trial_id": ["t0"], "image_id": ["none"], "predicted": ["COVID-19"]}
    context.run.append("predictions", pd.DataFrame(answers))
    judged = pd.DataFrame(
        {"trial_id": ["t0"], "backbone": ["test_resnet"], "has_checkpoint": [True]}
    )
    if altered:
        context = replace(context, dataset=_Altered(context.dataset))
    return score(context, pool(), judged, ["t0"], {})


def test_nothing_of_test_reaches_a_threshold_or_a_figure_on_val(tmp_path: Path) -> None:
    plain = _scored(tmp_path / "plain", 1, altered=False)
    assert set(plain.threshold_rule) == set(RULES)
    truths = _scored(tmp_path / "truths", 1, altered=True)
    pd.testing.assert_frame_equal(plain[plain.split == "Val"], truths[truths.split == "Val"])
    keys = ["image_id", "threshold_rule", "threshold"]
    pd.testing.assert_frame_equal(plain[keys], truths[keys])
    assert (plain.iou != truths.iou)[plain.split == "Test"].any(), "the truths did change"
    maps = _scored(tmp_path / "maps", 2, altered=False)
    pd.testing.assert_frame_equal(plain[plain.split == "Val"], maps[maps.split == "Val"])
    learned = plain.threshold_rule.isin(["fixed", "val", "top_k"])
    pd.testing.assert_frame_equal(plain[learned][keys], maps[learned][keys])
    by_map = plain[~learned & (plain.split == "Test")]
    assert (by_map.threshold != maps.loc[by_map.index].threshold).any(), "the maps did change"


def test_superpixels_to_rank_are_cut_once_an_image_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_at(tmp_path)
    scoring = context.config.scoring.model_copy(update={"threshold_rules": ("top_k",)})
    context = replace(context, config=context.config.model_copy(update={"scoring": scoring}))
    cut_regions(context, pool())
    kept = regions_of(context)
    assert set(kept) == {r.image_id for of in context.explained.values() for r in of}
    for of in context.explained.values():
        for record in of:
            image = context.preprocess_of(None).apply(context.dataset.load(record))
            assert (kept[record.image_id] == Quickshift().segment(image)).all(), "LIME's own"
    monkeypatch.setattr(Quickshift, "segment", lambda *_: pytest.fail("cut a second time"))
    cut_regions(context, pool())
    assert len(context.run.read(TABLE)) == len(kept)


def test_a_winner_is_scored_by_the_sweeps_rules_and_its_own() -> None:
    val, fixed = (Tuned(Lime(), rule, ()) for rule in ("val", "fixed"))
    assert val.rules(("fixed", "val")) == ("val",)
    assert fixed.rules(("fixed", "val")) == ("fixed", "val")
    assert val.rules(("fixed", "otsu")) == ("val", "otsu")
    assert fixed.rules(("area",)) == ("fixed", "area")
