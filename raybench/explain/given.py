"""What an explainer is given, an image and a network: taken in, and handed back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from torch import nn

from raybench.errors import ExplainError
from raybench.models.classifier import Classifier
from raybench.types import Mask


def check_image(image: NDArray[np.uint8], lung_mask: Mask | None) -> None:
    """Refuse what is no X-ray, or no lung mask of it.

    Raises:
        ExplainError: the image is not uint8 `[H, W]`, or the mask not bool of the same shape.
    """
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ExplainError(f"expected a uint8 [H, W] image, got {image.dtype} {image.shape}")
    if lung_mask is not None and (lung_mask.dtype != bool or lung_mask.shape != image.shape):
        raise ExplainError(
            f"expected a bool lung mask of the image's shape {image.shape}, "
            f"got {lung_mask.dtype} {lung_mask.shape}"
        )


def wrap(net: nn.Module, shape: tuple[int, ...]) -> Classifier:
    """A `Classifier` around a bare module, by timm's record of it where it carries one.

    The module stays on its device.
    """
    cfg = getattr(net, "pretrained_cfg", None) or {}
    mean = cfg.get("mean", (0.485, 0.456, 0.406))
    std = cfg.get("std", (0.229, 0.224, 0.225))
    first = next(net.parameters(), None)
    device = "cpu" if first is None else str(first.device)
    return Classifier(net, (shape[0], shape[1]), mean, std, device=device)


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients inside; all of it as it was found afterwards."""
    modes = [(module, module.training) for module in net.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    net.eval()
    for parameter, _, _ in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
