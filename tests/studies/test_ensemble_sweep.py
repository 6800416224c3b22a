"""A whole sweep with an ensemble, in this process, its training replaced by fresh networks.

What stands in every table and card; killed and resumed; what cannot be an ensemble. About 15 s.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from raybench.config import SweepConfig
from raybench.config_ensemble import Ensemble
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, load_checkpoint, read_card, save_checkpoint
from raybench.storage import Storage
from raybench.studies import train_stage
from raybench.studies.ensemble_stage import choose_members
from raybench.studies.plan import make_plan, plan_lines
from raybench.studies.sweep_study import Options, run_sweep
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.view import view
from raybench.training.trial import TrialJob
from raybench.training.tune import TrialResult

PROBABILITIES = [f"p_{name}" for name in ("COVID-19", "Non-COVID", "Normal")]
NAMES = ("test_efficientnet", "test_resnet")
SAID = "they read one network's layers or gradients, and it has several"


def config_of(tmp_path: Path, output: str, **more: Any) -> SweepConfig:
    weights = tmp_path / "secret-folder" / "theirs.safetensors"
    weights.parent.mkdir(exist_ok=True)
    weights.touch()
    recipe = {"input_size": 64, "phases": [{"epochs": 1, "lr": 1e-3}]}
    raw: dict[str, Any] = {
        "name": "together",
        "output": str(tmp_path / output),
        "data": {"name": "phantom", "n_train": 4, "n_val": 3, "n_test": 3, "size": 96},
        "backbones": [
            {"name": NAMES[0], "weights": str(weights), **recipe},
            {"name": NAMES[1], "weights": "none", **recipe},
        ],
        "search": {"trials_per_backbone": 2},
        "explain": {
            "n_val": 2,
            "n_test": 2,
            "panels": 1,
            "explainers": [
                {"name": "grad_cam"},
                {
                    "name": "lime",
                    "n_samples": 20,
                    "superpixels": "grid",
                    "fill": {"name": "neighbour", "embedding": "features"},
                },
                {"name": "whole_lung"},
            ],
        },
        "explainer_search": {
            "n_trials": 2,
            "sampler": "random",
            "explainers": {"lime": {"surrogate.alpha": {"low": 0.1, "high": 10}}},
        },
        "ensemble": {},
        "execution": {"mode": "local"},
        "tracking": {"live": False},
        **more,
    }
    return SweepConfig.model_validate(raw)


def trained(job: TrialJob, number: int, preprocess: Mapping[str, Any]) -> bytes:
    """A fresh network whose answers move."""
    torch.manual_seed(number)
    name = NAMES[number % 2]
    net = build(name, 3).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 64, 64))
        net.get_classifier().weight.mul_(20)
    card = Card(name, job.dataset.classes, (64, 64), dict(preprocess), {"val_accuracy": 0.25})
    return save_checkpoint(net, card)


def stand_in(
    patch: pytest.MonkeyPatch, failing: tuple[int, ...] = (), odd: int = -1, draws: bool = False
) -> None:
    """In place of Ray Tune: four trials; some fail, one saw other images. MLflow is left alone."""

    def search(job: TrialJob, _: Any, gpus: float, files: Storage, *__: Any) -> list[TrialResult]:
        found = []
        for number in range(4):
            trial, recipe = f"t{number:04d}", job.recipes[number % 2]
            if number in failing:
                found.append(TrialResult(trial, recipe, "failed", 0, "it broke", None))
                continue
            name = f"tune/{trial}.safetensors"
            raw = recipe.preprocessing.model_dump() | ({"clahe": True} if number == odd else {})
            files.write(name, trained(job, number, raw))
            found.append(TrialResult(trial, recipe, "finished", 1, None, name))
        return found

    patch.setattr(train_stage, "search", search)
    patch.setattr(train_stage, "room_for", lambda *_: (0.0, 1))
    project = SimpleNamespace(close=lambda final: None)
    patch.setattr("raybench.studies.sweep_study.LiveProjection", lambda *_: project)
    if not draws:
        patch.setattr("raybench.studies.sweep_study.draw", lambda *_: None)
    # The weights file is a name in a recipe; nothing is built from it.
    patch.setattr("raybench.studies.checks.build", lambda *_: None)


def run(config: SweepConfig, **options: bool) -> str:
    said = io.StringIO()
    run_sweep(config, Options(**options), Console(file=said, width=110), lambda: None)
    return said.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, str]:
    """A finished sweep, and what it said."""
    config = config_of(tmp_path_factory.mktemp("whole"), "runs")
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, draws=True)
        return config, run(config)


def test_the_ensemble_is_a_row_of_every_table(whole: tuple[SweepConfig, str]) -> None:
    config, said = whole
    folder = RunFolder(config.run_folder)
    trials = folder.read_csv("trials.csv").set_index("trial_id")
    assert list(trials.index) == ["t0000", "t0001", "t0002", "t0003", "ensemble"]
    row = trials.loc["ensemble"]
    assert (row.backbone, row.status, row.n_epochs, row.best) == ("ensemble", "ensemble", 0, False)
    for split in ("val", "test"):
        accuracy = row[f"{split}_accuracy"]
        assert row[f"{split}_accuracy_low"] <= accuracy <= row[f"{split}_accuracy_high"]
    members = list(read_card(f"{folder.path}/checkpoints/ensemble.safetensors").members)
    assert members == sorted(trials.index[trials.best])
    rows = folder.read_parquet("predictions.parquet")
    for split in ("Val", "Test"):
        part = rows[rows.split == split].set_index("image_id")
        found = part[part.trial_id == "ensemble"][PROBABILITIES]
        each = [part[part.trial_id == member].loc[found.index] for member in members]
        expected = np.mean([one[PROBABILITIES] for one in each], axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    scores = folder.read_parquet("scores.parquet")
    assert scores.error.isna().all()
    own = scores[scores.trial_id == "ensemble"]
    assert set(own.explainer) == {"lime", "whole_lung", "lime_tuned", "whole_lung_tuned"}
    assert set(own.split) == {"Val", "Test"}
    board = folder.read_csv("leaderboard.csv")
    assert set(board.backbone) == {*NAMES, "ensemble"}
    assert set(board[board.backbone == "ensemble"].explainer) == set(own.explainer)
    searched = folder.read_csv("explainer_search.csv")
    assert set(searched[searched.trial_id == "ensemble"].explainer) == {"lime"}
    pictures = {path.name for path in (folder.path / "figures").glob("*ensemble.png")}
    kinds = ("roc", "precision_recall", "confusion", "reliability", "infection_maps")
    assert pictures == {f"{kind}_ensemble.png" for kind in kinds}
    assert "ensemble: localisation on Test" in said


def test_mlflow_is_shown_it_as_a_trial_that_is_done(whole: tuple[SweepConfig, str]) -> None:
    folder = RunFolder(whole[0].run_folder)
    (shown,) = [t for t in view(folder).trials if t.trial_id == "ensemble"]
    assert (shown.status, shown.tags["status"], shown.curve) == ("FINISHED", "ensemble", ())
    assert shown.params["members"].count("t000") == 2
    assert {"classification/test_accuracy", "iou_test/lime.val"} <= set(shown.metrics)
    assert "tuned_val_iou/lime" in shown.metrics
    (event,) = [e for e in folder.events.read() if e["kind"] == "ensemble_made"]
    assert event["not_explained_by"] == ["grad_cam"]


def test_a_card_in_json_says_what_using_a_checkpoint_takes(
    whole: tuple[SweepConfig, str],
) -> None:
    config, _ = whole
    folder = RunFolder(config.run_folder)
    trials = folder.read_csv("trials.csv").set_index("trial_id")
    known = {p.stem: json.loads(p.read_text()) for p in folder.path.glob("checkpoints/*.json")}
    assert set(known) == {p.stem for p in folder.path.glob("checkpoints/*.safetensors")}
    started = folder.events.read()[0]
    for trial, told in known.items():
        data = (folder.path / f"checkpoints/{trial}.safetensors").read_bytes()
        card, row = load_checkpoint(data)[1], trials.loc[trial]
        assert (told["kind"], told["backbone"]) == (card.kind, row.backbone)
        assert told["classes"] == list(card.classes)
        assert told["input_size"] == [64, 64]
        assert told["preprocess"] == config.preprocess.model_dump()
        assert told["config_digest"] == config.digest
        assert told["data_digest"] == started["data_digest"]
        assert set(told["versions"]) == {"raybench", "torch", "timm"}
        accuracy = told["scores"]["val"]["accuracy"]
        assert accuracy["value"] == row.val_accuracy
        is_shown = bool(row.best) or trial == "ensemble"
        assert ("test" in told["scores"]) == is_shown
        assert (accuracy["interval"] is not None) == is_shown
    first = known["t0000"]
    facts = backbone(NAMES[0])
    assert (first["timm_name"], tuple(first["mean"])) == (facts.timm_name, facts.mean)
    assert first["recipe"]["weights"] == "theirs.safetensors"
    assert first["recipe"]["phases"][0]["lr"] == 1e-3
    assert first["scores"]["kept_epoch"] == {"val_accuracy": 0.25}
    assert [m["prefix"] for m in known["ensemble"]["members"]] == ["0.", "1."]
    assert "secret-folder" not in json.dumps(known)


def test_killed_after_the_ensemble_was_written_it_is_not_made_again(
    whole: tuple[SweepConfig, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    config = config_of(tmp_path, "runs", explainer_search=None)
    folder = RunFolder(config.run_folder)
    append = RunFolder.append

    def killing(run_folder: RunFolder, table: str, frame: pd.DataFrame) -> None:
        ensemble = table == "predictions" and set(frame.trial_id) == {"ensemble"}
        if ensemble and set(frame.split) == {"Test"}:
            raise KeyboardInterrupt
        append(run_folder, table, frame)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", killing)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    path = folder.path / "checkpoints/ensemble.safetensors"
    written = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("raybench.studies.ensemble_stage.join", lambda _: pytest.fail("joined again"))
        run(config, resume=True)
    assert path.stat().st_mtime_ns == written
    other = RunFolder(whole[0].run_folder)
    assert path.read_bytes() == (other.path / "checkpoints/ensemble.safetensors").read_bytes()
    keys = ["trial_id", "split", "image_id"]
    rows, expected = (f.read_parquet("predictions.parquet") for f in (folder, other))
    assert not rows.duplicated(keys).any()
    pd.testing.assert_frame_equal(
        *(frame.sort_values(keys, ignore_index=True) for frame in (rows, expected))
    )
    kinds = [e["kind"] for e in folder.events.read() if e.get("trial_id") == "ensemble"]
    assert kinds == ["trial_started", "trial_finished"]
    assert "ensemble_made" in {e["kind"] for e in folder.events.read()}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"failing": (1, 3)}, "expected two members at least, found t000"),
        ({"odd": 1}, r"preprocess.clahe is (False|True) of t000\d.*, (False|True) of t000"),
    ],
    ids=["failed", "preprocess"],
)
def test_a_trained_sweep_goes_on_without_an_ensemble_that_cannot_be(
    how: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, **how)
    explain = {"n_val": 1, "n_test": 1, "panels": 0, "explainers": [{"name": "whole_lung"}]}
    config = config_of(
        tmp_path, "runs", explain=explain, explainer_search=None, ensemble={"of": "all"}
    )
    if "failing" in how:
        config = config.model_copy(update={"ensemble": Ensemble()})
    run(config)
    folder = RunFolder(config.run_folder)
    (message,) = [e["message"] for e in folder.events.read() if e["kind"] == "warning"]
    assert message.startswith("there is no ensemble in this sweep: ")
    assert re.search(said, message)
    assert "ensemble" not in set(folder.read_csv("trials.csv").trial_id)
    assert not (folder.path / "checkpoints/ensemble.safetensors").exists()


VAL = pd.DataFrame(
    {
        "trial_id": ["t3", "t1", "t2", "t0"],
        "val_accuracy": [0.7, 0.8, 0.7, 0.6],
        "val_loss": [0.5, 0.9, 0.4, 0.1],
    }
)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["t0", "t1", "t3"]),
        ({"top": 2}, ["t1", "t3"]),
        ({"of": "all"}, ["t0", "t1", "t2", "t3"]),
        ({"of": "all", "top": 2}, ["t1", "t2"]),
        ({"of": "all", "top": 9}, ["t0", "t1", "t2", "t3"]),
    ],
)
def test_members_are_chosen_on_val(settings: dict[str, Any], expected: list[str]) -> None:
    assert choose_members(Ensemble(**settings), VAL, ["t0", "t1", "t3"]) == expected


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ensemble": {"of": "best"}}, "set ensemble.of: all$"),
        ({"ensemble": {"of": "all"}, "search": {}}, "search.trials_per_backbone: 2$"),
        ({"ensemble": {"top": 1}}, "greater than or equal to 2"),
    ],
)
def test_what_can_never_have_two_members_is_told_at_once(
    more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    one = [{"name": NAMES[0], "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]}]
    with pytest.raises(ValueError, match="ensemble") as error:
        config_of(tmp_path, "runs", backbones=one, **more)
    lines = str(error.value).replace(" [type", "\n").splitlines()
    assert any(re.search(said, line) for line in lines), lines


def test_preprocessing_that_differs_is_told_with_the_backbone_and_idle_settings_are_not(
    tmp_path: Path,
) -> None:
    idle = {"lung_masking": True, "clahe": False, "clahe_clip": {"low": 1.0, "high": 4.0}}
    seen = {"lung_masking": False, "clahe": True}
    phases = [{"epochs": 1, "lr": 1e-3}]

    def backbones(preprocess: dict[str, Any]) -> list[dict[str, Any]]:
        plain = [{"name": name, "weights": "none", "phases": phases} for name in NAMES[:2]]
        return [plain[0], plain[1] | {"preprocess": preprocess}]

    assert not config_of(tmp_path, "runs", preprocess=idle).varies_preprocess
    assert not config_of(tmp_path, "runs", backbones=backbones(idle)).varies_preprocess
    with pytest.raises(ValueError, match="ensemble: its members see one image") as error:
        config_of(tmp_path, "runs", backbones=backbones(seen))
    assert (
        f"here preprocess.lung_masking is False and not True for {NAMES[1]}; preprocess.clahe is "
        f"True and not False for {NAMES[1]}: set it in the sweep's preprocess"
    ) in str(error.value)
    searched = idle | {"clahe": {"choices": [False, True]}}
    with pytest.raises(ValueError, match=f"preprocess.clahe is searched for {NAMES[0]}, "):
        config_of(tmp_path, "runs", preprocess=searched)


def test_the_plan_counts_it_and_says_who_cannot_explain_it(tmp_path: Path) -> None:
    plans = {
        name: make_plan(config, config.data.records())
        for name, config in (
            ("with", config_of(tmp_path, "runs")),
            ("without", config_of(tmp_path, "runs", ensemble=None)),
        )
    }
    more = plans["with"].n_forward - plans["without"].n_forward
    assert more == (2 + 2) * 20, "LIME's passes on Val and Test and not Grad-CAM's"
    assert plans["with"].n_settings - plans["without"].n_settings == 2
    n_images = 3 * 4 + 2 + 2
    assert plans["with"].n_forward_neighbours == 3 * n_images
    said = "\n".join(plan_lines(plans["with"]))
    assert "the mean of the best trial of each backbone (2 models" in said
    assert f"but not the ensemble by grad_cam: {SAID}" in said
    assert "ensemble" not in "\n".join(plan_lines(plans["without"]))
