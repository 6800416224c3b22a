"""The search space against Optuna itself. About 2 seconds."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from pydantic import ValidationError

from raybench.config import load_config
from raybench.settings import Choice, Range, settled
from raybench.training.recipe import Recipe
from raybench.training.space import SearchSpace, hyperparameters, resolve, searched_settings

optuna.logging.set_verbosity(optuna.logging.ERROR)

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"

SEARCHED = Recipe.model_validate(
    {
        "name": "test_resnet",
        "weights": "none",
        "input_size": 64,
        "batch_size": {"low": 4, "high": 9},
        "weight_decay": {"choices": [0.0, 1.0e-2]},
        "dropout": {"low": 0, "high": 0.5},
        "plateau": {"patience": 1},
        "phases": [
            {"unfreeze": "head", "epochs": 1, "lr": 1e-3},
            {"unfreeze": "full", "epochs": 2, "lr": {"low": 1e-5, "high": 1e-2, "log": True}},
            {"unfreeze": "full", "epochs": 3, "lr": {"choices": [1e-4, "1e-5"]}},
        ],
    }
)
PLAIN = Recipe.model_validate(
    {"name": "vgg16", "phases": [{"epochs": 1, "lr": 1e-5}], "batch_size": 32}
)
PATHS = ["batch_size", "weight_decay", "dropout", "phases.1.lr", "phases.2.lr"]


def ask(n: int, seed: int = 0, told: bool = True) -> list[optuna.trial.Trial]:
    """`n` trials a backbone as the search runs them: first points enqueued, then TPE asked."""
    space = SearchSpace((SEARCHED, PLAIN))
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=3, multivariate=True, group=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for point in space.first_points(n):
        study.enqueue_trial(point)
    trials = []
    for _ in range(n * 2):
        trial = study.ask()
        assert space(trial) == {"trial_number": trial.number}
        if told:
            study.tell(trial, -math.log10(trial.params.get("test_resnet.phases.1.lr", 1.0)))
        trials.append(trial)
    return trials


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_each_backbone_gets_its_trials_and_parameters_of_its_own() -> None:
    trials = ask(8)
    assert Counter(t.params["backbone"] for t in trials) == {"test_resnet": 8, "vgg16": 8}
    for trial in trials:
        names = [f"test_resnet.{p}" for p in PATHS] if trial.params["backbone"] != "vgg16" else []
        assert list(trial.params) == ["backbone", *names]
    drawn = [t.params for t in trials if t.params["backbone"] == "test_resnet"]
    assert {type(p["test_resnet.batch_size"]) for p in drawn} == {int}
    assert all(4 <= p["test_resnet.batch_size"] <= 9 for p in drawn)
    assert all(1e-5 <= p["test_resnet.phases.1.lr"] <= 1e-2 for p in drawn)
    assert {p["test_resnet.phases.2.lr"] for p in drawn} <= {1e-4, 1e-5}
    lr = next(t for t in trials if t.params["backbone"] != "vgg16").distributions[
        "test_resnet.phases.1.lr"
    ]
    assert isinstance(lr, optuna.distributions.FloatDistribution)
    assert lr.log


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_same_seed_proposes_the_same() -> None:
    first, second, other = ([t.params for t in ask(5, seed)] for seed in (0, 0, 1))
    assert first == second
    assert first != other


def test_searched_settings_are_found_at_every_depth_in_the_files_order() -> None:
    found = dict(searched_settings(SEARCHED))
    assert list(found) == PATHS
    assert found["batch_size"] == Range(low=4, high=9)
    assert found["phases.2.lr"] == Choice(choices=(1e-4, 1e-5))
    assert list(searched_settings(PLAIN)) == []


def test_resolve_puts_each_value_in_its_place() -> None:
    drawn: dict[str, Any] = dict(
        zip([f"test_resnet.{p}" for p in PATHS], [6, 0.01, 0.25, 3e-4, 1e-5], strict=True)
    )
    recipe = resolve([PLAIN, SEARCHED], {"backbone": "test_resnet", "trial_number": 3, **drawn})
    assert list(searched_settings(recipe)) == []
    assert [p.lr for p in recipe.phases] == [1e-3, 3e-4, 1e-5]
    assert (recipe.batch_size, recipe.weight_decay, recipe.dropout) == (6, 0.01, 0.25)
    kept = {"name", "weights", "input_size", "optimizer", "label_smoothing", "plateau"}
    assert recipe.model_dump(include=kept) == SEARCHED.model_dump(include=kept)
    assert resolve([PLAIN, SEARCHED], {"backbone": "vgg16", "trial_number": 0}) == PLAIN
    assert SEARCHED.phases[1].lr == Range(low=1e-5, high=1e-2, log=True)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_optuna_draws_resolves() -> None:
    for trial in ask(3, told=False):
        assert list(searched_settings(resolve([SEARCHED, PLAIN], trial.params))) == []


def test_hyperparameters_are_flat_and_named_by_phase() -> None:
    drawn = dict(zip([f"test_resnet.{p}" for p in PATHS], [6, 0.01, 0.25, 3e-4, 1e-5], strict=True))
    flat = hyperparameters(resolve([SEARCHED], {"backbone": "test_resnet", **drawn}))
    assert flat == {
        "weights": "none",
        "input_size": 64,
        "batch_size": 6,
        "optimizer": "adam",
        "weight_decay": 0.01,
        "label_smoothing": 0.0,
        "dropout": 0.25,
        "balance": "none",
        "lung_masking": True,
        "clahe": False,
        "clahe_clip": 2.0,
        "clahe_tiles": 8,
        "erase_border": 0.0,
        "augment_flip": True,
        "augment_rotation": 10.0,
        "augment_scale": 0.0,
        "augment_shift": 0.0,
        "augment_brightness": 0.0,
        "augment_contrast": 0.0,
        "plateau_patience": 1,
        "plateau_factor": 0.5,
        "phase0_unfreeze": "head",
        "phase0_lr": 1e-3,
        "phase0_epochs": 1,
        "phase1_unfreeze": "full",
        "phase1_lr": 3e-4,
        "phase1_epochs": 2,
        "phase2_unfreeze": "full",
        "phase2_lr": 1e-5,
        "phase2_epochs": 3,
    }
    assert hyperparameters(PLAIN)["input_size"] == 224


WITH_IMAGES = Recipe.model_validate(
    {
        "name": "test_resnet",
        "weights": "none",
        "phases": [{"unfreeze": {"choices": ["head", 2]}, "epochs": 1, "lr": 1e-3}],
        "preprocess": {
            "clahe": {"choices": [False, True]},
            "clahe_clip": {"low": 1.0, "high": 4.0},
            "clahe_tiles": {"low": 4, "high": 12},
        },
        "augment": {"rotation": {"low": 0, "high": 20}},
    }
)


def test_with_a_searched_depth_a_column_means_one_phase_in_every_trial() -> None:
    sweep = load_config(SWEEPS / "cxr-search.yaml", [("backbones.0.weights", "none")])
    (recipe,) = sweep.recipes
    plain = {path: settled(domain) for path, domain in searched_settings(recipe)}
    rates = {}
    for depth in ("full", 3):
        drawn = plain | {"phases.0.unfreeze": depth, "phases.0.lr": 5e-4}
        named = {f"{recipe.name}.{path}": value for path, value in drawn.items()}
        flat = hyperparameters(resolve([recipe], {"backbone": recipe.name, **named}))
        assert flat["phase0_unfreeze"] == str(depth)
        rates[depth] = (flat["phase0_lr"], flat["phase1_lr"])
    assert rates == {"full": (5e-4, 1e-4), 3: (5e-4, 1e-4)}


def test_what_does_nothing_is_not_drawn_and_numbers_of_things_are_whole() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        trial = study.ask()
        SearchSpace((WITH_IMAGES,))(trial)
        recipe = resolve([WITH_IMAGES], trial.params)
        clahe = trial.params["test_resnet.preprocess.clahe"]
        assert ("test_resnet.preprocess.clahe_clip" in trial.params) == clahe
        assert recipe.preprocessing.clahe_clip == trial.params.get(
            "test_resnet.preprocess.clahe_clip", 1.0
        )
        assert isinstance(recipe.preprocessing.clahe_tiles, int)
        assert recipe.augmentation.rotation == trial.params["test_resnet.augment.rotation"]
        flat = hyperparameters(recipe)
        depth = trial.params["test_resnet.phases.0.unfreeze"]
        told = {name: flat[name] for name in flat if name.startswith("phase")}
        assert told == {"phase0_unfreeze": str(depth), "phase0_lr": 1e-3, "phase0_epochs": 1}
        seen.add((clahe, depth))
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": [{"unfreeze": 5, "epochs": 1, "lr": 1e-3}]}, "1 to 4 .*found 5"),
        ({"phases": [{"unfreeze": {"choices": ["head", 9]}, "epochs": 1, "lr": 1}]}, "found 9"),
        ({"phases": [{"unfreeze": True, "epochs": 1, "lr": 1e-3}]}, "a number of last stages"),
        ({"preprocess": {"clahe": {"low": 0, "high": 1}}}, "found an interval"),
        ({"preprocess": {"clahe_clip": {"low": 0, "high": 1}}}, "greater than 0"),
        ({"augment": {"rotation": {"choices": [10, 50]}}}, "less than or equal to 45"),
    ],
)
def test_domains_out_of_bounds_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe.model_validate(WITH_IMAGES.model_dump() | changes)


def test_the_space_can_be_pickled() -> None:
    space = SearchSpace((SEARCHED, PLAIN, WITH_IMAGES))
    assert pickle.loads(pickle.dumps(space)) == space
