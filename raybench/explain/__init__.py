"""Explainers. A new one is one file here and one line in `AnyExplainer`."""

from typing import Annotated

from pydantic import Field

from raybench.explain.base import Explainer
from raybench.explain.cams import EigenCam, GradCam, GradCamPlusPlus, HiResCam, LayerCam
from raybench.explain.lime import Lime
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
    | WholeLung
    | CentrePrior
    | RandomSuperpixels,
    Field(discriminator="name"),
]
"""What an entry of `explain.explainers` parses into."""

__all__ = [
    "AnyExplainer",
    "CentrePrior",
    "EigenCam",
    "Explainer",
    "GradCam",
    "GradCamPlusPlus",
    "HiResCam",
    "LayerCam",
    "Lime",
    "Quickshift",
    "RandomSuperpixels",
    "ScoreCam",
    "WholeLung",
]
