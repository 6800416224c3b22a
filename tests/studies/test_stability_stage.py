"""Stability in a sweep: over seeds and noise, what is left out, what a kill costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from raybench.config import SweepConfig
from raybench.data.preprocess import resize_gray
from raybench.executor.local import LocalPool
from raybench.explain import Edges, KernelShap, Lime, Quickshift, RandomSuperpixels, Saliency
from raybench.explain.base import to_shape
from raybench.models.classifier import Classifier
from raybench.scoring.binarise import binarise
from raybench.scoring.overlap import iou
from raybench.studies.context import Context, Tuned
from raybench.studies.explain_stage import explain
from raybench.studies.noise import Noise
from raybench.studies.score_stage import score
from raybench.studies.stability_stage import plan_lines, reseeded, stability
from raybench.studies.stability_table import COLUMNS, with_stability
from raybench.tracking.maps import last_rows, table_name, values_of
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.status import looked_at
from tests.studies.searching import CONFIG, FINE, SIZES, Counted, Dying, context_at

BEST = {"t0": "test_resnet"}
ASKED = {"n_images": 2, "n_seeds": 2, "n_noise": 2, "noise": 3.0}
EXPLAINERS = [
    {"name": "lime", "n_samples": 30, "superpixels": FINE},
    {"name": "saliency"},
    {"name": "edges"},
]
RULES = ["fixed", "val", "otsu", "area", "top_k"]


def _made(
    folder: Path, pool: Counted, where: str = "", **more: float
) -> tuple[Context, pd.DataFrame]:
    """A sweep whose maps are made and scored; its run folder is at `where`, or the folder."""
    config = SweepConfig.model_validate(
        CONFIG
        | {"stability": ASKED | more, "explainer_search": None}
        | {"explain": {"explainers": EXPLAINERS}, "scoring": {"threshold_rules": RULES}}
    )
    context = replace(context_at(folder), config=config)
    if where:
        context = replace(context, run=RunFolder(where))
    images = [(r.image_id, s) for s in ("Val", "Test") for r in context.explained[s]]
    rows = [{"trial_id": "t0", "image_id": i, "split": s, "predicted": "a"} for i, s in images]
    context.run.append("predictions", pd.DataFrame(rows))
    explain(context, pool, SIZES, ["t0"], {})
    judged = pd.DataFrame([{"trial_id": "t0", "backbone": "test_resnet", "has_checkpoint": True}])
    return context, score(context, LocalPool(lambda key: b"", 1), judged, ["t0"], {})


def _asked(made: tuple[Context, pd.DataFrame], pool: Counted) -> pd.DataFrame:
    return stability(made[0], pool, SIZES, BEST, {}, made[1])


def _of(found: pd.DataFrame, explainer: str, over: str) -> pd.DataFrame:
    return found[(found.explainer == explainer) & (found.over == over)]


def test_equal_seeds_give_equal_masks_and_other_ones_do_not(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _made(tmp_path / "other", Counted(checkpoint))
    lime = _of(_asked(made, Counted(checkpoint)), "lime", "seeds")
    assert lime["rank"].iloc[0] < 1
    assert not lime.by_construction.any()
    monkeypatch.setattr(Noise, "seed_of", lambda self, number: 0)
    made = _made(tmp_path / "equal", Counted(checkpoint))
    lime = _of(_asked(made, Counted(checkpoint)), "lime", "seeds")
    assert lime.n.tolist() == [4] * len(RULES)
    assert (lime[["jaccard", "jaccard_low", "rank"]] == 1.0).all(axis=None)


def test_noise_that_rounds_to_nothing_changes_nothing(checkpoint: bytes, tmp_path: Path) -> None:
    made = _made(tmp_path, Counted(checkpoint), noise=1e-6)
    found = _asked(made, Counted(checkpoint))
    for name in ("lime", "saliency", "edges"):
        assert (_of(found, name, "noise")[["jaccard", "rank"]] == 1.0).all(axis=None)


def test_tables_hold_what_a_plain_loop_finds(checkpoint: bytes, tmp_path: Path) -> None:
    made = _made(tmp_path, Counted(checkpoint))
    context = made[0]
    found = _asked(made, Counted(checkpoint))
    assert tuple(found.columns) == COLUMNS
    assert len(found) == 3 * 2 * len(RULES)
    assert context.run.storage.exists("figures/stability.png")
    begun = [e for e in context.run.events.read() if e["kind"] == "stage_started"][-1]
    assert looked_at(context.run, "stability") == begun["maps"] > 0
    noise, model = Noise(3.0, 2, 0), Classifier.from_checkpoint(checkpoint)
    maps = {r["image_id"]: r for r in last_rows(context.run, table_name("t0", "saliency"))}
    alike = []
    for record in context.explained["Test"]:
        xray, row = context.dataset.load(record), maps[record.image_id]
        before = binarise(values_of(row), 0.5)
        for number in range(2):
            noisy = replace(xray, image=noise.of(record.image_id, number)(xray.image))
            image = resize_gray(context.config.base_preprocess.apply(noisy), (64, 64))
            again = Saliency().attribute(model, image, int(row["target"])).values
            large = to_shape(again, before.shape, smooth=True)
            alike.append(iou(before, binarise(large, 0.5)))
    saliency = _of(found, "saliency", "noise").set_index("threshold_rule")
    assert (saliency.n == 4).all()
    assert saliency.loc["fixed", "jaccard"] == pytest.approx(np.mean(alike), abs=1e-3)
    seeds = _of(found, "saliency", "seeds")
    assert seeds.by_construction.all()
    assert (seeds.jaccard == 1.0).all()
    board = pd.DataFrame(
        [("test_resnet", "t0", "lime", rule) for rule in RULES] + [("unet", "u", "unet", "val")],
        columns=["backbone", "trial_id", "explainer", "threshold_rule"],
    )
    joined = with_stability(board, found)
    assert (
        joined.noise_jaccard.tolist()[: len(RULES)] == _of(found, "lime", "noise").jaccard.tolist()
    )
    assert joined.seeds_jaccard.isna().tolist() == [False] * len(RULES) + [True]


class _Fickle(nn.Module):
    """Says another class of any two images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angle = x.sum((1, 2, 3)) * 40
        return torch.stack([angle.sin(), -angle.sin(), torch.full_like(angle, -9)], 1)


class _Given:
    def get(self, key: str, read: object) -> Classifier:
        return Classifier(_Fickle(), (64, 64), (0, 0, 0), (1, 1, 1), ("a", "b", "c"))


def test_images_whose_class_changes_are_left_out_and_counted(tmp_path: Path) -> None:
    pool = Counted(b"")
    pool._resident = _Given()  # type: ignore[assignment]
    made = _made(tmp_path, pool, n_noise=6)
    context = made[0]
    found = _asked(made, pool)
    noise, model, n_changed = Noise(3.0, 6, 0), _Given().get("", None), 0
    for record in context.explained["Test"]:
        xray = context.dataset.load(record)
        noisy = [replace(xray, image=noise.of(record.image_id, n)(xray.image)) for n in range(6)]
        images = [context.config.base_preprocess.apply(x) for x in (xray, *noisy)]
        said = model.predict(np.stack([resize_gray(i, (64, 64)) for i in images])).argmax(1)
        n_changed += int((said[1:] != said[0]).sum())
    assert 0 < n_changed < 12
    over = found[found.over == "noise"]
    assert (over.n_class_changed == n_changed).all()
    assert (over.n == 12 - n_changed).all()
    assert (found[found.over == "seeds"].n_class_changed == 0).all()


def test_killed_and_resumed_in_a_bucket_it_is_the_uninterrupted_one(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole = _made(tmp_path / "whole", Counted(checkpoint))
    bucket = f"memory://{tmp_path.name}/stability"
    killed = _made(tmp_path / "killed", Counted(checkpoint), where=bucket)
    pool, second, third = (Counted(checkpoint) for _ in range(3))
    dying = Dying(checkpoint, after=14)
    expected = _asked(whole, pool)
    with pytest.raises(KeyboardInterrupt):
        _asked(killed, dying)
    assert len(killed[0].run.read("stability_t0_lime")) >= 1
    pd.testing.assert_frame_equal(_asked(killed, second), expected, check_exact=True)
    assert second.n_units < pool.n_units, "what was written is not asked again"
    _asked(killed, third)
    assert third.n_units == 0


def test_who_has_a_seed_and_what_the_plan_says(checkpoint: bytes, tmp_path: Path) -> None:
    assert reseeded(Saliency(), 5) is None
    assert reseeded(Edges(), 5) is None
    for explainer in (Lime(), KernelShap(), RandomSuperpixels()):
        other: Any = reseeded(explainer, 5)
        assert other.seed == 5
        assert other.model_copy(update={"seed": 0}) == explainer
    filled: Any = reseeded(Lime.model_validate({"fill": {"name": "noise"}}), 5)
    assert (filled.seed, filled.fill.seed) == (5, 5)
    context, _ = _made(tmp_path, Counted(checkpoint))
    assert "at most 16 maps" in next(plan_lines(context.config, 2, 1))
    assert not list(plan_lines(context_at(tmp_path / "off").config, 2, 1))


def test_a_winner_is_held_by_its_own_rule_too(checkpoint: bytes, tmp_path: Path) -> None:
    context = context_at(tmp_path)
    config = SweepConfig.model_validate(
        CONFIG
        | {"stability": ASKED, "explainer_search": None}
        | {"explain": {"explainers": [EXPLAINERS[2]]}, "scoring": {"threshold_rules": ["top_k"]}}
    )
    context = replace(context, config=config)
    images = tuple(r.image_id for r in context.explained["Val"])
    lime = Lime(n_samples=30, superpixels=Quickshift(**FINE), label="lime_tuned")
    winners = {"t0": [Tuned(lime, "val", images)]}
    context.run.append(
        "predictions",
        pd.DataFrame(
            {"trial_id": "t0", "image_id": r.image_id, "split": s, "predicted": "a"}
            for s in ("Val", "Test")
            for r in context.explained[s]
        ),
    )
    pool = Counted(checkpoint)
    explain(context, pool, SIZES, ["t0"], winners)
    judged = pd.DataFrame([{"trial_id": "t0", "backbone": "test_resnet", "has_checkpoint": True}])
    scores = score(context, LocalPool(lambda key: b"", 1), judged, ["t0"], winners)
    found = stability(context, pool, SIZES, BEST, winners, scores)
    own = _of(found, "lime_tuned", "seeds").set_index("threshold_rule")
    assert sorted(own.index) == ["top_k", "val"]
    assert own.jaccard.notna().all()
    assert _of(found, "edges", "noise").threshold_rule.tolist() == ["top_k"]
