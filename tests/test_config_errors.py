"""Every mistake in a sweep file at once, each with its path, what was expected and what was found.

About 3 seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.config import load_config
from raybench.errors import ConfigError
from raybench.explain import AnyExplainer

BASE: dict[str, Any] = {
    "name": "small",
    "data": {"name": "covid_qu_ex", "root": "data/cxr"},
    "backbones": [
        {"name": "test_resnet", "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]},
        {"name": "vgg16", "phases": [{"unfreeze": "head", "epochs": 2, "lr": 1e-4}]},
    ],
    "explain": {
        "explainers": [
            {"name": "lime"},
            {"name": "grad_cam", "label": "cam_covid", "target": "COVID-19"},
            {"name": "grad_cam"},
            {"name": "centre_prior"},
        ]
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "small.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def problems(path: Path, *overrides: tuple[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    count = len(error.value.problems)
    head = "1 mistake" if count == 1 else f"{count} mistakes"
    expected = [f"{head} in the configuration:", *(f"  {p}" for p in error.value.problems)]
    assert str(error.value).splitlines() == expected  # one line a mistake
    return list(error.value.problems)


UNKNOWN = [
    ("sed", "sed: not a setting; did you mean seed?"),
    ("data.rot", "data.rot: not a setting of covid_qu_ex; did you mean root?"),
    ("training.augment.rotaton", "not a setting; did you mean rotation?"),
    ("backbones.0.phases.0.lrr", "backbones.0.phases.0.lrr: not a setting; did you mean lr?"),
    ("backbones.vgg16.batchsize", "backbones.1.batchsize: not a setting; did you mean batch_size?"),
    ("explain.explainers.0.n_sample", "not a setting of lime; did you mean n_samples?"),
    ("explain.explainers.0.superpixels.kernel", "of quickshift; did you mean kernel_size?"),
    ("explain.explainers.3.n_samples", "of centre_prior; choose label, target, threshold, "),
    ("search.grace_epoch", "did you mean grace_epochs?"),
    ("tracking.url", "did you mean uri?"),
]


@pytest.mark.parametrize(("key", "said"), UNKNOWN, ids=[k for k, _ in UNKNOWN])
def test_an_unknown_key_gets_its_path_and_the_nearest_name(base: Path, key: str, said: str) -> None:
    (problem,) = problems(base, (key, "1"))
    path = key.replace("vgg16", "1")
    assert problem.startswith(f"{path}: not a setting")
    assert said in problem


KINDS = ", ".join(m.model_fields["name"].default for m in get_args(get_args(AnyExplainer)[0]))
DATA = "chexlocalize, covid_qu_ex, folder, phantom"
TARGETS = "expected one of predicted, true, COVID-19, Non-COVID, Normal"
DOMAIN = "{low: ..., high: ...} or {choices: [...]}"
LR = "backbones.0.phases.0.lr"
WRONG = [
    # wrong kinds
    ("seed", "abc", "seed: expected a whole number, found 'abc'"),
    ("seed", "null", "seed: expected a whole number, found null"),
    ("seed", "1.5", "seed: expected a whole number, found 1.5"),
    ("seed.x", "5", "seed: expected a whole number, found keys and values (x)"),
    ("name", "[a]", "name: expected text, found a list of 1"),
    ("preprocess.clahe", "maybe", "preprocess.clahe: expected true or false, found 'maybe'"),
    ("preprocess.clahe_clip", "high", "preprocess.clahe_clip: expected a number, found 'high'"),
    ("data.classes", "COVID-19", "data.classes: expected a list, found 'COVID-19'"),
    ("backbones", "{name: x}", "backbones: expected a list, found keys and values (name)"),
    ("explain", "lime", "explain: expected keys and values (trials, target, grid, "),
    ("explain.explainers", "[]", "explainers: expected a list of at least 1, found an empty list"),
    (
        "explain.explainers",
        "[lime]",
        f"explain.explainers.0: expected keys and values, name: one of {KINDS}",
    ),
    ("search", "true", "search: expected keys and values (trials_per_backbone, "),
    # out of range
    ("seed", "-1", "seed: expected a number of at least 0, found -1"),
    ("explain.panels", "51", "explain.panels: expected a number of at most 50, found 51"),
    ("training.augment.rotation", "50", "expected a number of at most 45, found 50"),
    (
        "explain.explainers.lime.surrogate.kernel_width",
        "0",
        "explain.explainers.0.surrogate.kernel_width: expected a number greater than 0, found 0",
    ),
    (
        "explain.explainers.lime.surrogate",
        "rigde",
        "explain.explainers.0.surrogate.name: expected one of ridge, bayesian_ridge, glime, "
        "kernel_shap, found 'rigde'; did you mean ridge?",
    ),
    (
        "explain.explainers.lime.surrogate",
        "{name: glime, kernel_width: 1}",
        "explain.explainers.0.surrogate.kernel_width: not a setting of glime; choose name, ",
    ),
    (
        "explain.explainers.lime.threshold",
        "1",
        "explain.explainers.0.threshold: expected a number less than 1",
    ),
    ("explain.explainers.lime.median_filter", "4", "median_filter: must be odd or 0, found 4"),
    ("output", "''", "output: expected text of at least 1 character, found ''"),
    ("name", "a b", "name: expected text that matches ^[A-Za-z0-9]"),
    # families by their short names
    (
        "explain.explainers.lime.superpixels",
        "slick",
        "explain.explainers.0.superpixels.name: expected one of quickshift, slic, felzenszwalb, "
        "watershed, grid, found 'slick'; did you mean slic?",
    ),
    (
        "explain.explainers.lime.superpixels",
        "{name: slic, n_segment: 9}",
        "explain.explainers.0.superpixels.n_segment: not a setting of slic; did you mean "
        "n_segments?",
    ),
    # names that are not there
    ("explain.trials", "som", "explain.trials: expected 'best' or 'all', found 'som'"),
    (
        "backbones.0.name",
        "resnt18",
        "backbones.0.name: resnt18: timm has no such backbone; did you mean ",
    ),
    ("backbones.0.name", "vgg16.nope", "'nope'; choose tv_in1k"),
    (
        "explain.explainers.0.name",
        "limee",
        f"explain.explainers.0.name: expected one of {KINDS}, found 'limee'; did you mean lime?",
    ),
    (
        "explain.explainers.0",
        "{n_samples: 10}",
        f"explain.explainers.0.name: required, and not there; choose {KINDS}",
    ),
    (
        "data.name",
        "covid",
        f"data.name: expected one of {DATA}, found 'covid'; did you mean covid_qu_ex?",
    ),
    (
        "data",
        "{root: x}",
        "data.name: required, and not there; choose chexlocalize, covid_qu_ex, folder, phantom",
    ),
    (
        "data",
        "phantom",
        f"data: expected keys and values, name: one of {DATA} among them, found 'phantom'",
    ),
    (
        "explain.target",
        "Covid",
        f"explain.target: {TARGETS}, found 'Covid'",
    ),
    (
        "explain.explainers.2.target",
        "Sick",
        f"explain.explainers.2.target: {TARGETS}, found 'Sick'",
    ),
    (
        "data.classes",
        "[COVID-19]",
        "data.classes: expected at least two different classes, found ['COVID-19']",
    ),
    (
        "data.classes",
        "[COVID-19, Flu]",
        "data.classes: expected names among COVID-19, Non-COVID, Normal, found 'Flu'",
    ),
    (
        "explain.explainers.0.label",
        "grad_cam",
        "explain.explainers: give each its own label, found twice: grad_cam",
    ),
    ("backbones.1.name", "test_resnet", "backbones: each backbone once, found twice: test_resnet"),
    # what the search draws from
    (LR, "-1", f"{LR}: expected a number greater than 0, found -1"),
    (LR, "fast", f"{LR}: expected a number, found 'fast'"),
    (LR, ".inf", f"{LR}: expected a finite number, found inf"),
    (LR, "{low: 1, high: 0.1}", f"{LR}: low (1.0) must be below high (0.1)"),
    (
        LR,
        "{low: 0, high: 1, log: true}",
        f"{LR}: low must be above 0 on a logarithmic scale, found 0.0",
    ),
    (LR, "{low: -1, high: 1}", f"{LR}.low: expected a number greater than 0, found -1.0"),
    (LR, "{low: 1}", f"{LR}.high: required, and not there"),
    (LR, "{low: 1, high: 2, logg: true}", f"{LR}.logg: not a setting; did you mean log?"),
    (
        LR,
        "{lo: 1, hi: 2}",
        f"{LR}: expected a number, {DOMAIN}, found keys and values (lo, hi)",
    ),
    (LR, "{choices: []}", f"{LR}.choices: expected a list of at least 1, found an empty list"),
    (LR, "{choices: 3}", f"{LR}.choices: expected a list, found 3"),
    (LR, "{choices: [0.1, fast]}", f"{LR}.choices.1: expected a number, found 'fast'"),
    (
        "backbones.0.batch_size",
        "{choices: [8, 0]}",
        "batch_size.choices.1: expected a number of at least 1, found 0",
    ),
    (
        "backbones.0.batch_size",
        "{low: 1.5, high: 8}",
        "batch_size.low: expected a whole number, found 1.5",
    ),
    (
        "backbones.0.dropout",
        "{low: 0, high: 1}",
        "dropout.high: expected a number less than 1, found 1.0",
    ),
    # what would fail later
    (
        "backbones.0.weights",
        "gone.pth",
        "backbones.0.weights: expected hub, none or a file that exists, found 'gone.pth'",
    ),
    (
        "backbones.0",
        "{name: vit_tiny_patch16_224, input_size: 160, phases: [{epochs: 1, lr: 1}]}",
        "backbones.0.input_size: vit_tiny_patch16_224 takes 224 x 224 only, found 160",
    ),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_a_wrong_value_gets_path_expected_and_found(
    base: Path, key: str, value: str, said: str
) -> None:
    (problem,) = problems(base, (key, value))
    assert said in problem
    assert "input should" not in problem  # pydantic's words are not ours
    assert "tuple" not in problem


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    raw = yaml.safe_load(yaml.safe_dump(BASE))
    raw |= {"sed": 1, "seed": "x", "search": {"scheduler": "median"}}
    raw["data"]["rot"] = "y"
    raw["backbones"][0] |= {"weights": "gone.safetensors", "optimizer": "adamax"}
    raw["backbones"][0]["phases"].append({"unfreeze": "top", "epochs": 0, "lr": {"low": 2}})
    raw["backbones"][1]["name"] = "vgg17"
    raw["explain"]["explainers"][0]["n_sample"] = 5
    raw["explain"]["explainers"][3]["name"] = "center_prior"
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(raw))
    found = problems(path, ("backbones.resnet.lr", "1"), ("training.cpus_per_trial", "0"))
    assert sorted(p.partition(":")[0] for p in found) == [
        "backbones.0.optimizer",
        "backbones.0.phases.1.epochs",
        "backbones.0.phases.1.lr.high",
        "backbones.0.phases.1.unfreeze",
        "backbones.0.weights",
        "backbones.1.name",
        "backbones.resnet.lr",
        "data.rot",
        "explain.explainers.0.n_sample",
        "explain.explainers.3.name",
        "search.scheduler",
        "sed",
        "seed",
        "training.cpus_per_trial",
    ]


def test_wrong_classes_to_explain_are_reported_beside_other_mistakes(base: Path) -> None:
    found = problems(
        base, ("explain.target", "Flu"), ("explain.explainers.0.target", "flu"), ("seed", "x")
    )
    assert [p.partition(":")[0] for p in found] == [
        "seed",
        "explain.target",
        "explain.explainers.0.target",
    ]


@settings(max_examples=60, deadline=None)
@given(
    junk=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=6,
    ),
    key=st.sampled_from(["name", "data", "backbones", "explain", "search", "preprocess", "seed"]),
)
def test_whatever_stands_in_the_file_a_mistake_is_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, junk: Any, key: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.yaml"
    path.write_text(yaml.safe_dump({**BASE, key: junk}))
    found: tuple[str, ...] = ()
    try:
        load_config(path)
    except ConfigError as error:
        found = error.problems
    assert all(p.startswith(key) for p in found)
