"""The supervised reference and the predicted lungs as stages of a sweep."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench.config import SweepConfig
from raybench.data import Phantom
from raybench.data.images import read_mask
from raybench.data.lungs import file_of, is_predicted
from raybench.data.phantom import write_phantoms
from raybench.errors import DataError
from raybench.executor.local import LocalPool
from raybench.models.backbones import backbone
from raybench.scoring.overlap import dice
from raybench.storage import Storage
from raybench.studies.checks import check_names, look
from raybench.studies.context import Context, explained_images
from raybench.studies.leaderboard import leaderboard
from raybench.studies.lungs_stage import with_lungs
from raybench.studies.plan import make_plan, plan_lines
from raybench.studies.score_stage import score
from raybench.studies.supervised_stage import Supervised, absent, learned_from, supervise
from raybench.tracking.run_folder import RunFolder
from raybench.types import XrayRecord

BASE = "Infection Segmentation Data/Infection Segmentation Data"
RECIPE: dict[str, Any] = {
    "name": "test_resnet",
    "weights": "none",
    "input_size": 64,
    "batch_size": 8,
    "phases": [{"epochs": 1, "lr": 3e-3}],
}


def pool() -> LocalPool:
    return LocalPool(lambda key: b"", 1)


def config_of(root: Path, **changes: Any) -> SweepConfig:
    raw = {
        "name": "unets",
        "output": str(root / "runs"),
        "data": {"name": "covid_qu_ex", "root": str(root / "data")},
        "backbones": [RECIPE],
        "supervised": {"recipe": RECIPE},
        "lungs": {"recipe": RECIPE},
        "explain": {"explainers": [{"name": "whole_lung", "clip_to_lungs": True}]},
    }
    return SweepConfig.model_validate(raw | changes)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set on disk whose Test, and Train's Normal images, have no lung masks."""
    phantoms = Phantom(name="phantom", n_train=4, n_val=2, n_test=2, size=64)
    write_phantoms(phantoms, Storage(str(tmp_path / "data")))
    for folder in ("Train/Normal", *(f"Test/{c}" for c in phantoms.classes)):
        shutil.rmtree(tmp_path / "data" / BASE / folder / "lung masks")
    return tmp_path


def context_of(config: SweepConfig) -> Context:
    records = tuple(config.data.records())
    limits: Any = {"Val": None, "Test": None}
    explained = explained_images(records, config.data.infection_class, limits)
    raw, known = config.model_dump(mode="json"), Path(config.run_folder).exists()
    with RunFolder(config.run_folder) as run:
        run.open(raw, config.digest, resume=known)
    return Context(config, run, config.data, records, explained)


class Watched:
    """A data set that notes which images are opened."""

    def __init__(self, inner: Any, seen: list[XrayRecord]) -> None:
        self.inner, self.seen = inner, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def load(self, record: XrayRecord) -> Any:
        self.seen.append(record)
        return self.inner.load(record)


def in_process(seen: list[XrayRecord]) -> Callable[..., Any]:
    """The search of Ray Tune, for one recipe of plain values, here: what is opened is noted."""
    from raybench.training.state import State
    from raybench.training.tune import TrialResult, train_one

    def search(job: Any, _: Any, __: float, files: Storage, folder: str, listener: Any, ___: bool):  # type: ignore[no-untyped-def]
        found: list[State] = []

        def report(epoch: Any, state: State) -> None:
            listener.epoch_finished("t0000", job.recipes[0], epoch.figures())
            found.append(state)

        job = replace(job, dataset=Watched(job.dataset, seen))
        train_one(job, job.recipes[0], report)
        files.write(f"{folder}/best", found[-1].best)
        recipe = job.recipes[0]
        return [TrialResult("t0000", recipe, "finished", len(found), None, f"{folder}/best")]

    return search


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[XrayRecord]:
    """What training opens, in this process and without Ray."""
    seen: list[XrayRecord] = []
    monkeypatch.setattr("raybench.studies.unet_stage.search", in_process(seen))
    monkeypatch.setattr("raybench.studies.unet_stage.room_for", lambda *_: (0.0, 1))
    return seen


def test_lungs_are_predicted_where_they_lack_and_nothing_is_made_twice(
    root: Path, opened: list[XrayRecord]
) -> None:
    config = config_of(root)
    look(config, resume=False)  # whole_lung and lung masking need what is still to come
    before = context_of(config)
    after = with_lungs(before, resume=False)
    assert opened, "it trained"
    assert {r.split for r in opened} == {"Train", "Val"}
    assert all(r.lung_mask is not None for r in (*after.records, *after.explained["Test"]))
    predicted = [r for r in after.records if is_predicted(r)]
    assert {(r.split, r.label) for r in predicted} == {
        ("Train", "Normal"),
        *(("Test", c) for c in config.data.classes),
    }
    assert all(after.dataset.load(r).lung_mask.any() for r in predicted)  # type: ignore[union-attr]
    masks = sorted((Path(config.run_folder) / "lungs" / "data").glob("*.png"))
    assert len(masks) == len(predicted)
    (event,) = [e for e in before.run.events.read() if e["kind"] == "lungs"]
    trials = before.run.read_csv("trials_lungs.csv")
    assert event["predicted"] == len(predicted)
    assert event["val_dice"] == pytest.approx(trials.val_dice.iloc[0])

    card = json.loads((Path(config.run_folder) / "checkpoints/lungs.json").read_text())
    assert (card["kind"], card["trial_id"]) == ("segmenter", "lungs_t0000")
    assert (card["timm_name"], card["classes"]) == (backbone("test_resnet").timm_name, ["lungs"])
    assert (card["input_size"], card["recipe"]["phases"][0]["lr"]) == ([64, 64], 3e-3)
    assert card["network"] == "segmentation_models_pytorch.Unet"
    assert card["preprocess"]["lung_masking"] is False
    assert card["scores"]["kept_epoch"]["val_dice"] == pytest.approx(event["val_dice"])

    masks[0].unlink()  # as a kill would leave it
    times = {p: p.stat().st_mtime_ns for p in masks[1:]}
    opened.clear()
    assert with_lungs(context_of(config), resume=True).records == after.records
    assert not opened, "nothing is trained twice"
    assert masks[0].exists()
    assert {p: p.stat().st_mtime_ns for p in masks[1:]} == times


def test_the_u_net_stands_among_the_explainers_and_never_sees_test(
    root: Path, opened: list[XrayRecord]
) -> None:
    config = config_of(root, lungs=None, preprocess={"lung_masking": False})
    context = context_of(config)
    found = supervise(context, resume=False)
    assert found == Supervised("supervised_t0000", "unet-test_resnet")
    assert {r.split for r in opened} == {"Train", "Val"}
    assert {r.label for r in opened if r.split == "Val"} == {"COVID-19"}
    assert [r.label for r in opened if r.split == "Train"] == ["COVID-19"] * 4
    context.run.append("predictions", pd.DataFrame(columns=["trial_id", "image_id", "predicted"]))
    judged = pd.DataFrame({"trial_id": [], "backbone": [], "has_checkpoint": []})
    judged["has_checkpoint"] = judged.has_checkpoint.astype(bool)
    empty = pd.DataFrame({"trial_id": ["-"], "image_id": ["-"], "predicted": ["-"]})
    context.run.append("predictions", empty)
    scores = score(context, pool(), judged, [], {}, found)
    assert set(scores.explainer) == {"supervised"}
    assert dict(scores.groupby(["split", "threshold_rule"]).size()) == {
        ("Test", "fixed"): 2,
        ("Test", "val"): 2,
        ("Val", "fixed"): 2,
        ("Val", "val"): 2,
    }
    assert scores[scores.split == "Test"].severity.isna().all(), "Test has no lung masks here"
    assert scores[scores.split == "Val"].severity_error.notna().all()
    card = json.loads(context.run.storage.read("checkpoints/supervised.json"))
    assert (card["kind"], card["classes"]) == ("segmenter", ["infection"])
    trials = context.run.read_csv("trials_supervised.csv")
    fixed = scores[(scores.split == "Val") & (scores.threshold_rule == "fixed")]
    assert fixed.dice.mean() == pytest.approx(trials.val_dice.iloc[0], abs=1e-6)
    board = leaderboard(scores, [], context, found)
    assert list(board.explainer) == ["supervised"] * 2
    assert board.severity_mae.isna().all()
    assert (board.n == 2).all()


def test_maps_left_by_a_kill_are_kept(root: Path, opened: list[XrayRecord]) -> None:
    config = config_of(root, lungs=None, preprocess={"lung_masking": False})
    first = supervise(context_of(config), resume=False)
    assert first is not None
    run = context_of(config).run
    rows = run.read(first.table)
    run.storage.remove(f"parts/{first.table}")
    run = context_of(config).run
    run.append(first.table, rows.iloc[:1].assign(seconds=123.0))
    opened.clear()
    assert supervise(context_of(config), resume=True) == first
    assert not opened, "nothing is trained twice"
    again = context_of(config).run.read(first.table)
    assert sorted(again.image_id) == sorted(rows.image_id)
    assert (again.seconds == 123.0).tolist() == [True] + [False] * (len(rows) - 1)
    merged = rows.merge(again, on="image_id")
    assert (merged.values_x == merged.values_y).all()


def test_without_masks_in_train_there_is_none_and_the_reason_is_said(
    root: Path, opened: list[XrayRecord]
) -> None:
    shutil.rmtree(root / "data" / BASE / "Train" / "COVID-19" / "infection masks")
    config = config_of(root, lungs=None, preprocess={"lung_masking": False})
    context = context_of(config)
    assert supervise(context, resume=False) is None
    assert supervise(context, resume=True) is None
    assert not opened
    (said,) = [e["message"] for e in context.run.events.read() if e["kind"] == "warning"]
    assert said == absent(config.data, context.records)
    assert "Train has no infection masks of COVID-19" in said
    lines = "\n".join(plan_lines(make_plan(config, context.records)))
    assert "No supervised reference: Train has no infection masks" in lines


def test_empty_masks_in_train_are_nothing_to_learn_from(
    root: Path, opened: list[XrayRecord]
) -> None:
    phantoms = Phantom(name="phantom", n_train=4, n_val=2, n_test=2, size=64, lesions=False)
    empty = phantoms.load(phantoms.records()[0])
    assert empty.infection_mask is not None
    assert not empty.infection_mask.any()
    write_phantoms(phantoms, Storage(str(root / "data")))
    config = config_of(root, lungs=None, preprocess={"lung_masking": False})
    context = context_of(config)
    assert supervise(context, resume=False) is None
    assert not opened
    (event,) = [e for e in context.run.events.read() if e["kind"] == "warning"]
    assert "all infection masks of Train are empty" in event["message"]


def test_only_images_of_the_infection_class_are_learned_from(root: Path) -> None:
    config = config_of(root)
    records = config.data.records()
    for split, n in (("Train", 4), ("Val", 2)):
        found = learned_from(config.data, records, split)
        assert [(r.split, r.label) for r in found] == [(split, "COVID-19")] * n


def test_lungs_need_masks_to_learn_from_in_train_and_val(root: Path) -> None:
    for name in ("COVID-19", "Non-COVID", "Normal"):
        shutil.rmtree(root / "data" / BASE / "Val" / name / "lung masks")
    config = config_of(root)
    with pytest.raises(DataError, match="in Train and Val to learn from, found none in Val"):
        check_names(config, config.data.records())


def test_the_plan_counts_what_is_predicted_and_a_label_cannot_take_the_name(root: Path) -> None:
    config = config_of(root)
    lines = "\n".join(plan_lines(make_plan(config, config.data.records())))
    assert "on 8 lung masks of Train, predicts those of 10 images" in lines
    assert "1 epoch on 4 images of Train" in lines
    with pytest.raises(ValueError, match="is the U-Net's name"):
        config_of(root, explain={"explainers": [{"name": "grad_cam", "label": "supervised"}]})


def test_weights_of_the_u_nets_get_absolute_paths(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (root / "w.safetensors").write_bytes(b"")
    recipe = {**RECIPE, "weights": "w.safetensors"}
    config = config_of(root, supervised={"recipe": recipe}, lungs={"recipe": recipe}).located()
    assert config.supervised is not None
    assert config.lungs is not None
    for own in (config.supervised, config.lungs):
        assert own.recipe.weights == str(root / "w.safetensors")


@pytest.mark.slow
def test_on_phantoms_it_stands_above_every_explainer_and_lungs_are_found(
    tmp_path: Path, ray_cluster: None
) -> None:
    """The whole sweep: Dice 0.85 of infection on Test, 0.95 of lungs that it never saw."""
    from rich.console import Console

    from raybench.studies.sweep_study import Options, run_sweep

    phantoms = Phantom(name="phantom", n_train=48, n_val=8, n_test=12, size=96)
    write_phantoms(phantoms, Storage(str(tmp_path / "data")))
    for name in phantoms.classes:
        shutil.rmtree(tmp_path / "data" / BASE / "Test" / name / "lung masks")
    unet = {**RECIPE, "input_size": 96, "batch_size": 4, "optimizer": "adamw"}
    phases = [{"epochs": 9, "lr": 2e-3}, {"epochs": 3, "lr": 2e-4}]
    names = ("grad_cam", "whole_lung", "centre_prior", "random_superpixels")
    config = config_of(
        tmp_path,
        supervised={"recipe": {**unet, "phases": phases}},
        lungs={"recipe": {**unet, "batch_size": 8, "phases": [{"epochs": 5, "lr": 3e-3}]}},
        explain={"panels": 1, "explainers": [{"name": n} for n in names]},
        execution={"mode": "local"},
    )
    run_sweep(config, Options(), Console(quiet=True), lambda: None)
    run = Path(config.run_folder)
    board = pd.read_csv(run / "leaderboard.csv").set_index(["explainer", "threshold_rule"])
    assert board.dice["supervised", "fixed"] > 0.85
    assert board.iou.drop("supervised").max() < board.iou["supervised"].min() - 0.2
    errors = board.severity_mae
    assert errors["supervised"].max() < errors.drop("supervised").min()
    assert (board.n_lungs_predicted == 12).all()
    masks, truths = (
        Storage(str(run / "lungs" / "data")),
        {r.image_id: r for r in phantoms.records()},
    )
    found = []
    for record in config.data.records():
        if record.split == "Test":
            truth = phantoms.load(truths[record.image_id]).lung_mask
            assert truth is not None
            found.append(dice(read_mask(masks, file_of(record), (96, 96)), truth))
    assert np.mean(found) > 0.95
