"""Attributions of single pixels by gradients, through captum."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from raybench.errors import ExplainError
from raybench.explain.pixels import (
    OfGrey,
    PixelAttribution,
    baseline_of,
    chosen,
    grey_tensor,
    images_a_pass,
    watched,
)
from raybench.explain.surgery import Capped, detached_copy, replace, watch
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Gray


class _Plain(PixelAttribution):
    """Methods that take the network as it is: one pass for the class, then captum's."""

    def n_forward_planned(self) -> int:
        """A pass that finds the class, and one that is differentiated."""
        return 2

    def _attributed(
        self, model: Classifier, image: Gray, target: int | None
    ) -> tuple[torch.Tensor, int]:
        net, grey = OfGrey(model.net, model.normalise), grey_tensor(model, image)
        logits, n_bytes = watched(net, grey)
        of, together = chosen(logits, target), images_a_pass(n_bytes, model)
        return self._by_captum(net, grey, image, of, model, together)[0, 0], of

    @abstractmethod
    def _by_captum(
        self,
        net: OfGrey,
        grey: torch.Tensor,
        image: Gray,
        target: int,
        model: Classifier,
        together: int,
    ) -> torch.Tensor:
        """Attributions `[1, 1, H, W]`, at most so many images differentiated together."""


class Saliency(_Plain):
    """The gradient itself (Simonyan et al. 2014)."""

    name: Literal["saliency"] = "saliency"
    absolute: bool = Field(True, description="the size of each pixel's value without its sign")

    def _by_captum(
        self,
        net: OfGrey,
        grey: torch.Tensor,
        image: Gray,
        target: int,
        model: Classifier,
        together: int,
    ) -> torch.Tensor:
        from captum.attr import Saliency as Library

        found: torch.Tensor = Library(net).attribute(grey.requires_grad_(), target, abs=False)
        return found


class InputXGradient(_Plain):
    """Gradient times grey level (Shrikumar et al. 2016); what is black gets nothing."""

    name: Literal["input_x_gradient"] = "input_x_gradient"

    def _by_captum(
        self,
        net: OfGrey,
        grey: torch.Tensor,
        image: Gray,
        target: int,
        model: Classifier,
        together: int,
    ) -> torch.Tensor:
        from captum.attr import InputXGradient as Library

        found: torch.Tensor = Library(net).attribute(grey.requires_grad_(), target)
        return found


def _in_parts(together: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    """captum's gradients of the target's logits, of so many images at a time, at most."""
    from captum._utils.gradient import compute_gradients

    def gradients(
        net: nn.Module, inputs: tuple[torch.Tensor, ...], target: int, *rest: Any
    ) -> tuple[torch.Tensor, ...]:
        parts = [
            compute_gradients(net, (part.detach().requires_grad_(),), target, *rest)[0]
            for part in torch.split(inputs[0], together)
        ]
        return (torch.cat(parts),)

    return gradients


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
        self,
        net: OfGrey,
        grey: torch.Tensor,
        image: Gray,
        target: int,
        model: Classifier,
        together: int,
    ) -> torch.Tensor:
        from captum.attr import NoiseTunnel
        from captum.attr import Saliency as Library

        library = Library(net)
        library.gradient_func = _in_parts(together)  # the noise stays what it is
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            found: torch.Tensor = NoiseTunnel(library).attribute(
                grey.requires_grad_(),
                nt_type="smoothgrad",
                nt_samples=self.n_samples,
                nt_samples_batch_size=min(self.n_samples, _NOISY_TOGETHER),
                stdevs=self.noise,
                target=target,
                abs=False,
            )
        return found


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

    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "baseline_blur": ("baseline", ("blurred",))
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
        self,
        net: OfGrey,
        grey: torch.Tensor,
        image: Gray,
        target: int,
        model: Classifier,
        together: int,
    ) -> torch.Tensor:
        from captum.attr import IntegratedGradients as Library

        start = baseline_of(image, self.baseline, self.baseline_blur)
        found: Any = Library(net).attribute(
            grey,
            grey_tensor(model, start),
            target,
            n_steps=self.n_steps,
            method=self.method,
            internal_batch_size=together,
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
