"""Six families of backbones, small and randomly initialised, for the explainers' tests."""

from __future__ import annotations

import timm
import torch
from timm.models.densenet import DenseNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vgg import VGG
from torch import nn

from raybench.models.backbones import backbone
from raybench.models.classifier import Classifier

FAMILIES = ("vgg16", "densenet121", "test_convnext", "test_efficientnet", "swin", "test_vit")
FIXED = ("swin", "test_vit")
"""Those that take one input size only."""

_NAMES = {"swin": "swin_tiny_patch4_window7_224"}

# Three poolings: a head of 7 x 7 then gets what it needs from 64 x 64.
_VGG = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 16, 16, 16, 32, 32, 32]


def _net(family: str) -> nn.Module:
    if family == "vgg16":
        return VGG(_VGG, num_classes=3, mlp_ratio=0.01)
    if family == "swin":
        return SwinTransformer(
            img_size=64,
            embed_dim=16,
            depths=(1, 1, 1, 1),
            num_heads=(1, 2, 2, 4),
            window_size=4,
            num_classes=3,
        )
    if family == "test_vit":
        return timm.create_model(family, num_classes=3, img_size=64)
    if family == "densenet121":
        return DenseNet(growth_rate=12, block_config=(2, 2, 2, 2), num_classes=3)
    return timm.create_model(family, num_classes=3)


def awake(net: nn.Module) -> nn.Module:
    """The network, a ConvNeXt's blocks doing something: they begin with a weight of 1e-6."""
    with torch.no_grad():
        for module in net.modules():
            gamma = getattr(module, "gamma", None)
            if isinstance(gamma, nn.Parameter):
                gamma.fill_(0.5)
    return net


def classifier_of(family: str, size: tuple[int, int] = (64, 64)) -> Classifier:
    """A classifier of three classes whose answers move."""
    torch.manual_seed(0)
    net = awake(_net(family)).eval()
    with torch.no_grad():
        for module in net.modules():  # from timm's own start a VGG says only its bias
            if isinstance(module, nn.Conv2d | nn.Linear) and family == "vgg16":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        net.get_classifier().weight.mul_(10)
    facts = backbone(_NAMES.get(family, family))
    layer = "features.28" if family == "vgg16" else facts.cam_layer
    return Classifier(net, size, facts.mean, facts.std, cam_layer=layer)
