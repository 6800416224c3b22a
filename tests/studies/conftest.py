"""The classifier that stages are tried on."""

from __future__ import annotations

import pytest
import torch

from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint() -> bytes:
    """A small network that has learned nothing, but is sure of what it says."""
    torch.manual_seed(0)
    net = build("test_resnet", 3)
    with torch.no_grad():
        net.get_classifier().weight.mul_(40)
    return save_checkpoint(net, Card("test_resnet", ("a", "b", "c"), (64, 64)))
