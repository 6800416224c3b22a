"""What holds for every trial, and how trials are proposed: settings of the sweep file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raybench.settings import Settings
from raybench.storage import Storage
from raybench.training.recipe import AugmentDomains

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Training(Settings):
    """What holds for every trial."""

    augment: AugmentDomains = Field(
        AugmentDomains(), description="random changes of the training images"
    )
    cpus_per_trial: int = Field(1, ge=1, description="cores of each trial")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of each trial, fractions too; null: one where there is one"
    )
    precision: Precision = Field(
        "auto",
        description="of forward and backward passes, weights stay float32; auto: bfloat16 on a GPU "
        "that computes in it, else float32",
    )
    compile: bool = Field(False, description="training passes by torch.compile")
    cache: str | None = Field(
        None,
        min_length=1,
        description="local folder of decoded images, which trials and sweeps share; null: `cache` "
        "in the output folder",
    )
    cache_gb: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="size of that folder, GB: what was used longest ago is removed beyond it; 0: "
        "no cache",
    )

    @field_validator("cache")
    @classmethod
    def _is_local(cls, cache: str | None) -> str | None:
        if cache is not None and not Storage(cache).is_local:
            raise ValueError(f"expected a folder of a local disk, found {cache!r}")
        return cache


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
