"""DeepLIFT and layer-wise relevance propagation, through captum's rules for each module."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
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
)
from raybench.explain.surgery import (
    LINEAR,
    MOVES,
    TwoReLU,
    detached_copy,
    lay_apart,
    need_rules,
    replace,
    split_norm,
    watch,
)
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Gray

_INSTEAD = "integrated_gradients"


class DeepLift(PixelAttribution):
    """Differences from a baseline, passed back by the rescale rule (Shrikumar et al. 2017).

    ReLU6 is taken as the difference of two ReLUs, and max pooling on its own copy of its input with
    the windows laid apart: captum has no rule for the one and loses contributions in the other.
    Networks that do what the rule does not cover (attention, gates, layer normalisation, GELU,
    SiLU) are refused. So is a map that does not add up to the logit less the baseline's, within 1
    percent.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **PixelAttribution.search_space,
        "absolute": Choice(choices=(False, True)),
        "baseline": Choice(choices=("black", "blurred")),
    }

    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "baseline_blur": ("baseline", ("blurred",))
    }

    name: Literal["deep_lift"] = "deep_lift"
    baseline: Literal["black", "blurred"] = Field(
        "black", description="what is compared with: a black image, or this one blurred"
    )
    baseline_blur: float = Field(
        0.1, gt=0, le=1, description="of `blurred`: deviation as a share of the shorter side"
    )

    def n_forward_planned(self) -> int:
        """Image and baseline twice: once to look at the network and once for captum."""
        return 4

    def _attributed(
        self, model: Classifier, image: Gray, target: int | None
    ) -> tuple[torch.Tensor, int]:
        from captum.attr import DeepLift as Library

        other = detached_copy(model.net)
        replace(other, lambda module: TwoReLU() if type(module) is nn.ReLU6 else lay_apart(module))
        # In double precision: the rule divides differences by differences, small ones too.
        net = OfGrey(other.double(), lambda grey: model.normalise(grey).double()).eval()
        grey = grey_tensor(model, image).double()
        start = grey_tensor(model, baseline_of(image, self.baseline, self.baseline_blur)).double()
        both = model.normalise(torch.cat([grey, start]) * 255.0).double()
        logits, seen = watch(net.net, both, (nn.ReLU, nn.MaxPool2d))
        of = chosen(logits, target)
        need_rules(self.name, seen, LINEAR, _INSTEAD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that hooks are set; they are set on a copy
            found = Library(net).attribute(grey, start, of)
        found = found.detach()
        _check_sum(float(found.sum()), float(logits[0, of] - logits[1, of]), logits)
        return found[0, 0], of


def _check_sum(found: float, wanted: float, logits: torch.Tensor) -> None:
    if abs(found - wanted) > 0.01 * max(abs(wanted), 0.01 * float(logits.abs().max())):
        raise ExplainError(
            f"deep_lift: the map adds up to {found:.4g}, not to the {wanted:.4g} that the logit "
            f"differs from the baseline's: captum's rules do not fit here; choose {_INSTEAD}"
        )


class Lrp(PixelAttribution):
    """Relevance passed back layer by layer (Bach et al. 2015), of the normalised input.

    By the `epsilon` rule it equals gradient times normalised input wherever all activations are
    ReLUs. Biases keep their share, as captum has it, so the map does not add up to the logit.
    Networks with layers that captum has no rule for, and those that add branches up or multiply
    them, are refused.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        **PixelAttribution.search_space,
        "rule": Choice(choices=("epsilon", "gamma", "alpha1_beta0")),
    }

    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "epsilon": ("rule", ("epsilon",)),
        "gamma": ("rule", ("gamma",)),
    }

    name: Literal["lrp"] = "lrp"
    rule: Literal["epsilon", "gamma", "alpha1_beta0"] = Field(
        "epsilon", description="of convolutions; all other layers have epsilon's"
    )
    epsilon: float = Field(1e-9, gt=0, le=1, description="of `epsilon`: what steadies its division")
    gamma: float = Field(0.25, gt=0, le=10, description="of `gamma`: favour to positive weights")

    def n_forward_planned(self) -> int:
        """One pass that looks at the network, and two of captum's."""
        return 3

    def _attributed(
        self, model: Classifier, image: Gray, target: int | None
    ) -> tuple[torch.Tensor, int]:
        from captum.attr import LRP as Library
        from captum.attr._core.lrp import (
            SUPPORTED_LAYERS_WITH_RULES,
            SUPPORTED_NON_LINEAR_LAYERS,
        )
        from captum.attr._utils.lrp_rules import EpsilonRule

        net = detached_copy(model.net)
        replace(net, split_norm)
        inputs = model.normalise(grey_tensor(model, image) * 255.0)
        handed = (nn.Identity, nn.Flatten)
        ruled = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS, *handed)
        logits, seen = watch(net, inputs, ruled)
        of = chosen(logits, target)
        need_rules(self.name, seen, MOVES, _INSTEAD)
        strange = {
            type(m).__name__
            for m in net.modules()
            if not list(m.children()) and type(m) not in ruled
        }
        if strange:
            raise ExplainError(
                f"lrp: captum has no rule for {', '.join(sorted(strange))}; choose {_INSTEAD}"
            )
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.rule = self._rule()  # type: ignore[assignment]
            elif isinstance(module, handed):  # epsilon's rule hands on whatever it is given
                module.rule = EpsilonRule()
        found = Library(net).attribute(inputs.requires_grad_(), of)
        return found[0].sum(dim=0), of

    def _rule(self) -> object:
        from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule

        if self.rule == "gamma":
            return GammaRule(self.gamma)
        return Alpha1_Beta0_Rule() if self.rule == "alpha1_beta0" else EpsilonRule(self.epsilon)
