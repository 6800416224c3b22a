"""Networks with their normalisations folded into the convolutions before them."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.classifier import Classifier
from raybench.models.runtime import Runtime


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "tf_efficientnet_lite0", "densenet121"]
)
def test_a_folded_network_gives_the_same_answers_and_leaves_the_first_alone(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3)
    with torch.no_grad():  # statistics that a fresh network does not have
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = Classifier(net, (64, 64), runtime=Runtime(backend="folded", batch_size=4))
    plain = Classifier(net, (64, 64), runtime=Runtime(batch_size=4))
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64), dtype=np.uint8)
    np.testing.assert_allclose(folded.predict(images), plain.predict(images), atol=1e-5)
    assert folded.runtime.backend == "folded"
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_auto_folds_where_it_can_and_says_so() -> None:
    resnet = timm.create_model("test_resnet", num_classes=3)
    convnext = timm.create_model("test_convnext", num_classes=3)  # no batch normalisation
    auto = Runtime(backend="auto")
    assert Classifier(resnet, (64, 64), runtime=auto).runtime.backend == "folded"
    assert Classifier(convnext, (64, 64), runtime=auto).runtime.backend == "torch"
    with pytest.raises(ModelError, match=r"torch\.fx can trace.*choose auto or torch"):
        Classifier(convnext, (64, 64), runtime=Runtime(backend="folded"))


class _TwoWays(nn.Module):
    """A trace goes another way than a tensor does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sign = 1 if isinstance(x, torch.Tensor) else -1
        return sign * self.norm(self.conv(x)).mean((2, 3))


def test_a_trace_that_missed_a_turn_is_not_used() -> None:
    auto = Classifier(_TwoWays(), (8, 8), runtime=Runtime(backend="auto"))
    assert auto.runtime.backend == "torch"
