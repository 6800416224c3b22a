"""What the explainers' tests share: phantoms, and tiny networks with answers that move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from neighbourhoods import Shares, tiles
from torch import nn

from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess
from raybench.models.backbones import backbone
from raybench.models.classifier import Classifier
from raybench.types import ChestXray, Gray

LAYERS = {"test_efficientnet": "blocks.4", "test_resnet": "layer4", "test_convnext": "stages.3"}

MakeClassifier = Callable[..., Classifier]


@pytest.fixture(scope="session")
def xray() -> ChestXray:
    """A phantom of 160 x 160: 27 superpixels when lung-masked, of which 7 hold a lit pixel."""
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=160)
    return data.load(data.records()[0])


@pytest.fixture(scope="session")
def masked(xray: ChestXray) -> Gray:
    return Preprocess().apply(xray)


@pytest.fixture(scope="session")
def make_classifier() -> MakeClassifier:
    def make(name: str = "test_efficientnet", size: tuple[int, int] = (64, 64)) -> Classifier:
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=3).eval()
        # A fresh head answers 1/3 to everything; a steeper one tells perturbed images apart.
        with torch.no_grad():
            net.get_classifier().weight.mul_(40)
        facts = backbone(name)
        return Classifier(net, size, facts.mean, facts.std, cam_layer=LAYERS[name])

    return make


@pytest.fixture
def five_regions(monkeypatch: pytest.MonkeyPatch) -> tuple[Gray, np.ndarray, nn.Module]:
    """A picture of six tiles, one of them black, that LIME takes for its superpixels."""
    labels = tiles(6).repeat(4, axis=0)
    image = (labels * 40).astype(np.uint8)  # tile 0 holds nothing
    monkeypatch.setattr(
        "raybench.explain.superpixels.Quickshift.segment", lambda self, image, lungs: labels
    )
    return image, labels, Shares(labels, 6).eval()
