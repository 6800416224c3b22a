"""U-Nets: a timm encoder under segmentation-models-pytorch's decoder, its checkpoint, its masks.

Architecture: Ronneberger et al., U-Net, MICCAI 2015; the decoder is the library's default. The
parameters' names are the library's, so that a checkpoint's tensors fit its `Unet` as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch import nn

from raybench.errors import ModelError
from raybench.models.backbones import Backbone, backbone
from raybench.models.build import UNFIT, brief
from raybench.models.checkpoint import Card, read_parts, save_checkpoint
from raybench.models.inputs import Inputs

KIND: Literal["segmenter"] = "segmenter"
"""What the card of a U-Net's checkpoint calls it."""

_ENCODER = "encoder.model."


def build_unet(name: str, weights: str = "none") -> nn.Module:
    """A U-Net with one output, whose encoder is the timm model `name`.

    It takes normalised float `[N, 3, H, W]`, any size from 32, and gives logits `[N, 1, H, W]`.

    Args:
        weights: of the encoder: `none` (random, from torch's seed), `hub`, or the path of a file
            with timm's parameter names. The decoder is random.

    Raises:
        ModelError: timm has no such model or it cannot be an encoder, the hub cannot be reached,
            or the file is missing or does not fit.
    """
    check_unet(name)
    facts = backbone(name)
    if weights == "none":
        return _unet(facts)
    if weights == "hub":
        try:
            return _unet(facts, {})
        except Exception as error:  # the hub's client raises a dozen unrelated types when offline
            raise ModelError(
                f"{name}: the weights {facts.timm_name} could not be fetched from the hub "
                f"({type(error).__name__}). Set `weights: FILE.safetensors`, or train from scratch "
                "with `weights: none`."
            ) from error
    if not Path(weights).is_file():
        raise ModelError(f"{name}: no weights file {weights!r}; give a file, `hub` or `none`")
    try:
        return _from_file(facts, weights)
    except UNFIT as error:
        raise ModelError(
            f"{name}: {weights} does not fit the encoder ({brief(error)}); give weights made for "
            f"{facts.timm_name}"
        ) from error


def _unet(facts: Backbone, loaded: dict[str, Any] | None = None) -> nn.Module:
    """A U-Net; with `loaded` timm fetches the encoder's weights as these options say."""
    net: nn.Module = smp.Unet(
        f"tu-{facts.timm_name}",
        encoder_weights=None if loaded is None else True,
        in_channels=3,
        classes=1,
        **({} if loaded is None else {"pretrained_cfg_overlay": loaded} if loaded else {}),
    )
    return net


def _from_file(facts: Backbone, weights: str) -> nn.Module:
    """timm leaves what a file does not hold as it was drawn, and says so in its log only."""
    with torch.random.fork_rng(devices=[]):
        drawn = dict(_unet(facts).named_parameters())
    with _quiet("timm.models._builder"):  # it lists the head that an encoder has no use for
        net = _unet(facts, {"file": weights})
    body = [(n, p) for n, p in net.named_parameters() if n.startswith(_ENCODER) and p.ndim > 1]
    missing = [name for name, parameter in body if torch.equal(parameter, drawn[name])]
    if missing:
        first = missing[0].removeprefix(_ENCODER)
        raise ValueError(f"it lacks {len(missing)} of {len(body)} weights: {first}, ...")
    return net


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@lru_cache(maxsize=16)
def check_unet(name: str) -> None:
    """Raise `ModelError` where timm has no such model, or it gives a U-Net nothing to work with.

    A plain ViT has one resolution throughout, and cannot be the encoder of a U-Net.
    """
    facts = backbone(name)
    try:
        with torch.device("meta"):
            net = _unet(facts).eval()
            net(torch.empty(1, 3, 64, 64) if not facts.fixed_size else _empty(facts.input_size))
    except Exception as error:  # timm and the library raise whatever comes first
        raise ModelError(
            f"{name}: it cannot be the encoder of a U-Net ({brief(error)}); choose a network "
            "that halves its resolution stage by stage, such as resnet50 or tf_efficientnet_lite0"
        ) from error


def _empty(size: tuple[int, int]) -> torch.Tensor:
    return torch.empty(1, 3, *size)


def unet_trainable(net: nn.Module, facts: Backbone, unfreeze: str | int) -> list[str]:
    """Names of the parameters that a phase trains, in the network's order.

    Args:
        unfreeze: `head` (decoder and segmentation head), `partial` (the encoder's last stage and
            all after it), `full`, or the number of the encoder's last stages.

    Raises:
        ModelError: the encoder has fewer stages.
    """
    names = [name for name, _ in net.named_parameters()]
    if unfreeze == "head":
        return [n for n in names if not n.startswith("encoder.")]
    if unfreeze == "full":
        return names
    # An encoder may have its stages one level down: timm writes `stages_3` there for `stages.3`.
    start = _flat(facts.stage(1 if unfreeze == "partial" else int(unfreeze)))
    inside = [i for i, n in enumerate(names) if _flat(n).startswith(f"{_flat(_ENCODER)}{start}_")]
    if not inside:
        raise ModelError(f"{facts.name}: the U-Net's encoder has no parameters below {start!r}")
    return names[inside[0] :]


def _flat(name: str) -> str:
    return name.replace(".", "_")


def save_unet(net: nn.Module, card: Card, what: str) -> bytes:
    """A U-Net as one safetensors file that says of itself that it is one.

    Args:
        what: that it marks: its one class.
    """
    return save_checkpoint(net, replace(card, kind=KIND, classes=(what,)))


class Segmenter:
    """A trained U-Net: X-rays in, probabilities of its one class out, pixel by pixel.

    Args:
        checkpoint: as `save_unet` wrote it; nothing in it is executed.
        device: where it runs.

    Raises:
        ModelError: it is no U-Net's checkpoint, or a damaged one.
    """

    def __init__(self, checkpoint: bytes, device: str = "cpu", where: str = "checkpoint") -> None:
        self.card, tensors = read_parts(checkpoint, where, KIND)
        facts = backbone(self.card.backbone)
        net = build_unet(self.card.backbone)
        try:
            net.load_state_dict(tensors)
        except RuntimeError as error:
            raise ModelError(f"{where}: not a checkpoint that fits ({brief(error)})") from error
        at = torch.device(device)
        self._net = net.eval().to(at, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._inputs = Inputs(self.card.input_size, facts.mean, facts.std, at)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities of preprocessed X-rays.

        Args:
            images: uint8 `[h, w]` each, of any sizes, brought to the network's.

        Returns:
            float32 `[N, H, W]` in [0, 1], at the network's input size.
        """
        with torch.inference_mode():
            batch = torch.cat([self._inputs.prepare(image[None]) for image in images])
            batch = batch.contiguous(memory_format=torch.channels_last)
            return np.asarray(torch.sigmoid(self._net(batch))[:, 0].float().cpu().numpy())
