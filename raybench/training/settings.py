"""What holds for every trial, and how trials are proposed: settings of the sweep file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybench.settings import Settings
from raybench.training.recipe import AugmentDomains


class Training(Settings):
    """What holds for every trial."""

    augment: AugmentDomains = Field(
        AugmentDomains(), description="random changes of the training images"
    )
    cpus_per_trial: int = Field(1, ge=1, description="cores of each trial")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of each trial, fractions too; null: one where there is one"
    )


class Search(Settings):
    """Optuna (TPE) proposes, Ray Tune runs."""

    trials_per_backbone: int = Field(
        1, ge=1, description="the same number for every backbone; with a budget, the most"
    )
    hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="budget of training, hours by the clock, those before a resume included; "
        "null: none",
    )
    gpu_hours: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="budget of training, hours times the GPUs that trials hold; null: none",
    )
    scheduler: Literal["asha", "hyperband", "none"] = Field(
        "none",
        description="asha stops trials early that lag behind others of their backbone; hyperband "
        "too, at several paces; none trains all to the end",
    )
    grace_epochs: int = Field(2, ge=1, description="epochs before a trial may be stopped early")
    max_concurrent: int | None = Field(
        None, ge=1, description="trials side by side; null: as many as fit; 1 makes a seed fix all"
    )
    n_startup: int = Field(4, ge=1, description="random proposals before TPE learns from them")
