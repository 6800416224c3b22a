"""The sweep file: reading it, overriding it, and what its digest and paths stand for.

The messages for wrong values have a file of their own. About 1 second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raybench.config import SweepConfig, load_config
from raybench.data import CovidQuEx
from raybench.data.preprocess import Preprocess
from raybench.errors import ConfigError
from raybench.settings import Choice, Range

REPO = Path(__file__).resolve().parents[1]
SWEEPS = sorted((REPO / "sweeps").glob("*.yaml"))

LR = "backbones.0.phases.0.lr"
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
    assert "cluster.yaml" not in problem


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
    assert [e.title for e in config.explain.explainers] == [
        "lime",
        "grad_cam",
        "whole_lung",
        "centre_prior",
        "random_superpixels",
    ]
    assert config.explain.explainers[0].n_forward_planned() == 20
    assert config.training.augment.flip


BAD_PATHS = [
    (
        "explain.explainers.limee.n_samples",
        "explain.explainers has no 'limee'; choose lime, cam_covid, grad_cam, centre_prior, or 0 ",
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
        ("training.cache", "elsewhere"),
        ("training.cache_gb", "1"),
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
            ("training.precision", "bfloat16"),
            ("backbones.0.balance", "sampler"),
        )
    ]
    assert len({plain.digest, *others}) == 8


def test_decoded_images_lie_below_the_output_folder_unless_told(base: Path) -> None:
    told = [("output", "out"), ("training.cache", "disk/images")]
    assert load_config(base, told[:1]).image_cache == str(Path("out/cache").absolute())
    assert load_config(base, told).image_cache == str(Path("disk/images").absolute())


def test_what_a_backbone_does_not_say_it_has_of_the_sweep(base: Path) -> None:
    config = load_config(
        base,
        [
            ("preprocess.clahe", "{choices: [true, false]}"),
            ("preprocess.lung_masking", "false"),
            ("training.augment.rotation", "{low: 0, high: 30}"),
            ("backbones.vgg16.preprocess.lung_masking", "{choices: [false, true]}"),
            ("backbones.vgg16.augment.flip", "false"),
        ],
    )
    first, second = config.recipes
    assert first.preprocess == config.preprocess
    assert first.augment.rotation == Range(low=0, high=30)
    assert second.preprocess.clahe is False  # its own preprocessing is its own throughout
    assert (second.augment.flip, second.augment.rotation) == (False, 10.0)
    assert config.base_preprocess == Preprocess(lung_masking=False, clahe=True)
    assert (config.masks_lungs, config.varies_preprocess) == (True, True)
    plain = load_config(base)
    assert (plain.masks_lungs, plain.varies_preprocess) == (True, False)
    off = load_config(base, [("preprocess.lung_masking", "false")])
    assert (off.masks_lungs, off.varies_preprocess) == (False, False)


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
