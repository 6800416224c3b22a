"""A network's own features, by which images are near to each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from raybench.errors import ModelError
from raybench.models.ensemble import Ensemble

Reader = Callable[[torch.Tensor], torch.Tensor]
"""Normalised float `[N, 3, H, W]` to features `[N, d]`."""


def feature_reader(net: nn.Module) -> Reader:
    """What reads the features before a network's classifier.

    Those of an ensemble are its members', each brought to length 1, side by side. So every member
    has one voice, however many features it has and however large they are.

    Raises:
        ModelError: the network is not one of timm's, which say where their classifier begins.
    """
    if isinstance(net, Ensemble):
        each = [(member.inputs, feature_reader(member.net)) for member in net]

        def side_by_side(batch: torch.Tensor) -> torch.Tensor:
            found = [read(inputs(batch)).float() for inputs, read in each]
            return torch.cat([functional.normalize(features) for features in found], dim=1)

        return side_by_side
    return _of_timm(net)


def _of_timm(net: Any) -> Reader:
    if not (hasattr(net, "forward_features") and hasattr(net, "forward_head")):
        raise ModelError(
            f"expected a network with timm's forward_features and forward_head to read "
            f"features from, found {type(net).__name__}; take `embedding: pixels`"
        )

    def features(batch: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = net.forward_head(net.forward_features(batch), pre_logits=True)
        return found.flatten(1)

    return features
