"""Accuracy and localisation together: the judge, the choice, what a sweep file may ask. Seconds."""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from raybench.config import SweepConfig, load_config
from raybench.config_errors import problems_of
from raybench.errors import ConfigError
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.scoring.binarise import binarise
from raybench.scoring.overlap import dice
from raybench.storage import Storage
from raybench.studies import summary, train_stage
from raybench.studies.context import Context, explained_images
from raybench.studies.goal import LocalisationJudge, within_one_error
from raybench.studies.judge_stage import choose_best
from raybench.studies.plan import make_plan, plan_lines
from raybench.tracking.metrics import classification
from raybench.training.searcher import new_searcher
from raybench.training.space import SearchSpace, resolve
from raybench.training.tune import TrialResult

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
RAW: dict[str, Any] = {
    "name": "goal",
    "data": {"name": "phantom", "n_train": 1, "n_val": 5, "n_test": 1, "size": 96},
    "backbones": [
        {"name": "test_resnet", "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]}
    ],
}


def config_of(**search: Any) -> SweepConfig:
    return SweepConfig.model_validate(RAW | {"search": search})


def problems(raw: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as error:
        SweepConfig.model_validate(raw)
    return problems_of(error.value, SweepConfig)


def context_of(config: SweepConfig, run: Any = None) -> Context:
    records = tuple(config.data.records())
    explained = explained_images(records, config.data.infection_class, {"Val": None, "Test": None})
    return Context(config, run, config.data, records, explained)


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch.manual_seed(0)
    net = build("test_resnet", 3)
    return save_checkpoint(net, Card("test_resnet", ("COVID-19", "Non-COVID", "Normal"), (64, 64)))


def test_the_judge_is_the_mean_score_over_val_on_the_trials_own_images(checkpoint: bytes) -> None:
    explainer = {"name": "saliency", "threshold": 0.1, "target": "true"}
    config = config_of(localisation={"explainer": explainer, "n_images": 2, "score": "dice"})
    goal = config.search.localisation
    assert goal is not None
    context = context_of(config)
    recipe = config.recipes[0].model_copy(
        update={"preprocess": config.preprocess.model_copy(update={"clahe": True})}
    )
    judge = pickle.loads(pickle.dumps(LocalisationJudge.of(context, goal)))
    model, expected = Classifier.from_checkpoint(checkpoint), []
    val = context.explained["Val"]
    for record in (val[0], val[len(val) // 2]):
        xray = config.data.load(record)
        image = recipe.preprocessing.apply(xray)
        assert not np.array_equal(image, config.recipes[0].preprocessing.apply(xray))
        values = goal.explainer.attribute(model, image, 0).values
        expected.append(dice(binarise(values, 0.1), xray.infection_mask))
    said = judge(checkpoint, recipe, "cpu")
    assert said == pytest.approx(np.mean(expected), abs=1e-12)
    assert 0 < said < 1
    assert said == judge(checkpoint, recipe, "cpu"), "asked again, it says the same"
    assert {r.split for r, _ in judge.images} == {"Val"}


def table(*rows: tuple[str, str, float, float, float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    columns = ["trial_id", "backbone", "val_accuracy", "val_loss", "val_localisation"]
    frame = pd.DataFrame(rows, columns=columns)
    trials = frame[["trial_id", "backbone", "val_localisation"]]
    return trials, frame[["trial_id", "val_accuracy", "val_loss"]]


def test_localisation_decides_among_those_within_one_standard_error() -> None:
    # Of 100 images the standard error at 0.9 is 0.03.
    trials, val = table(
        ("t0", "a", 0.90, 0.3, 0.10),
        ("t1", "a", 0.88, 0.3, 0.20),
        ("t2", "a", 0.87, 0.3, 0.30),
        ("t3", "a", 0.8699, 0.3, 0.40),
        ("t4", "a", 0.89, 0.3, math.nan),
        ("t5", "b", 0.50, 0.9, 0.01),
    )
    assert choose_best(trials, val, 100) == ["t2", "t5"]
    assert choose_best(trials, val, 10**9) == ["t0", "t5"], "many images leave no doubt"
    assert choose_best(trials.drop(columns="val_localisation"), val, 100) == ["t0", "t5"]


def test_of_equal_localisation_accuracy_decides_then_loss_then_the_id() -> None:
    rows = [("t0", "a", 0.90, 0.3, 0.2), ("t1", "a", 0.91, 0.3, 0.2), ("t2", "a", 0.91, 0.2, 0.2)]
    assert choose_best(*table(*rows), 100) == ["t2"]
    rows[2] = ("t2", "a", 0.91, 0.3, 0.2)
    assert choose_best(*table(*rows), 100) == ["t1"]
    nothing = [(t, b, a, loss, math.nan) for t, b, a, loss, _ in rows]
    assert choose_best(*table(*nothing), 100) == ["t1"], "as without localisation"


def test_a_perfect_accuracy_has_no_standard_error() -> None:
    trials, val = table(("t0", "a", 1.0, 0.1, 0.1), ("t1", "a", 0.99, 0.1, 0.9))
    assert list(within_one_error(trials.merge(val), 50).trial_id) == ["t0"]
    # but one may say what localisation is worth
    near = val.val_accuracy[val.val_accuracy < 1].max()
    assert len(within_one_error(trials.merge(val), 50, 1 - near + 1e-9)) == 2


@pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
def test_a_scheduler_beside_localisation_is_refused(scheduler: str) -> None:
    (problem,) = problems(RAW | {"search": {"scheduler": scheduler, "localisation": {}}})
    assert problem.startswith("search.scheduler: expected none beside search.localisation, found ")
    assert config_of(scheduler=scheduler).search.scheduler == scheduler


@pytest.mark.parametrize(
    ("explainer", "said"),
    [
        ({"name": "whole_lung"}, "asks the model"),
        ({"name": "lime", "fill": {"name": "neighbour"}}, "looks at Train"),
        ({"name": "grad_camm"}, "expected one of"),
    ],
)
def test_an_explainer_that_cannot_judge_is_refused(explainer: dict[str, Any], said: str) -> None:
    (problem,) = problems(RAW | {"search": {"localisation": {"explainer": explainer}}})
    assert problem.startswith("search.localisation.explainer")
    assert said in problem


@pytest.mark.parametrize(("key", "value"), [("hours", 0), ("gpu_hours", -1), ("hours", math.inf)])
def test_a_budget_is_more_than_nothing(key: str, value: float) -> None:
    (problem,) = problems(RAW | {"search": {key: value}})
    assert problem.startswith(f"search.{key}: expected a ")


def test_gpu_hours_need_trials_that_hold_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    room = {"gpus": 0.0}
    monkeypatch.setattr(train_stage, "room_for", lambda *_: (room["gpus"], 1))
    assert train_stage.gpus_of_trials(config_of(hours=1)) == 0
    with pytest.raises(ConfigError, match=r"search\.gpu_hours: expected trials that hold GPUs"):
        train_stage.gpus_of_trials(config_of(gpu_hours=1))
    room["gpus"] = 0.5
    assert train_stage.gpus_of_trials(config_of(gpu_hours=1)) == 0.5


def test_the_plan_tells_budget_and_judge() -> None:
    config = config_of(trials_per_backbone=4, hours=1.5, gpu_hours=8, localisation={"n_images": 3})
    text = "\n".join(plan_lines(make_plan(config, config.data.records())))
    assert "Training: at most 4 trials, 4 a backbone\n  for 1.5 hours or 8 GPU hours: " in text
    assert "each judged at its end: iou of grad_cam on 3 Val images (1 forward passes each)" in text


def test_a_trial_that_the_budget_stopped_is_judged_after_all(
    checkpoint: bytes, tmp_path: Path
) -> None:
    config = config_of(localisation={"n_images": 1})
    goal = config.search.localisation
    assert goal is not None
    context = context_of(config)
    judge = LocalisationJudge.of(context, goal)
    name, files = "best.safetensors", Storage(str(tmp_path))
    files.write(name, checkpoint)
    context = replace(context, run=SimpleNamespace(storage=files))  # type: ignore[arg-type]
    recipe = config.recipes[0]

    def judged(status: str, at: str | None, known: float | None = None) -> float | None:
        error = "it diverged" if status == "failed" else None
        result = TrialResult("t0000", recipe, status, 1, error, at, known)
        return train_stage._judged(context, judge, result).localisation

    assert judged("stopped", name) == judge(checkpoint, recipe, "cpu")
    assert judged("finished", name, 0.5) == 0.5
    assert judged("failed", name) is None
    assert judged("stopped", None) is None


def test_val_localisation_is_shown_and_tracked_where_it_is_there() -> None:
    row = {"trial_id": "t0", "backbone": "net", "status": "finished", "n_epochs": 3, "best": True}
    frame = pd.DataFrame([row | {"val_accuracy": 0.8, "val_localisation": 0.123}])
    found = classification(frame.iloc[0].to_dict())
    assert found == {"classification/val_accuracy": 0.8, "search/val_localisation": 0.123}
    for shown in (frame, frame.drop(columns="val_localisation")):
        empty = pd.DataFrame()
        tables = {"trials.csv": shown, "leaderboard.csv": empty, "published.csv": empty}
        run = SimpleNamespace(
            read_csv=tables.__getitem__,
            events=SimpleNamespace(read=list),
            path=Path("none-such"),
            where="",
            storage=SimpleNamespace(exists=lambda _: False),
        )
        text = io.StringIO()
        summary.show(run, Console(file=text, width=130))  # type: ignore[arg-type]
        assert ("Val loc." in text.getvalue()) == ("val_localisation" in shown)
        assert ("0.123" in text.getvalue()) == ("val_localisation" in shown)


def test_the_searched_study_begins_with_the_study_itself() -> None:
    study = load_config(SWEEPS / "covid-qu-ex.yaml")
    searched = load_config(SWEEPS / "covid-qu-ex-search.yaml")
    assert searched.explain == study.explain
    space = SearchSpace(searched.recipes)
    for seed in (0, 1):
        one = new_searcher(space, ("score",), space.first_points(2), seed, 1)
        drawn = [one.suggest(str(n)) for n in range(8)]
        first, later = (
            [resolve(searched.recipes, d) for d in part] for part in (drawn[:4], drawn[4:])
        )
        assert first == list(study.recipes)
        assert all(a != b for a, b in zip(first, later, strict=True))
