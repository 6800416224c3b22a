"""Explainers. A new one is one file here and one line in `AnyExplainer`."""

from typing import Annotated

from pydantic import Field

from raybench.explain.base import Explainer
from raybench.explain.grad_cam import GradCam
from raybench.explain.lime import Lime
from raybench.explain.lime_variants import BayLime, Glime, KernelShap
from raybench.explain.references import CentrePrior, RandomSuperpixels, WholeLung
from raybench.explain.superpixels import Quickshift
from raybench.explain.surrogates import (
    AnySurrogate,
    BayesianRidgeSurrogate,
    GlimeSurrogate,
    KernelShapSurrogate,
    RidgeSurrogate,
)

AnyExplainer = Annotated[
    Lime | Glime | BayLime | KernelShap | GradCam | WholeLung | CentrePrior | RandomSuperpixels,
    Field(discriminator="name"),
]
"""What an entry of `explain.explainers` parses into."""

__all__ = [
    "AnyExplainer",
    "AnySurrogate",
    "BayLime",
    "BayesianRidgeSurrogate",
    "CentrePrior",
    "Explainer",
    "Glime",
    "GlimeSurrogate",
    "GradCam",
    "KernelShap",
    "KernelShapSurrogate",
    "Lime",
    "Quickshift",
    "RandomSuperpixels",
    "RidgeSurrogate",
    "WholeLung",
]
