"""Classifiers of one data set explained on another's images. The whole sweep is slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from raybench.config import SweepConfig, load_config
from raybench.data import Phantom
from raybench.data.images import encode_png
from raybench.errors import ConfigError
from raybench.storage import Storage
from raybench.studies.plan import plan_lines
from raybench.studies.sweep_study import plan_sweep
from raybench.sweep import main


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Two phantoms of Val and two of Test in a folder, of classes with other names, no Train."""
    root = tmp_path / "other"
    phantoms = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=64, seed=5)
    storage, lines = Storage(str(root)), ["image,label,split,infection_mask"]
    names = {"COVID-19": "viral", "Normal": "well"}
    for record in phantoms.records():
        if record.split == "Train" or record.label not in names:
            continue
        xray = phantoms.load(record)
        assert xray.infection_mask is not None
        name = f"{record.split}_{names[record.label]}"
        storage.write(f"{name}.png", encode_png(xray.image))
        storage.write(f"{name}_mask.png", encode_png(xray.infection_mask))
        lines.append(f"{name}.png,{names[record.label]},{record.split},{name}_mask.png")
    storage.write("index.csv", "\n".join(lines).encode())
    return root


def sweep(tmp_path: Path, inner: dict[str, Any], **more: Any) -> Path:
    raw = {
        "name": "across",
        "output": str(tmp_path / "runs"),
        "data": {
            "name": "phantom",
            "n_train": 4,
            "n_val": 2,
            "n_test": 2,
            "size": 64,
            "explain": inner,
        },
        "preprocess": {"lung_masking": False},
        "backbones": [
            {
                "name": "test_efficientnet",
                "weights": "none",
                "input_size": 64,
                "phases": [{"unfreeze": "full", "epochs": 1, "lr": 1e-3}],
            }
        ],
        "search": {"trials_per_backbone": 1},
        "explain": {"target": "true", "explainers": [{"name": "grad_cam"}]},
        **more,
    }
    path = tmp_path / "across.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def folder(root: Path, **more: Any) -> dict[str, Any]:
    base = {"name": "folder", "root": str(root), "infection_class": "viral"}
    return base | {"class_map": {"viral": "COVID-19"}} | more


def test_the_plan_and_the_paths_know_of_both(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(sweep(tmp_path, folder(Path("other"))))
    assert SweepConfig.model_validate(config.model_dump(mode="json")) == config
    plan = plan_sweep(config)
    assert plan.explained == {"Val": 1, "Test": 1}
    assert plan.images["Train"] == {"COVID-19": 4, "Non-COVID": 4, "Normal": 4}
    assert any("1 viral images of data.explain (folder)" in line for line in plan_lines(plan))
    located = config.located().data.explain
    assert located is not None
    assert located.root == str(other)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_map": {}}, "data.explain.infection_class: 'viral' is no class of the classifier"),
        ({"class_map": {"viral": "Flu"}}, "data.explain.class_map.viral: no class 'Flu'"),
        ({"class_map": {"viral": "Normal", "ill": "Normal"}}, "class_map: no class 'ill'"),
    ],
)
def test_classes_without_counterparts_list_both_sides(
    other: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = load_config(sweep(tmp_path, folder(other, **change)))
    with pytest.raises(ConfigError) as caught:
        plan_sweep(config)
    (problem,) = caught.value.problems
    assert said in problem
    assert "classes are COVID-19, Non-COVID, Normal, this data set's viral, well" in problem


def test_what_is_refused_by_the_sweep_file_alone(other: Path, tmp_path: Path) -> None:
    nested = folder(other, explain=folder(other))
    with pytest.raises(ConfigError, match=r"data\.explain\.explain: not a setting of folder"):
        load_config(sweep(tmp_path, nested))
    localize = {"name": "chexlocalize", "root": str(other)}
    with pytest.raises(ConfigError, match="data: CheXlocalize has no Train split"):
        load_config(sweep(tmp_path, folder(other), data=localize))
    with pytest.raises(ConfigError, match=r"preprocess\.lung_masking: CheXlocalize has no lung"):
        load_config(sweep(tmp_path, localize, preprocess={"lung_masking": True}))
    masked = localize | {"lung_masks": str(other)}
    load_config(sweep(tmp_path, masked, preprocess={"lung_masking": True}))


@pytest.mark.slow
def test_trained_on_one_explained_on_the_other(other: Path, tmp_path: Path) -> None:
    assert main([str(sweep(tmp_path, folder(other)))]) == 0
    run = tmp_path / "runs" / "across"
    scores = pd.read_parquet(run / "scores.parquet")
    assert set(scores.image_id) == {"Val_viral.png", "Test_viral.png"}
    assert set(scores.label) == {"COVID-19"}
    assert scores.error.isna().all()
    assert scores.predicted.isin(["COVID-19", "Non-COVID", "Normal"]).all()
    predictions = pd.read_parquet(run / "predictions.parquet")
    assert not predictions.image_id.isin(scores.image_id).any()
