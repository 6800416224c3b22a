"""The sweep file: every mistake at once, each with its path, and in words. About 3 seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.config import SweepConfig, load_config
from raybench.data import CovidQuEx
from raybench.errors import ConfigError
from raybench.settings import Choice, Range

REPO = Path(__file__).resolve().parents[1]
SWEEPS = sorted((REPO / "sweeps").glob("*.yaml"))

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


@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: str(p.name))
def test_every_sweep_of_the_repository_is_valid(path: Path) -> None:
    config = load_config(path)
    assert path.read_text().startswith("#")
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config
    assert SweepConfig.model_validate(
        yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    )


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


KINDS = "lime, grad_cam, whole_lung, centre_prior, random_superpixels"
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
    ("explain.explainers.lime.kernel_width", "0", "expected a number greater than 0, found 0"),
    (
        "explain.explainers.lime.threshold",
        "1",
        "explain.explainers.0.threshold: expected a number less than 1",
    ),
    ("explain.explainers.lime.median_filter", "4", "median_filter: must be odd or 0, found 4"),
    ("output", "''", "output: expected text of at least 1 character, found ''"),
    ("name", "a b", "name: expected text that matches ^[A-Za-z0-9]"),
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
        "data.name: expected one of covid_qu_ex, folder, phantom, found 'covid'; did you mean covid_qu_ex?",
    ),
    (
        "data",
        "{root: x}",
        "data.name: required, and not there; choose covid_qu_ex, folder, phantom",
    ),
    (
        "data",
        "phantom",
        "data: expected keys and values, name: one of covid_qu_ex, folder, phantom among them, found 'phantom'",
    ),
    (
        "explain.target",
        "Covid",
        "explain.target: expected one of predicted, true, COVID-19, Non-COVID, Normal, found 'Covid'",
    ),
    (
        "explain.explainers.2.target",
        "Sick",
        "explain.explainers.2.target: expected one of predicted, true, COVID-19, Non-COVID, Normal, found 'Sick'",
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
        f"{LR}: expected a number, {{low: ..., high: ...}} or {{choices: [...]}}, found keys and values (lo, hi)",
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
    raw |= {"sed": 1, "seed": "x", "search": {"scheduler": "hyperband"}}
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


FILES = [
    ("a: [1, 2\nb: 3\n", "expected a YAML file; line 2, column 2: "),
    ("a: b: c\n", "expected a YAML file; line 1, column 5: "),
    ("\tname: x\n", "expected a YAML file; line 1, column 1: "),
    ("name: x\nseed: 1\nname: y\n", "line 3, column 1: the key 'name' stands here for the second"),
    ("- name: x\n", "expected keys and values, found a list"),
    ("only text", "expected keys and values, found 'only text'"),
    ("", "expected keys and values, found nothing"),
    ("name: !!python/name:os.system x", "line 1, column 7: could not determine a constructor"),
]


@pytest.mark.parametrize(
    ("text", "said"), FILES, ids=[t.splitlines()[0] if t else "-" for t, _ in FILES]
)
def test_what_is_no_sweep_file_is_refused_by_its_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}: ")
    assert said in problem


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    assert str(binary) in problems(binary)[0]
    assert f"{tmp_path}: expected a YAML file; it cannot be read" in problems(tmp_path)[0]


def test_a_missing_file_names_those_that_are_there(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problems(base.parent / "smal.yaml") == [
        f"{base.parent / 'smal.yaml'}: no such sweep file; there are: {base}"
    ]
    monkeypatch.chdir(REPO)
    (problem,) = problems(Path("cxr.yaml"))
    assert problem.startswith("cxr.yaml: no such sweep file; there are: ")
    assert "sweeps/cxr.yaml" in problem


def test_overrides_by_number_name_and_label(base: Path) -> None:
    config = load_config(
        base,
        [
            ("seed", "3"),
            ("search.trials_per_backbone", "2"),
            ("backbones.1.batch_size", "8"),
            ("backbones.test_resnet.phases.0.lr", "{low: 1e-5, high: 1e-3, log: true}"),
            ("explain.explainers.lime.superpixels.ratio", "0.4"),
            ("explain.explainers.grad_cam.threshold", "0.6"),
            ("explain.explainers.cam_covid.layer", "layer3"),
            ("explain.explainers.3", "{name: whole_lung}"),
            ("data.classes", "[COVID-19, Normal]"),
        ],
    )
    assert (config.seed, config.search.trials_per_backbone) == (3, 2)
    assert config.backbones[1].batch_size == 8
    assert config.backbones[0].phases[0].lr == Range(low=1e-5, high=1e-3, log=True)
    lime, covid, cam, lung = (e.model_dump() for e in config.explain.explainers)
    assert lime["superpixels"]["ratio"] == 0.4
    # The one called so in the results is meant, not the first of its kind.
    assert (cam["threshold"], covid["threshold"], covid["layer"]) == (0.6, 0.5, "layer3")
    assert lung["name"] == "whole_lung"
    assert config.data.classes == ("COVID-19", "Normal")


def test_numbers_written_as_yaml_takes_for_text_are_numbers(base: Path) -> None:
    config = load_config(
        base, [(LR, "{choices: [1e-3, 1e-4]}"), ("backbones.1.phases.0.lr", "1e-5")]
    )
    assert config.backbones[0].phases[0].lr == Choice(choices=(0.001, 0.0001))
    assert config.backbones[1].phases[0].lr == 1e-5


def test_parts_of_a_default_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "short.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in BASE.items() if k != "explain"} | {"explain": None})
    )
    config = load_config(
        path, [("explain.explainers.lime.n_samples", "20"), ("training.augment.rotation", "0")]
    )
    assert [e.title for e in config.explain.explainers] == KINDS.split(", ")
    assert config.explain.explainers[0].n_forward_planned() == 20
    assert config.training.augment.flip


BAD_PATHS = [
    (
        "explain.explainers.limee.n_samples",
        "explain.explainers has no 'limee'; choose lime, cam_covid, grad_cam, centre_prior, or 0 to 3",
    ),
    ("explain.explainers.4.n_samples", "explain.explainers has no '4'; choose lime, "),
    ("backbones.x", "backbones has no 'x'; choose test_resnet, vgg16, or 0 to 1"),
    ("data.root.x", "data.root is data/cxr, which has no keys"),
    ("data.root.x.y", "data.root is data/cxr, which has no keys"),
]


@pytest.mark.parametrize(("key", "said"), BAD_PATHS, ids=[k for k, _ in BAD_PATHS])
def test_an_override_that_leads_nowhere_is_refused(base: Path, key: str, said: str) -> None:
    (problem,) = problems(base, (key, "1"))
    assert problem.startswith(f"{key}: {said}")


def test_the_digest_names_what_is_computed(base: Path) -> None:
    plain = load_config(base)
    assert len(plain.digest) == 16
    assert load_config(base).digest == plain.digest
    for key, value in (
        ("output", "elsewhere"),
        ("execution.mode", "local"),
        ("execution.workers", "3"),
        ("tracking.uri", "http://127.0.0.1:5000"),
        ("tracking.live", "false"),
    ):
        assert load_config(base, [(key, value)]).digest == plain.digest, key
    others = [
        load_config(base, [(key, value)]).digest
        for key, value in (
            ("seed", "1"),
            ("backbones.0.phases.0.lr", "2e-3"),
            ("explain.explainers.lime.seed", "1"),
            ("data.root", "data/other"),
            ("preprocess.clahe", "true"),
        )
    ]
    assert len({plain.digest, *others}) == 6


def test_located_paths_are_absolute(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").write_bytes(b"")
    config = load_config(base, [("backbones.0.weights", "w.safetensors")]).located()
    assert isinstance(config.data, CovidQuEx)
    assert config.data.root == str(tmp_path / "data" / "cxr")
    assert [r.weights for r in config.backbones] == [str(tmp_path / "w.safetensors"), "hub"]
    assert config.located() == config
    bucket = load_config(base, [("data.root", "s3://bucket/data")]).located()
    assert isinstance(bucket.data, CovidQuEx)
    assert bucket.data.root == "s3://bucket/data"


def test_the_configuration_is_frozen(base: Path) -> None:
    config = load_config(base)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
    assert config.run_folder == "runs/small"


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
    try:
        assert load_config(path).name
    except ConfigError as error:
        assert all(p.startswith(key) for p in error.problems)
