"""Attributions of single pixels by gradients, through captum."""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from raybench.answers import digest
from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape, untouched
from raybench.explain.surgery import Capped, detached_copy, replace, watch
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Arrays, AttributionMap, Gray, Question, Subject, Unit, Values

_LIBRARY = f"captum {version('captum')}"


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
        fields = PixelAttribution.model_fields
        asked = {k: v for k, v in self.model_dump().items() if k not in fields}
        told = f"{json.dumps(asked, sort_keys=True)} {subject.target}"
        question = Question(digest(_LIBRARY, "pixels", told, subject.image), 0, len(subject.image))
        payload = {"image": subject.image, "target": subject.target}
        return [Unit("pixels", payload, n_forward=self.n_forward_planned(), question=question)]

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


class _Plain(PixelAttribution):
    """Methods that take the network as it is: one pass for the class, then captum's."""

    def n_forward_planned(self) -> int:
        """A pass that finds the class, and one that is differentiated."""
        return 2

    def _attributed(
        self, model: Classifier, image: Gray, target: int | None
    ) -> tuple[torch.Tensor, int]:
        net, grey = OfGrey(model.net, model.normalise), grey_tensor(model, image)
        with torch.no_grad():
            of = chosen(net(grey), target)
        return self._by_captum(net, grey, image, of, model)[0, 0], of

    @abstractmethod
    def _by_captum(
        self, net: OfGrey, grey: torch.Tensor, image: Gray, target: int, model: Classifier
    ) -> torch.Tensor:
        """Attributions `[1, 1, H, W]`."""


class Saliency(_Plain):
    """The gradient itself (Simonyan et al. 2014)."""

    name: Literal["saliency"] = "saliency"
    absolute: bool = Field(True, description="the size of each pixel's value without its sign")

    def _by_captum(
        self, net: OfGrey, grey: torch.Tensor, image: Gray, target: int, model: Classifier
    ) -> torch.Tensor:
        from captum.attr import Saliency as Library

        found: torch.Tensor = Library(net).attribute(grey.requires_grad_(), target, abs=False)
        return found


class InputXGradient(_Plain):
    """Gradient times grey level (Shrikumar et al. 2016); what is black gets nothing."""

    name: Literal["input_x_gradient"] = "input_x_gradient"

    def _by_captum(
        self, net: OfGrey, grey: torch.Tensor, image: Gray, target: int, model: Classifier
    ) -> torch.Tensor:
        from captum.attr import InputXGradient as Library

        found: torch.Tensor = Library(net).attribute(grey.requires_grad_(), target)
        return found


# Noise is drawn for so many samples at once; with another number it would be another map.
_NOISY_TOGETHER = 8


class SmoothGrad(_Plain):
    """The mean gradient over noisy copies of the image (Smilkov et al. 2017)."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **PixelAttribution.search_space,
        "absolute": Choice(choices=(False, True)),
        "n_samples": Choice(choices=(8, 16, 32)),
        "noise": Choice(choices=(0.05, 0.1, 0.2)),
    }

    name: Literal["smooth_grad"] = "smooth_grad"
    absolute: bool = Field(True, description="the size of each pixel's value without its sign")
    n_samples: int = Field(32, ge=1, le=10_000, description="noisy copies of the image")
    noise: float = Field(
        0.1, gt=0, le=1, description="deviation of the noise as a share of the grey range"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the noise")

    def n_forward_planned(self) -> int:
        """A pass that finds the class, and one a sample."""
        return 1 + self.n_samples

    def _by_captum(
        self, net: OfGrey, grey: torch.Tensor, image: Gray, target: int, model: Classifier
    ) -> torch.Tensor:
        from captum.attr import NoiseTunnel
        from captum.attr import Saliency as Library

        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            found: torch.Tensor = NoiseTunnel(Library(net)).attribute(
                grey.requires_grad_(),
                nt_type="smoothgrad",
                nt_samples=self.n_samples,
                nt_samples_batch_size=min(self.n_samples, _NOISY_TOGETHER),
                stdevs=self.noise,
                target=target,
                abs=False,
            )
        return found


def baseline_of(image: Gray, kind: str, blur: float) -> Gray:
    """What an attribution is held against: uint8 `[H, W]`, black or the image blurred."""
    import cv2

    if kind == "black":
        return np.zeros_like(image)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), blur * min(image.shape)), dtype=np.uint8)


class IntegratedGradients(_Plain):
    """The gradient's mean on the way from a baseline, times the way (Sundararajan et al. 2017).

    The attributions add up to the logit less the baseline's, but for the error of the sum.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **PixelAttribution.search_space,
        "absolute": Choice(choices=(False, True)),
        "n_steps": Choice(choices=(10, 25, 50)),
        "baseline": Choice(choices=("black", "blurred")),
    }

    name: Literal["integrated_gradients"] = "integrated_gradients"
    n_steps: int = Field(50, ge=2, le=10_000, description="points on the way")
    method: Literal[
        "gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"
    ] = Field("gausslegendre", description="of the numerical integral")
    baseline: Literal["black", "blurred"] = Field(
        "black", description="where the way begins: a black image, or this one blurred"
    )
    baseline_blur: float = Field(
        0.1, gt=0, le=1, description="of `blurred`: deviation as a share of the shorter side"
    )

    def n_forward_planned(self) -> int:
        """A pass that finds the class, and one a step."""
        return 1 + self.n_steps

    def _by_captum(
        self, net: OfGrey, grey: torch.Tensor, image: Gray, target: int, model: Classifier
    ) -> torch.Tensor:
        from captum.attr import IntegratedGradients as Library

        start = baseline_of(image, self.baseline, self.baseline_blur)
        found: Any = Library(net).attribute(
            grey,
            grey_tensor(model, start),
            target,
            n_steps=self.n_steps,
            method=self.method,
            internal_batch_size=model.batch_size,
        )
        return found.float()  # type: ignore[no-any-return]


_OTHER_ACTIVATIONS = frozenset(
    f"{op}{end}"
    for op in ("gelu", "silu", "hardswish", "elu", "leaky_relu", "mish", "relu", "hardtanh", "celu")
    for end in ("", "_")
)


class GuidedBackprop(PixelAttribution):
    """The gradient with what is negative dropped at every ReLU (Springenberg et al. 2015).

    A ReLU6 counts as a ReLU. Networks with other activations, or with ReLUs that are not
    modules of their own, are refused: there the rule has nothing to hold on to.
    """

    name: Literal["guided_backprop"] = "guided_backprop"
    absolute: bool = Field(True, description="the size of each pixel's value without its sign")

    def n_forward_planned(self) -> int:
        """A pass that finds the class, and one that is differentiated."""
        return 2

    def _attributed(
        self, model: Classifier, image: Gray, target: int | None
    ) -> tuple[torch.Tensor, int]:
        from captum.attr import GuidedBackprop as Library

        other = detached_copy(model.net)
        replace(other, lambda module: Capped() if type(module) is nn.ReLU6 else None)
        net, grey = OfGrey(other, model.normalise).eval(), grey_tensor(model, image)
        logits, seen = watch(net, grey, (nn.ReLU, Capped))
        of = chosen(logits, target)
        strange = sorted(_OTHER_ACTIVATIONS & set(seen.outside))
        if strange or not seen.uses:
            raise ExplainError(
                f"guided_backprop: needs ReLU modules as the network's activations, found "
                f"{', '.join(strange) or 'none'}; choose saliency or smooth_grad"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that hooks are set; they are set on a copy
            return Library(net).attribute(grey.requires_grad_(), of)[0, 0], of
