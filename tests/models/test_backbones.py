"""The table of backbones against timm's own models, and what is derived for any other.

Models are built on torch's meta device: shapes and names without memory. About 3 seconds.
"""

from __future__ import annotations

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

DERIVED = ("resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "vgg19")


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


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("vgg16", "features.24.weight"),
        ("densenet121", "features.denseblock4.denselayer1.norm1.weight"),
        ("densenet201", "features.denseblock4.denselayer1.norm1.weight"),
        ("densenet121.ra_in1k", "features.denseblock4.denselayer1.norm1.weight"),
        ("convnext_base", "stages.3.downsample.0.weight"),
        ("tf_efficientnet_lite0", "blocks.5.0.conv_pw.weight"),
        ("test_efficientnet", "blocks.4.0.conv_pw.weight"),
        ("test_resnet", "layer4.0.conv1.weight"),
        ("resnet18", "layer4.0.conv1.weight"),
        ("swin_tiny_patch4_window7_224", "layers.3.downsample.norm.weight"),
        ("vit_tiny_patch16_224", "blocks.9.norm1.weight"),
        ("vgg19", "features.28.weight"),
    ],
)
def test_partial_begins_with_the_last_stage(name: str, first: str) -> None:
    assert trainable(meta(name), backbone(name), "partial")[0] == first


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
