"""The classifier: backbone and head, from weights or a checkpoint; uint8 in, probabilities out."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ModelError
from raybench.models.backbones import Backbone, backbone

_UNFIT = (
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    OSError,
)
"""What safetensors, torch and timm raise for a file that holds no weights, or other ones."""


@dataclass(frozen=True, slots=True)
class Card:
    """What a checkpoint says of itself; stored as JSON inside the safetensors file.

    Attributes:
        backbone: name in the table of backbones, or timm's.
        classes: in the order of the outputs.
        input_size: `(height, width)` that the classifier takes.
        preprocess: the settings that its training images went through.
        scores: figures on Val of the epoch that was kept.
    """

    backbone: str
    classes: tuple[str, ...]
    input_size: tuple[int, int]
    preprocess: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)


def build(name: str, n_classes: int, weights: str = "none", dropout: float = 0.0) -> nn.Module:
    """A timm model with a fresh head.

    Args:
        weights: `none` (random, from torch's seed), `hub` (the tag in the table or in the name),
            or the path of a file with timm's parameter names (safetensors, or a state dict that
            `torch.load(weights_only=True)` takes).

    Raises:
        ModelError: the hub cannot be reached, the file is missing or its shapes do not fit.
    """
    facts = backbone(name)
    options: dict[str, Any] = {"num_classes": n_classes, "drop_rate": dropout}
    if weights == "none":
        return _module(timm.create_model(facts.timm_name, pretrained=False, **options))
    if weights == "hub":
        return _fresh_head(_from_hub(facts, options), facts)
    if not Path(weights).is_file():
        raise ModelError(f"{name}: no weights file {weights!r}; give a file, `hub` or `none`")
    try:
        return _fresh_head(_from_file(facts, options, weights), facts)
    except _UNFIT as error:
        raise ModelError(
            f"{name}: {weights} does not fit ({_brief(error)}); give weights made for "
            f"{facts.timm_name}"
        ) from error


def _from_file(facts: Backbone, options: dict[str, Any], weights: str) -> nn.Module:
    """timm leaves what a file does not hold as it was drawn, and says so in its log only."""
    with torch.random.fork_rng(devices=[]):
        drawn = _module(timm.create_model(facts.timm_name, pretrained=False, **options))
    net = _module(
        timm.create_model(
            facts.timm_name,
            pretrained=True,
            pretrained_cfg_overlay={"file": weights},
            **options,
        )
    )
    before = dict(drawn.named_parameters())
    body = [
        (name, parameter)
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1 and not name.startswith(tuple(f"{h}." for h in facts.head))
    ]
    missing = [name for name, parameter in body if torch.equal(parameter, before[name])]
    if missing:
        raise ValueError(f"it lacks {len(missing)} of {len(body)} weights: {missing[0]}, ...")
    return net


def _from_hub(facts: Backbone, options: dict[str, Any]) -> nn.Module:
    try:
        return _module(timm.create_model(facts.timm_name, pretrained=True, **options))
    except Exception as error:  # the hub's client raises a dozen unrelated types when offline
        raise ModelError(
            f"{facts.name}: the weights {facts.timm_name} could not be fetched from the hub "
            f"({type(error).__name__}). With a network, try again; without one, download "
            f"timm/{facts.timm_name} elsewhere and set `weights: FILE.safetensors`, or train from "
            "scratch with `weights: none`."
        ) from error


def _fresh_head(net: nn.Module, facts: Backbone) -> nn.Module:
    """A head that starts out undecided: weights of deviation 0.01, no bias.

    timm draws the heads of its EfficientNets for a thousand classes; with three, their first
    logits are off by tens and fine-tuning spends its epochs on unlearning them.
    """
    for name in facts.head:
        head = net.get_submodule(name)
        if isinstance(head, nn.Linear):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
    return net


def _brief(error: Exception) -> str:
    """One line: torch lists every tensor that does not fit."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]}..."


def _module(net: Any) -> nn.Module:
    if not isinstance(net, nn.Module):
        raise ModelError(f"timm returned a {type(net).__name__}, not a module")
    return net


def save_checkpoint(net: nn.Module, card: Card) -> bytes:
    """Parameters and card as one safetensors file."""
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    return bytes(safetensors.torch.save(state, metadata={"raybench": json.dumps(asdict(card))}))


def read_card(path: str) -> Card:
    """The card of a checkpoint file.

    Raises:
        ModelError: the file is no checkpoint of raybench.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _parse_card(file.metadata(), path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: no checkpoint of raybench ({error})") from error


def _parse_card(metadata: dict[str, str] | None, where: str) -> Card:
    if not metadata or "raybench" not in metadata:
        raise ModelError(f"{where}: no checkpoint of raybench (it carries no card)")
    try:
        raw = json.loads(metadata["raybench"])
        tuples = {"classes": tuple(raw["classes"]), "input_size": tuple(raw["input_size"])}
        return Card(**(raw | tuples))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{where}: its card is not one of this raybench ({error!r})") from error


def load_checkpoint(data: bytes, where: str = "checkpoint") -> tuple[nn.Module, Card]:
    """The classifier that `save_checkpoint` wrote, in evaluation mode.

    Raises:
        ModelError: not a checkpoint of raybench, or its shapes do not fit its backbone.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = dict(json.loads(data[8 : 8 + length]))
        card = _parse_card(header.get("__metadata__"), where)
        net = build(card.backbone, len(card.classes))
        net.load_state_dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{where}: not a checkpoint that fits ({_brief(error)})") from error
    return net.eval(), card


class Classifier:
    """A classifier as the explainers use it: uint8 X-rays in, class probabilities out.

    Args:
        net: any torch classifier that takes float `[N, 3, H, W]` and returns logits `[N, C]`.
        input_size: `(height, width)` that it takes.
        mean, std: normalisation of RGB in [0, 1] that it was trained with.
        classes: names of its outputs, or empty.
        cam_layer: dotted path of the layer that Grad-CAM reads, or None.
        device: where it runs.
        batch_size: images a forward pass.
    """

    def __init__(
        self,
        net: nn.Module,
        input_size: tuple[int, int],
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        classes: Sequence[str] = (),
        cam_layer: str | None = None,
        device: str = "cpu",
        batch_size: int = 16,
    ) -> None:
        self.net = net.to(device)
        self.batch_size = batch_size
        self.input_size = input_size
        self.classes = tuple(classes)
        self.cam_layer = cam_layer
        self.identity: str | None = None
        self.device = torch.device(device)
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1) * 255.0
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1) * 255.0

    @classmethod
    def from_checkpoint(
        cls, data: bytes, device: str = "cpu", batch_size: int = 16, where: str = "checkpoint"
    ) -> Classifier:
        """Load a checkpoint; channels-last, which CPUs and GPUs convolve fastest."""
        net, card = load_checkpoint(data, where)
        facts = backbone(card.backbone)
        net = net.to(memory_format=torch.channels_last)
        found = cls(
            net,
            card.input_size,
            facts.mean,
            facts.std,
            card.classes,
            facts.cam_layer,
            device,
            batch_size,
        )
        found.identity = hashlib.sha256(data).hexdigest()
        return found

    def prepare(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 `[N, h, w]` or `[N, h, w, 3]`, any size, to normalised float `[N, 3, H, W]`."""
        if images.shape[1:3] != self.input_size:
            images = np.stack([resize_gray(image, self.input_size) for image in images])
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        batch = batch.unsqueeze(1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        normalised = (batch.float().expand(-1, 3, -1, -1) - self._mean) / self._std
        return normalised.contiguous(memory_format=torch.channels_last)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 `[N, C]`, of uint8 `[N, h, w]` or `[N, h, w, 3]`.

        The mode of the model and of each module in it is left as it was found.
        """
        modes = [(module, module.training) for module in self.net.modules()]
        self.net.eval()
        try:
            with torch.inference_mode():
                parts = [
                    torch.softmax(self.net(self.prepare(images[i : i + self.batch_size])), dim=1)
                    for i in range(0, len(images), self.batch_size)
                ]
        finally:
            for module, training in modes:
                module.training = training
        return torch.cat(parts).float().cpu().numpy()
