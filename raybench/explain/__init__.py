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
from raybench.explain.lime_variants import BayLime, Glime, KernelShap, KpLime, KStarLime
from raybench.explain.occlusion import Occlusion
from raybench.explain.propagation import DeepLift, Lrp
from raybench.explain.references import (
    CentrePrior,
    Edges,
    Intensity,
    RandomSuperpixels,
    WholeLung,
)
from raybench.explain.rise import Rise
from raybench.explain.score_cam import ScoreCam
from raybench.explain.superpixels import (
    AnySuperpixels,
    CompactWatershed,
    Felzenszwalb,
    Grid,
    Quickshift,
    Slic,
)
from raybench.explain.surrogates import (
    AnySurrogate,
    BayesianRidgeSurrogate,
    GlimeSurrogate,
    KernelShapSurrogate,
    RidgeSurrogate,
)

AnyExplainer = Annotated[
    Lime
    | Glime
    | BayLime
    | KernelShap
    | KpLime
    | KStarLime
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
    | Occlusion
    | Rise
    # references
    | WholeLung
    | CentrePrior
    | RandomSuperpixels
    | Intensity
    | Edges,
    Field(discriminator="name"),
]
"""What an entry of `explain.explainers` parses into."""

__all__ = [
    "AnyExplainer",
    "AnySuperpixels",
    "AnySurrogate",
    "BayLime",
    "BayesianRidgeSurrogate",
    "CentrePrior",
    "CompactWatershed",
    "DeepLift",
    "Edges",
    "EigenCam",
    "Explainer",
    "Felzenszwalb",
    "Glime",
    "GlimeSurrogate",
    "GradCam",
    "GradCamPlusPlus",
    "Grid",
    "GuidedBackprop",
    "HiResCam",
    "InputXGradient",
    "IntegratedGradients",
    "Intensity",
    "KStarLime",
    "KernelShap",
    "KernelShapSurrogate",
    "KpLime",
    "LayerCam",
    "Lime",
    "Lrp",
    "Occlusion",
    "Quickshift",
    "RandomSuperpixels",
    "RidgeSurrogate",
    "Rise",
    "Saliency",
    "ScoreCam",
    "Slic",
    "SmoothGrad",
    "WholeLung",
]
