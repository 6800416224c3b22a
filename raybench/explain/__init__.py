"""Explainers. A new one is one file here and one line in `AnyExplainer`."""

from typing import Annotated

from pydantic import Field

from raybench.explain.base import Explainer
from raybench.explain.grad_cam import GradCam
from raybench.explain.lime import Lime
from raybench.explain.occlusion import Occlusion
from raybench.explain.references import (
    CentrePrior,
    Edges,
    Intensity,
    RandomSuperpixels,
    WholeLung,
)
from raybench.explain.rise import Rise
from raybench.explain.superpixels import (
    AnySuperpixels,
    CompactWatershed,
    Felzenszwalb,
    Grid,
    Quickshift,
    Slic,
)

AnyExplainer = Annotated[
    Lime
    | GradCam
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
    "CentrePrior",
    "CompactWatershed",
    "Edges",
    "Explainer",
    "Felzenszwalb",
    "GradCam",
    "Grid",
    "Intensity",
    "Lime",
    "Occlusion",
    "Quickshift",
    "RandomSuperpixels",
    "Rise",
    "Slic",
    "WholeLung",
]
