"""What the attributions of single pixels share: their settings, their input, and their memory."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from raybench.answers import digest
from raybench.data.preprocess import resize_gray
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape
from raybench.explain.given import untouched
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Arrays, AttributionMap, Gray, Question, Subject, Unit, Values

_LIBRARY = f"captum {version('captum')}"

_KEPT = 256 * 2**20
"""Bytes that a batch may keep for the way back; a single image may keep more."""

_TOGETHER = 8
"""Images differentiated together on a CPU, at most."""


class OfGrey(nn.Module):
    """A network as a function of the grey level: float `[N, 1, H, W]` in [0, 1] to logits.

    So black is 0, a share of the grey range is a share of 1, and a pixel has one attribution: the
    sum over the three channels that repeat it.
    """

    def __init__(self, net: nn.Module, normalise: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.net = net
        self._normalise = normalise

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        """Logits `[N, C]`."""
        logits: torch.Tensor = self.net(self._normalise(grey * 255.0))
        return logits


class PixelAttribution(Explainer):
    """What a target's logit owes to each pixel, at the classifier's input size.

    The input is the grey level from 0 (black) to 1, so the normalisation belongs to the model.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "blur": Choice(choices=(0.0, 0.01, 0.02, 0.05, 0.1))
    }

    looks_inside: ClassVar[bool] = True

    absolute: bool = Field(False, description="the size of each pixel's value without its sign")
    blur: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="deviation of a Gaussian filter on the map, as a share of its shorter side",
    )

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit an image; `absolute` and `blur` are applied to its answer, and ask nothing."""
        if done:
            return []
        told = f"{json.dumps(self._asked(), sort_keys=True)} {subject.target}"
        question = Question(digest(_LIBRARY, "pixels", told, subject.image), 0, len(subject.image))
        payload = {"image": subject.image, "target": subject.target}
        return [Unit("pixels", payload, n_forward=self.n_forward_planned(), question=question)]

    def _asked(self) -> dict[str, Any]:
        """The settings that decide the answer: not those that the others leave without effect."""
        told = self.model_dump(exclude=set(PixelAttribution.model_fields))
        idle = {k for k, (other, values) in self.search_if.items() if told[other] not in values}
        return {key: value for key, value in told.items() if key not in idle}

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """The signed map at the image's size, and beside it the class, `[h, 1]`.

        Raises:
            ExplainError: there is no such class, or the method cannot be applied to the network.
        """
        model = need_classifier(unit, classifier)
        image = unit.payload["image"]
        asked = resize_gray(image, model.input_size)
        with untouched(model.net), torch.enable_grad():
            values, target = self._attributed(model, asked, unit.payload["target"])
        found = values.detach().float().cpu().numpy()
        return {
            "map": to_shape(found, image.shape, smooth=True),
            "target": np.full((len(image), 1), target, dtype=np.int32),
        }

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The map at the ground truth's resolution."""
        import cv2

        values: Values = done["pixels"]["map"]
        if self.absolute:
            values = np.abs(values)
        if self.blur:
            deviation = self.blur * min(values.shape)
            values = np.asarray(cv2.GaussianBlur(values, (0, 0), deviation), dtype=np.float32)
        return AttributionMap(
            to_shape(values, subject.shape, smooth=True),
            int(done["pixels"]["target"].flat[0]),
            self.n_forward_planned(),
        )

    @abstractmethod
    def _attributed(
        self, model: Classifier, image: Gray, target: int | None
    ) -> tuple[torch.Tensor, int]:
        """Attributions `[H, W]` of an image at the input size, and the class."""


def grey_tensor(model: Classifier, image: Gray) -> torch.Tensor:
    """A grey image as float `[1, 1, H, W]` in [0, 1] on the model's device."""
    return torch.from_numpy(image / np.float32(255.0)).to(model.device)[None, None]


def chosen(logits: torch.Tensor, target: int | None) -> int:
    """The class to explain, by the logits `[1, C]`."""
    return target_class(logits[0].detach().float().cpu().numpy(), target)


def watched(net: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, int]:
    """One pass, and how many bytes of it wait for the way back, weights left out.

    Args:
        inputs: of one image.

    Returns:
        The logits, without a gradient, and the bytes.
    """
    weights = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    seen: dict[int, torch.UntypedStorage] = {}  # held, so that no place is taken twice

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits: torch.Tensor = net(inputs.detach().requires_grad_())
    return logits.detach(), sum(storage.nbytes() for storage in seen.values())


def images_a_pass(n_bytes: int, model: Classifier) -> int:
    """Images that are differentiated together.

    On a CPU larger batches gain next to nothing, and workers keep the memory that they once had.
    Whatever batch the forward passes have plays no part there: from 16 on convolutions are added up
    in another order, and where a ReLU stands at its kink that changes a gradient by more than
    rounding.

    Args:
        n_bytes: what one image keeps for the way back.
    """
    most = _TOGETHER if model.device.type == "cpu" else model.batch_size
    return max(1, min(most, _KEPT // max(n_bytes, 1)))


def baseline_of(image: Gray, kind: str, blur: float) -> Gray:
    """What an attribution is held against: uint8 `[H, W]`, black or the image blurred."""
    import cv2

    if kind == "black":
        return np.zeros_like(image)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), blur * min(image.shape)), dtype=np.uint8)
