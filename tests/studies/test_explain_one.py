"""One X-ray by several explainers: the maps and scores are the explainers' own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from raybench.data.preprocess import Preprocess
from raybench.errors import BadImageError, DataError, ExplainError, StorageError
from raybench.explain import GradCam, Grid, Lime, WholeLung
from raybench.models.checkpoint import load_checkpoint
from raybench.report.style import png
from raybench.scoring.binarise import binarise
from raybench.scoring.overlap import iou
from raybench.studies.explain_one import (
    Opened,
    explain_one,
    open_checkpoint,
    read_xray,
)
from raybench.studies.practice import PRACTICE, practice_checkpoint, practice_xray

EXPLAINERS = (Lime(n_samples=40, superpixels=Grid(cells=4)), GradCam(), WholeLung())


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a classifier that has hardly learned anything."""
    phases = ({"unfreeze": "full", "epochs": 1, "lr": 1e-3},)
    recipe = PRACTICE.model_validate(PRACTICE.model_dump() | {"phases": phases, "input_size": 64})
    data = practice_checkpoint(n_train=2, recipe=recipe)
    found = tmp_path_factory.mktemp("practice") / "t0000.safetensors"
    found.write_bytes(data)
    card = load_checkpoint(data, "x")[1]
    assert (card.input_size, card.preprocess["lung_masking"]) == ((64, 64), True)
    return found


@pytest.fixture(scope="module")
def opened(path: Path) -> Opened:
    return open_checkpoint(str(path))


def test_maps_and_scores_are_those_of_the_explainers(opened: Opened) -> None:
    xray = practice_xray(2)
    found = explain_one(opened, xray, EXPLAINERS, target="Normal")
    seen = Preprocess().apply(xray)
    np.testing.assert_array_equal(found.seen, seen)
    table = found.table()
    assert list(table.index) == ["lime", "grad_cam", "whole_lung"]
    for explainer, one in zip(EXPLAINERS, found.each, strict=True):
        own = explainer.attribute(opened.model, seen, 2, xray.lung_mask)
        np.testing.assert_array_equal(one.map.values, own.values)
        assert xray.infection_mask is not None
        expected = iou(binarise(own.values, 0.5), xray.infection_mask)
        assert table.iou[explainer.title] == pytest.approx(expected)
        assert table.forward_passes[explainer.title] == own.n_forward
    picture = found.picture()
    titles = [ax.get_title() for ax in picture.axes]
    assert titles == ["X-ray", "lime", "grad_cam", "whole_lung"]
    assert "Normal" in picture.get_suptitle()
    assert png(picture).startswith(b"\x89PNG")
    weights = found.weights("lime")
    assert f"from {table.forward_passes['lime']} forward passes" in weights.get_suptitle()
    assert len(weights.axes[0].texts) == 10
    with pytest.raises(ExplainError, match="one of lime, found 'grad_cam'"):
        found.weights("grad_cam")


def test_the_likeliest_class_is_explained_where_none_is_named(opened: Opened) -> None:
    xray = practice_xray(3)
    likely = opened.probabilities(xray)
    assert likely.sum() == pytest.approx(1, abs=1e-6)
    named = [WholeLung(label=f"lungs_{i}") for i in range(5)]
    found = explain_one(opened, xray, named)
    assert found.target == likely.idxmax()
    titles = [ax.get_title() for ax in found.picture().axes]
    assert titles.count("as the model sees it") == 3, "two rows of four, the last one filled up"


def test_an_xray_of_ones_own(tmp_path: Path, opened: Opened) -> None:
    xray = practice_xray(1)
    assert xray.lung_mask is not None
    cv2.imwrite(str(tmp_path / "mine.png"), xray.image)
    cv2.imwrite(str(tmp_path / "lungs.png"), xray.lung_mask.astype(np.uint8) * 255)
    image = str(tmp_path / "mine.png")
    mine = read_xray(image, str(tmp_path / "lungs.png"))
    np.testing.assert_array_equal(mine.image, xray.image)
    np.testing.assert_array_equal(mine.lung_mask, xray.lung_mask)
    found = explain_one(opened, mine, [WholeLung()])
    assert list(found.table().columns) == ["forward_passes", "seconds"], "no infection to score by"
    assert png(found.picture()).startswith(b"\x89PNG")
    with pytest.raises(DataError, match="expected a lung mask"):
        explain_one(opened, read_xray(image), [WholeLung()])
    with pytest.raises(BadImageError):
        read_xray(image, image)
    with pytest.raises(BadImageError, match="No such file"):
        read_xray(str(tmp_path / "none.png"))


def test_what_cannot_be_explained_is_named(opened: Opened) -> None:
    xray = practice_xray(1)
    with pytest.raises(ExplainError, match="expected one of COVID-19, Non-COVID, Normal, found 'x"):
        explain_one(opened, xray, EXPLAINERS, target="x")
    with pytest.raises(ExplainError, match=r"title of its own.*grad_cam.*label"):
        explain_one(opened, xray, [GradCam(), GradCam()])
    with pytest.raises(StorageError):
        open_checkpoint("nowhere/t0000.safetensors")
