"""Faithfulness in a sweep: what is asked, what a kill costs, and what stands in the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from raybench.config import SweepConfig
from raybench.scoring.faithfulness import area
from raybench.studies.context import Context
from raybench.studies.explain_stage import explain
from raybench.studies.faithfulness_stage import faithfulness, plan_lines
from raybench.studies.faithfulness_table import COLUMNS, FIGURES, beside
from raybench.tracking.maps import table_name
from raybench.tracking.metrics import leaderboard
from raybench.tracking.run_folder import RunFolder
from tests.studies.searching import CONFIG, SIZES, Counted, Dying, context_at

BEST = {"t0": "test_resnet"}
ASKED = {"steps": 4, "road_steps": 3, "chunk": 3}
EXPLAINERS = [{"name": "grad_cam"}, {"name": "centre_prior"}]
EACH = 2 * 5 + 2 * 3


def _context(folder: Path, checkpoint: bytes, where: str = "") -> Context:
    """A sweep whose maps are made; its run folder is at `where`, or is the folder itself."""
    config = SweepConfig.model_validate(
        CONFIG
        | {"faithfulness": ASKED, "explainer_search": None, "explain": {"explainers": EXPLAINERS}}
    )
    context = replace(context_at(folder), config=config)
    if where:
        context = replace(context, run=RunFolder(where))
    explain(context, Counted(checkpoint), SIZES, ["t0"], {})
    return context


def test_a_killed_stage_goes_on_and_is_the_uninterrupted_one(
    checkpoint: bytes, tmp_path: Path
) -> None:
    whole, killed = (_context(tmp_path / n, checkpoint) for n in ("whole", "killed"))
    pool = Counted(checkpoint)
    expected = faithfulness(whole, pool, SIZES, BEST, {})
    assert pool.n_forward == 4 * EACH, "two explainers, two images"
    dying, second = Dying(checkpoint, after=9), Counted(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        faithfulness(killed, dying, SIZES, BEST, {})
    n_kept = sum(len(killed.run.read(f"faithfulness_t0_{e['name']}")) for e in EXPLAINERS)
    assert n_kept >= 1
    found = faithfulness(killed, second, SIZES, BEST, {})
    assert second.n_forward == (4 - n_kept) * EACH, "what was written is not asked again"
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    third = Counted(checkpoint)
    faithfulness(killed, third, SIZES, BEST, {})
    assert third.n_units == 0


def test_in_a_bucket_it_is_the_local_one(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    near = _context(tmp_path / "near", checkpoint)
    far = _context(tmp_path / "far", checkpoint, f"memory://{tmp_path.name}/run")
    pool = Counted(checkpoint)
    expected = faithfulness(near, pool, SIZES, BEST, {})
    found = faithfulness(far, Counted(checkpoint), SIZES, BEST, {})
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    second = Counted(checkpoint)
    faithfulness(far, second, SIZES, BEST, {})
    assert second.n_units == 0
    assert {"faithfulness.csv", "faithfulness.parquet"} <= set(far.run.storage.names())
    assert (far.run.path / "faithfulness.csv").exists(), "what MLflow is given"


def test_tables_hold_curves_means_and_intervals(checkpoint: bytes, tmp_path: Path) -> None:
    context = _context(tmp_path, checkpoint)
    found = faithfulness(context, Counted(checkpoint), SIZES, BEST, {})
    assert tuple(found.columns) == COLUMNS
    assert found.explainer.tolist() == ["grad_cam", "centre_prior"]
    assert (found.n == 2).all()
    each = context.run.read_parquet("faithfulness.parquet")
    assert len(each) == 4
    for row in each.to_dict("records"):
        assert row["deletion"][0] == pytest.approx(row["insertion"][-1], abs=1e-6), "the image"
        assert row["deletion_auc"] == pytest.approx(area(row["shares"], row["deletion"]))
        assert row["road_gap"] == pytest.approx(row["lerf_auc"] - row["morf_auc"])
    for name in FIGURES:
        assert found[name].tolist() == pytest.approx(
            each.groupby("explainer", sort=False)[name].mean().tolist()
        )
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()
    assert context.run.storage.exists("figures/faithfulness.png")
    board = pd.DataFrame(
        [("test_resnet", "t0", e, "fixed", 0.5) for e in ("grad_cam", "unet")],
        columns=["backbone", "trial_id", "explainer", "threshold_rule", "iou"],
    )
    joined = beside(board, found)
    assert joined.road_gap.isna().tolist() == [False, True]
    name = "road_gap/test_resnet.grad_cam.fixed"
    assert leaderboard(joined)[name] == found.road_gap.iloc[0]


def test_a_map_that_failed_is_counted_and_the_plan_names_the_passes(
    checkpoint: bytes, tmp_path: Path
) -> None:
    context = _context(tmp_path, checkpoint)
    table = table_name("t0", "grad_cam")
    failed = context.run.read(table).iloc[[0]].assign(error="it broke", values=b"")
    failed["image_id"] = context.explained["Test"][0].image_id
    context.run.append(table, failed)
    found = faithfulness(context, Counted(checkpoint), SIZES, BEST, {}).set_index("explainer")
    assert found.loc["grad_cam", ["n", "n_errors"]].tolist() == [1, 1]
    assert found.loc["centre_prior", ["n", "n_errors"]].tolist() == [2, 0]
    line = next(plan_lines(context.config, 2, 1))
    assert f"2 Test images, at most 4 maps x {EACH} = {4 * EACH} forward passes" in line
    assert not list(plan_lines(context_at(tmp_path / "off").config, 2, 1))
