"""LIME by its relatives' names: the same machinery with another surrogate, design or fill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybench.explain.designs import Design
from raybench.explain.fills import Neighbour
from raybench.explain.lime import Lime
from raybench.explain.surrogates import (
    BayesianRidgeSurrogate,
    GlimeSurrogate,
    KernelShapSurrogate,
)


class Glime(Lime):
    """GLIME-Binomial (Tan, Tian and Li 2023): LIME that draws what its kernel would weigh."""

    name: Literal["glime"] = "glime"  # type: ignore[assignment]
    design: Design = Field("bernoulli", description=Lime.model_fields["design"].description)
    surrogate: GlimeSurrogate = Field(GlimeSurrogate(), description="what is fitted to the answers")


class BayLime(Lime):
    """BayLIME (Zhao et al. 2021), non-informative priors: LIME with a ridge that sets itself."""

    name: Literal["bay_lime"] = "bay_lime"  # type: ignore[assignment]
    surrogate: BayesianRidgeSurrogate = Field(
        BayesianRidgeSurrogate(), description="what is fitted to the answers"
    )


class KernelShap(Lime):
    """KernelSHAP (Lundberg and Lee 2017): Shapley values of the superpixels, by regression."""

    name: Literal["kernel_shap"] = "kernel_shap"  # type: ignore[assignment]
    design: Design = Field("shapley", description=Lime.model_fields["design"].description)
    surrogate: KernelShapSurrogate = Field(
        KernelShapSurrogate(), description="what is fitted to the answers"
    )


class KpLime(Lime):
    """KP-LIME: what is switched off shows the same place of a similar patient's X-ray.

    The definition is raybench's (docs/explainers.md): LIME with the fill `neighbour`.
    """

    name: Literal["kp_lime"] = "kp_lime"  # type: ignore[assignment]
    fill: Neighbour = Field(Neighbour(), description="the neighbour that stands in")


class KStarLime(Lime):
    """K*LIME: KP-LIME with several neighbours, whose answers are averaged by taking turns."""

    name: Literal["k_star_lime"] = "k_star_lime"  # type: ignore[assignment]
    fill: Neighbour = Field(Neighbour(n=5), description="the neighbours that stand in, in turns")
