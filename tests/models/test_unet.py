"""U-Nets: what phases train, whose weights the encoder has, what a checkpoint is taken for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from raybench.errors import ModelError
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, load_checkpoint, save_checkpoint
from raybench.models.unet import Segmenter, build_unet, check_unet, save_unet, unet_trainable

NAME = "test_resnet"
CARD = Card(NAME, ("COVID-19", "Normal"), (64, 64), {"lung_masking": False})


def test_a_phase_trains_the_decoder_a_last_stage_or_all() -> None:
    net, facts = build_unet(NAME), backbone(NAME)
    every = [name for name, _ in net.named_parameters()]
    assert unet_trainable(net, facts, "full") == every
    head = unet_trainable(net, facts, "head")
    assert {name.partition(".")[0] for name in head} == {"decoder", "segmentation_head"}
    partial = unet_trainable(net, facts, "partial")
    assert {n.split(".")[2] for n in partial if n.startswith("encoder")} == {"layer4"}
    assert set(head) < set(partial)
    assert {n.split(".")[2] for n in unet_trainable(net, facts, 2) if n.startswith("encoder")} == {
        "layer3",
        "layer4",
    }
    assert unet_trainable(net, facts, 1) == partial


def test_stages_are_found_where_timm_writes_them_one_level_down() -> None:
    with torch.device("meta"):
        net = build_unet("test_convnext")
    partial = unet_trainable(net, backbone("test_convnext"), "partial")
    assert {n.split(".")[2] for n in partial if n.startswith("encoder")} == {"stages_3"}


def test_weights_of_a_file_are_those_of_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model(NAME, num_classes=7).state_dict()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(theirs, path)
    ours = build_unet(NAME, str(path)).state_dict()
    inside = [n for n in theirs if f"encoder.model.{n}" in ours]
    assert len(inside) > 40
    assert all(torch.equal(theirs[n], ours[f"encoder.model.{n}"]) for n in inside)


def test_a_file_of_another_network_or_a_part_of_one_is_refused(tmp_path: Path) -> None:
    other, part = tmp_path / "other.safetensors", tmp_path / "part.safetensors"
    safetensors.torch.save_file(timm.create_model("test_efficientnet").state_dict(), other)
    state = timm.create_model(NAME).state_dict()
    some = {n: v for n, v in state.items() if not n.startswith("layer4")}
    safetensors.torch.save_file(some, part)
    for path in (other, part):
        with pytest.raises(ModelError, match="does not fit the encoder"):
            build_unet(NAME, str(path))
    with pytest.raises(ModelError, match="no weights file"):
        build_unet(NAME, str(tmp_path / "none.safetensors"))


def test_a_network_of_one_resolution_cannot_be_an_encoder() -> None:
    with pytest.raises(ModelError, match="cannot be the encoder of a U-Net"):
        check_unet("test_vit")


def test_a_checkpoint_gives_the_same_probabilities_and_is_no_classifier() -> None:
    torch.manual_seed(0)
    net = build_unet(NAME).eval()
    data = save_unet(net, CARD, "infection")
    segmenter = Segmenter(data)
    assert (segmenter.card.kind, segmenter.card.classes) == ("segmenter", ("infection",))
    image = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    found = segmenter.predict([image, np.repeat(np.repeat(image, 2, 0), 2, 1)])
    facts = backbone(NAME)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (facts.mean, facts.std))
    batch = (torch.from_numpy(image).float().expand(1, 3, 64, 64) / 255 - mean) / std
    with torch.no_grad():
        wanted = torch.sigmoid(net(batch))[0, 0].numpy()
    np.testing.assert_allclose(found, np.stack([wanted, wanted]), atol=1e-5)
    with pytest.raises(ModelError, match="expected the checkpoint of a classifier, found a segm"):
        load_checkpoint(data)


def test_a_classifiers_checkpoint_and_a_damaged_one_are_no_u_nets() -> None:
    data = save_checkpoint(build(NAME, 2), CARD)
    with pytest.raises(ModelError, match="expected the checkpoint of a segmenter, found a class"):
        Segmenter(data)
    unet = save_unet(build_unet(NAME), CARD, "lungs")
    with pytest.raises(ModelError, match="not a checkpoint that fits"):
        Segmenter(unet[: len(unet) // 2])
    other = Card("test_efficientnet", CARD.classes, CARD.input_size)
    with pytest.raises(ModelError, match="not a checkpoint that fits"):
        Segmenter(save_unet(build_unet(NAME), other, "lungs"))
