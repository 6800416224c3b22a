"""Explainers. A new one is one file here and one line in `AnyExplainer`."""

from typing import Annotated

from pydantic import Field

from raybench.explain.base import Explainer
from raybench.explain.cams import EigenCam, GradCam, GradCamPlusPlus, HiResCam, LayerCam
from raybench.explain.gradients import (
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from raybench.explain.lime import Lime
from raybench.explain.propagation import DeepLift, Lrp
from raybench.explain.references import CentrePrior, RandomSuperpixels, WholeLung
from raybench.explain.score_cam import ScoreCam
from raybench.explain.superpixels import Quickshift

AnyExplainer = Annotated[
    Lime
    | GradCam
    | GradCamPlusPlus
    | HiResCam
    | LayerCam
    | EigenCam
    | ScoreCam
    | Saliency
    | InputXGradient
    | SmoothGrad
    | IntegratedGradients
    | GuidedBackprop
    | DeepLift
    | Lrp
    | WholeLung
    | CentrePrior
    | RandomSuperpixels,
    Field(discriminator="name"),
]
"""What an entry of `explain.explainers` parses into."""

__all__ = [
    "AnyExplainer",
    "CentrePrior",
    "DeepLift",
    "EigenCam",
    "Explainer",
    "GradCam",
    "GradCamPlusPlus",
    "GuidedBackprop",
    "HiResCam",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCam",
    "Lime",
    "Lrp",
    "Quickshift",
    "RandomSuperpixels",
    "Saliency",
    "ScoreCam",
    "SmoothGrad",
    "WholeLung",
]
