"""What is explained, by which explainers, and where the figures go."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raybench.explain import (
    AnyExplainer,
    AnySuperpixels,
    CentrePrior,
    GradCam,
    Lime,
    Quickshift,
    RandomSuperpixels,
    WholeLung,
)
from raybench.scoring.thresholds import ThresholdRule
from raybench.settings import Settings
from raybench.training.segment import SUPERVISED


class Explain(Settings):
    """What is explained, and how."""

    trials: Literal["best", "all"] = Field(
        "best",
        description="trials that every explainer explains on Val and Test: the best of each "
        "backbone (by Val), or all; the others get the cheap explainers on Val",
    )
    target: str = Field("predicted", description="class explained: predicted, true or a class")
    grid: Literal["model", "image"] = Field(
        "model",
        description="where superpixels and perturbations are made: at the model's input size, or "
        "at the image's own as in the study",
    )
    n_val: int | None = Field(
        None,
        ge=1,
        description="Val images with infection explained, to choose thresholds; null: all",
    )
    n_test: int | None = Field(
        None, ge=1, description="Test images with infection explained; null: all"
    )
    panels: int = Field(6, ge=0, le=50, description="Test images drawn as infection maps")
    explainers: tuple[AnyExplainer, ...] = Field(
        (Lime(), GradCam(), WholeLung(), CentrePrior(), RandomSuperpixels()),
        min_length=1,
        description="the explainers compared",
    )

    @field_validator("explainers")
    @classmethod
    def _titles(cls, explainers: tuple[AnyExplainer, ...]) -> tuple[AnyExplainer, ...]:
        titles = [e.title for e in explainers]
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            raise ValueError(f"give each its own label, found twice: {', '.join(twice)}")
        if SUPERVISED in titles:
            raise ValueError(f"{SUPERVISED} is the U-Net's name: give another label")
        return explainers


class Scoring(Settings):
    """How attribution maps are held against the infection."""

    threshold_rules: tuple[ThresholdRule, ...] = Field(
        ("fixed", "val"),
        min_length=1,
        description="what maps are cut by, every explainer's alike: fixed (its own threshold), "
        "val (highest mean IoU on Val), otsu, area (as much as infection covers on Val), top_k "
        "(the best superpixels, as many as serve Val best)",
    )
    superpixels: AnySuperpixels = Field(
        Quickshift(), description="of `top_k`: the image's, the same for every explainer"
    )

    @property
    def main_rule(self) -> ThresholdRule:
        """What conclusions go by and figures show where there is room for one: `val` if it is
        among the rules, else the first. Never one that only winners of a search are scored by."""
        return "val" if "val" in self.threshold_rules else self.threshold_rules[0]

    @field_validator("threshold_rules")
    @classmethod
    def _once(cls, rules: tuple[ThresholdRule, ...]) -> tuple[ThresholdRule, ...]:
        twice = sorted({r for r in rules if rules.count(r) > 1})
        if twice:
            raise ValueError(f"each rule once, found twice: {', '.join(twice)}")
        return rules


class Tracking(Settings):
    """Where the figures are projected to. The run folder holds them whatever happens to it."""

    uri: str | None = Field(
        None, description="MLflow tracking URI; null: mlflow.db in the run folder"
    )
    experiment: str | None = Field(None, description="MLflow experiment; null: the sweep's name")
    live: bool = Field(True, description="project while the sweep runs, not only at its end")
