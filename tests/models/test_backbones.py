"""The table of backbones against timm's own models, and what is derived for any other.

Models are built on torch's meta device: shapes and names without memory. About 3 seconds.
"""

from __future__ import annotations

from functools import cache

import pytest
import timm
import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.backbones import (
    backbone,
    check_backbone,
    known_backbones,
    module_at,
    trainable,
)

DERIVED = (
    "densenet169",
    "resnet18",
    "mobilenetv3_small_100",
    "maxvit_tiny_tf_224",
    "vit_tiny_patch16_224",
    "cait_xxs24_224",
    "vgg19",
)

STAGES = {
    "vgg16": ["features.5", "features.10", "features.17", "features.24"],
    "densenet121": [f"features.denseblock{n}.denselayer1.norm1" for n in (1, 2, 3, 4)],
    "densenet201": [f"features.denseblock{n}.denselayer1.norm1" for n in (1, 2, 3, 4)],
    "convnext_base": [f"stages.{n}.downsample.0" for n in (1, 2, 3)],
    "tf_efficientnet_lite0": [f"blocks.{n}.0.conv_pw" for n in (1, 2, 3, 5)],
    "resnet50": [f"layer{n}.0.conv1" for n in (1, 2, 3, 4)],
    "efficientnet_b0": [f"blocks.{n}.0.conv_pw" for n in (1, 2, 3, 5)],
    "swin_tiny_patch4_window7_224": [f"layers.{n}.downsample.norm" for n in (1, 2, 3)],
    "vit_small_patch16_224": [f"blocks.{n}.norm1" for n in (3, 6, 9)],
    "test_efficientnet": [
        "blocks.1.0.conv_exp",
        "blocks.2.0.conv_exp",
        "blocks.3.0.conv_pw",
        "blocks.4.0.conv_pw",
    ],
    "test_resnet": [f"layer{n}.0.conv1" for n in (1, 2, 3, 4)],
    "densenet169": [f"features.denseblock{n}.denselayer1.norm1" for n in (1, 2, 3, 4)],
    "resnet18": [f"layer{n}.0.conv1" for n in (1, 2, 3, 4)],
    "mobilenetv3_small_100": [
        "blocks.0.0.conv_dw",
        "blocks.1.0.conv_pw",
        "blocks.2.0.conv_pw",
        "blocks.4.0.conv_pw",
    ],
    "maxvit_tiny_tf_224": [
        "stages.0.blocks.0.conv.pre_norm",
        *(f"stages.{n}.blocks.0.conv.shortcut.expand" for n in (1, 2, 3)),
    ],
    "vit_tiny_patch16_224": [f"blocks.{n}.norm1" for n in (3, 6, 9)],
    "cait_xxs24_224": [f"blocks.{n}.gamma_1" for n in (6, 12, 18)],
    "vgg19": ["features.5", "features.10", "features.19", "features.28"],
    "densenet121.ra_in1k": [f"features.denseblock{n}.denselayer1.norm1" for n in (1, 2, 3, 4)],
}
"""The first layer with parameters of each stage behind the first, which a phase begins with."""


@cache
def meta(name: str) -> nn.Module:
    with torch.device("meta"):
        net = timm.create_model(backbone(name).timm_name, pretrained=False, num_classes=3)
    assert isinstance(net, nn.Module)
    return net


@pytest.mark.parametrize("name", [*known_backbones(), *DERIVED])
def test_facts_are_those_of_the_model(name: str) -> None:
    facts, net = backbone(name), meta(name)
    assert isinstance(module_at(net, facts.cam_layer), nn.Module)
    assert isinstance(module_at(net, facts.stage(1)), nn.Module)
    cfg = net.pretrained_cfg
    assert facts.input_size == tuple(cfg["input_size"][1:])
    assert (facts.mean, facts.std) == (tuple(cfg["mean"]), tuple(cfg["std"]))


@pytest.mark.parametrize("name", [*known_backbones(), *DERIVED])
def test_phases_are_nested(name: str) -> None:
    facts, net = backbone(name), meta(name)
    head, partial, full = (trainable(net, facts, u) for u in ("head", "partial", "full"))
    assert full == [n for n, _ in net.named_parameters()]
    assert set(head) < set(partial) < set(full)
    assert partial == full[-len(partial) :]
    # The head is exactly what timm calls the classifier: the parameters that have 3 outputs.
    assert {p.shape[0] for n, p in net.named_parameters() if n in head} == {3}
    assert [n for n, p in net.named_parameters() if p.shape[0] == 3 and n not in head] == []
    # The partial phase fine-tunes features, not only the classifier, but far from all of them.
    assert any(p.ndim > 1 for n, p in net.named_parameters() if n in set(partial) - set(head))


@pytest.mark.parametrize("name", STAGES)
def test_each_number_of_stages_begins_where_its_stage_begins(name: str) -> None:
    facts, net = backbone(name), meta(name)
    modules = {
        n.rpartition(".")[0] if n.endswith((".weight", ".bias")) else n: n
        for n, _ in reversed(list(net.named_parameters()))
    }
    found = [trainable(net, facts, depth) for depth in range(1, len(facts.stages) + 1)]
    assert [names[0] for names in found] == [modules[first] for first in STAGES[name][::-1]]
    assert trainable(net, facts, "partial") == found[0]
    everything = trainable(net, facts, "full")
    for fewer, more in zip(
        [trainable(net, facts, "head"), *found], [*found, everything], strict=True
    ):
        assert set(fewer) < set(more)
    # Whole stages: what is trained is all that comes after, in the model's order.
    assert all(names == everything[-len(names) :] for names in found)


def test_every_row_of_the_table_is_among_them() -> None:
    assert set(known_backbones()) | set(DERIVED) <= set(STAGES)


@pytest.mark.parametrize("name", ["convnext_base", "vit_tiny_patch16_224", "test_resnet"])
def test_too_many_stages_are_refused_with_what_there_is(name: str) -> None:
    facts, net = backbone(name), meta(name)
    most = len(facts.stages)
    for wrong in (0, most + 1, -1):
        with pytest.raises(
            ModelError, match=f"{name}: expected head, partial, full or 1 to {most} .* {wrong}$"
        ):
            trainable(net, facts, wrong)


def test_the_studys_backbones_have_the_published_sizes() -> None:
    # PROTOCOL.md 3, in millions; 1,000 classes. VGG16's is 138 by torchvision, 130 in the report.
    for name, millions in (("densenet121", 8), ("densenet201", 20), ("convnext_base", 89)):
        with torch.device("meta"):
            net = timm.create_model(backbone(name).timm_name)
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.7)


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(ModelError, match=r"densnet121: timm has no such backbone.*densenet121"):
        check_backbone("densnet121")
    with pytest.raises(ModelError) as error:
        backbone("vgg17")
    named = str(error.value).partition("did you mean ")[2].rstrip("?").split(", ")
    assert {"vgg16", "vgg19"} <= set(named)
    assert len(named) == len(set(named))
    with pytest.raises(ModelError, match="did you mean vgg16, densenet121"):
        check_backbone("zzzzzzzz")


def test_an_unknown_tag_gets_the_tags() -> None:
    with pytest.raises(ModelError, match=r"'in2k'; choose .*tv_in1k.*"):
        check_backbone("densenet121.in2k")
    check_backbone("densenet121.tv_in1k")
    check_backbone("vit_tiny_patch16_224")


def test_an_unknown_layer_gets_those_beside_it() -> None:
    with pytest.raises(ModelError, match=r"no layer 'layer5' in 'layer5'.*layer4"):
        module_at(meta("test_resnet"), "layer5")
    with pytest.raises(ModelError, match=r"no layer '7' in 'layer4.7'; there are: 0"):
        module_at(meta("test_resnet"), "layer4.7")
