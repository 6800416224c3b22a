"""Explainers. A new one is one file here and one line in `AnyExplainer`."""

from typing import Annotated

from pydantic import Field

from raybench.explain.base import Explainer
from raybench.explain.grad_cam import GradCam
from raybench.explain.lime import Lime
from raybench.explain.references import CentrePrior, RandomSuperpixels, WholeLung
from raybench.explain.superpixels import Quickshift

AnyExplainer = Annotated[
    Lime | GradCam | WholeLung | CentrePrior | RandomSuperpixels, Field(discriminator="name")
]
"""What an entry of `explain.explainers` parses into."""

__all__ = [
    "AnyExplainer",
    "CentrePrior",
    "Explainer",
    "GradCam",
    "Lime",
    "Quickshift",
    "RandomSuperpixels",
    "WholeLung",
]
