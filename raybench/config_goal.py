"""What a search over classifiers is for: accuracy alone, or accuracy and localisation together."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from raybench.explain import AnyExplainer, GradCam
from raybench.explain.fills import Neighbour
from raybench.settings import Settings
from raybench.training import settings as training


class Localisation(Settings):
    """A second objective: how well a cheap explanation of the trial's checkpoint localises."""

    explainer: AnyExplainer = Field(
        GradCam(), description="the explainer asked, on the model's grid"
    )
    score: Literal["iou", "dice"] = Field(
        "iou", description="its mean over the images, by the explainer's own threshold"
    )
    give_up: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="accuracy on Val that the choice gives up for localisation, where that is more "
        "than one standard error",
    )
    n_images: int | None = Field(
        16, ge=1, description="Val images with infection, evenly over the list; null: all"
    )

    @field_validator("explainer")
    @classmethod
    def _asks_the_model(cls, explainer: AnyExplainer) -> AnyExplainer:
        if not explainer.uses_model:
            raise ValueError(f"expected an explainer that asks the model, found {explainer.title}")
        if explainer.needs_prior or isinstance(getattr(explainer, "fill", None), Neighbour):
            raise ValueError(
                f"expected an explainer that needs the image alone, found {explainer.title}, which "
                "looks at Train"
            )
        return explainer


class Search(training.Search):
    """Optuna (TPE) proposes, Ray Tune runs."""

    localisation: Localisation | None = Field(
        None,
        description="search for accuracy and localisation on Val together; null: accuracy alone",
    )

    @model_validator(mode="after")
    def _to_the_end(self) -> Self:
        if self.localisation is not None and self.scheduler != "none":
            raise ValueError(
                f"scheduler: expected none beside search.localisation, found {self.scheduler}: a "
                "trial that is stopped early is never judged, and would tell the sampler half a "
                "result"
            )
        return self
