"""Bad input gets one clear error, and nothing is started."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from raybench.data import Phantom
from raybench.data.phantom import write_phantoms
from raybench.storage import Storage
from raybench.sweep import main


def _config(root: Path, output: Path) -> dict:
    phases = [{"unfreeze": "full", "epochs": 1, "lr": 1e-3}]
    return {
        "name": "bad",
        "output": str(output),
        "data": {"name": "covid_qu_ex", "root": str(root)},
        "backbones": [{"name": "test_efficientnet", "weights": "none", "phases": phases}],
        "explain": {"explainers": [{"name": "lime"}, {"name": "whole_lung"}]},
    }


def _folder(root: Path, split: str, cls: str, kind: str) -> Path:
    base = root / "Infection Segmentation Data" / "Infection Segmentation Data"
    return base / split / cls / kind


def _one(root: Path, split: str, cls: str, kind: str) -> Path:
    return sorted(_folder(root, split, cls, kind).glob("*.png"))[0]


def _closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _missing_root(root: Path, config: dict) -> None:
    config["data"]["root"] = str(root / "nowhere")


def _empty_class(root: Path, config: dict) -> None:
    for path in _folder(root, "Val", "Normal", "images").glob("*"):
        path.unlink()


def _broken_image(root: Path, config: dict) -> None:
    _one(root, "Train", "Normal", "images").write_bytes(b"no picture")


def _other_size(root: Path, config: dict) -> None:
    mask = np.zeros((10, 12), np.uint8)
    cv2.imwrite(str(_one(root, "Test", "COVID-19", "infection masks")), mask)


def _not_binary(root: Path, config: dict) -> None:
    mask = np.full((96, 96), 7, np.uint8)
    cv2.imwrite(str(_one(root, "Val", "COVID-19", "lung masks")), mask)


def _no_infection(root: Path, config: dict) -> None:
    for path in _folder(root, "Test", "COVID-19", "infection masks").glob("*.png"):
        cv2.imwrite(str(path), np.zeros((96, 96), np.uint8))


def _unknown_backbone(root: Path, config: dict) -> None:
    config["backbones"][0]["name"] = "densnet121"


def _unknown_explainer(root: Path, config: dict) -> None:
    config["explain"]["explainers"][1]["name"] = "gradcam"


def _unknown_key(root: Path, config: dict) -> None:
    config["explain"]["explainers"][0]["n_sample"] = 10


def _out_of_range(root: Path, config: dict) -> None:
    config["backbones"][0]["phases"][0]["lr"] = -1


def _no_such_neighbours(root: Path, config: dict) -> None:
    fill = {"name": "neighbour", "among": "Healthy"}
    config["explain"]["explainers"][0]["fill"] = fill


def _no_such_layer_in_the_search(root: Path, config: dict) -> None:
    config["explain"]["explainers"].append({"name": "layer_cam", "layer": "blocks.9"})
    searched = {"layer": {"choices": ["blocks.3", "blocs.4"]}}
    config["explainer_search"] = {"explainers": {"layer_cam": searched}}


def _turns_without_a_surrogate(root: Path, config: dict) -> None:
    config["explain"]["explainers"].append({"name": "rise", "fill": "noise"})


def _no_lungs_for_whole_lung(root: Path, config: dict) -> None:
    base = root / "Infection Segmentation Data" / "Infection Segmentation Data"
    lines = ["image,label,split,infection_mask"]
    for image in sorted(base.glob("*/*/images/*.png")):
        split, cls = image.relative_to(base).parts[:2]
        mask = image.parents[1] / "infection masks" / image.name
        lines.append(f"{image.relative_to(root)},{cls},{split},{mask.relative_to(root)}")
    (root / "index.csv").write_text("\n".join(lines))
    config["data"] = {"name": "folder", "root": str(root), "infection_class": "COVID-19"}
    config["preprocess"] = {"lung_masking": False}


def _no_lungs_for_superpixels_to_rank(root: Path, config: dict) -> None:
    _no_lungs_for_whole_lung(root, config)
    config["explain"]["explainers"] = [{"name": "lime"}]
    config["scoring"] = {"threshold_rules": ["val", "top_k"], "superpixels": {"confine": True}}


def _unwritable(root: Path, config: dict) -> None:
    config["output"] = "/proc/raybench"


def _unreachable(root: Path, config: dict) -> None:
    config["tracking"] = {"uri": f"http://127.0.0.1:{_closed_port()}"}


def _hub_is_away(root: Path, config: dict) -> None:
    config["backbones"][0]["weights"] = "hub"


CASES: list[tuple[Callable[[Path, dict], None], list[str]]] = [
    (_missing_root, ["nowhere"]),
    (_empty_class, ["Val", "Normal"]),
    (_broken_image, ["Train", "Normal", "on_bad_image: skip"]),
    (_other_size, ["infection masks", "10", "12", "96"]),
    (_not_binary, ["lung masks", "7"]),
    (_no_infection, ["Test/COVID-19", "infection"]),
    (_unknown_backbone, ["densnet121", "densenet121"]),
    (_unknown_explainer, ["explain.explainers.1", "gradcam", "grad_cam"]),
    (_unknown_key, ["explain.explainers.0.n_sample", "did you mean n_samples?"]),
    (_out_of_range, ["backbones.0.phases.0.lr", "greater than 0", "-1"]),
    (
        _no_such_neighbours,
        ["explain.explainers.0.fill.among", "COVID-19, Non-COVID, Normal", "Healthy"],
    ),
    (
        _no_such_layer_in_the_search,
        [
            "explain.explainers.2.layer: test_efficientnet: no layer '9'",
            "explainer_search.explainers.layer_cam.layer",
            "'blocs'",
        ],
    ),
    (_no_lungs_for_whole_lung, ["explain.explainers.1: whole_lung needs lung masks and data has"]),
    (_no_lungs_for_superpixels_to_rank, ["scoring.superpixels: confine needs lung masks and data"]),
    (_turns_without_a_surrogate, ["explain.explainers.2.fill", "8 that take turns"]),
    (_unwritable, ["/proc/raybench"]),
    (_unreachable, ["127.0.0.1"]),
    (_hub_is_away, ["hub", "weights: none"]),
]


@pytest.mark.parametrize(("spoil", "words"), CASES, ids=[c[0].__name__[1:] for c in CASES])
def test_one_clear_error_and_nothing_started(
    spoil: Callable[[Path, dict], None],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root, output = tmp_path / "data", tmp_path / "runs"
    phantoms = Phantom(name="phantom", n_train=2, n_val=2, n_test=2, size=96)
    write_phantoms(phantoms, Storage(str(root)))
    config = _config(root, output)
    spoil(root, config)
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main([str(path)]) == 2
    said = capsys.readouterr().err
    message = said[said.index("raybench: ") :]
    for word in words:
        assert word in message, message
    assert "Traceback" not in said
    assert not (output / "bad").exists()
