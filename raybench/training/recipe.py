"""How a backbone is trained: the settings of a sweep file, with values or intervals to search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, create_model, field_validator

from raybench.errors import ModelError
from raybench.models.backbones import backbone, check_backbone
from raybench.settings import Choice, Range, Settings, searched

Unfreeze = Literal["head", "partial", "full"]

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]


def _domain(value_type: Any) -> Any:
    """The type of a searched setting whose domain lies within the bounds of `value_type`."""
    ends = create_model("ends", low=(value_type, ...), high=(value_type, ...))
    picks = create_model("picks", __base__=Choice, choices=(tuple[value_type, ...], ...))

    def within(value: Any) -> Any:
        # What pydantic raises in here gets the setting's path before its own.
        if isinstance(value, Range):
            ends.model_validate({"low": value.low, "high": value.high})
        if isinstance(value, Choice):
            return Choice(choices=picks.model_validate({"choices": value.choices}).choices)
        return value

    return Annotated[searched(value_type), AfterValidator(within)]


class Plateau(Settings):
    """ReduceLROnPlateau on the validation loss, anew in each phase."""

    patience: int = Field(2, ge=0, description="epochs without a better loss before the rate falls")
    factor: float = Field(0.5, gt=0, lt=1, description="what the rate is multiplied by")


class Phase(Settings):
    """A stretch of epochs with one set of trainable layers and one starting rate."""

    unfreeze: Unfreeze = Field(
        "full",
        description="head (the classifier), partial (the last stage and all after it) or full",
    )
    epochs: int = Field(ge=1, description="epochs of this phase")
    lr: _domain(PositiveFloat) = Field(description="learning rate at its start")  # type: ignore[valid-type]


class Recipe(Settings):
    """One backbone of the sweep and how it is fine-tuned.

    A number may be a value, `{low: 1e-5, high: 1e-3, log: true}` or `{choices: [16, 32]}`: what is
    not a plain value is searched.
    """

    name: str = Field(description="a name of raybench's table, or any timm model (with its tag)")
    weights: str = Field("hub", description="hub, none, or the path of a weights file")
    input_size: int | None = Field(
        None, ge=32, le=1024, description="pixels a side; null: what the weights were made for"
    )
    batch_size: _domain(PositiveInt) = Field(32, description="images a step")  # type: ignore[valid-type]
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="the optimiser")
    weight_decay: _domain(NonNegativeFloat) = Field(0.0, description="of the optimiser")  # type: ignore[valid-type]
    label_smoothing: _domain(Fraction) = Field(0.0, description="of the cross-entropy")  # type: ignore[valid-type]
    dropout: _domain(Fraction) = Field(0.0, description="before the classifier's last layer")  # type: ignore[valid-type]
    plateau: Plateau | None = Field(None, description="fall of the rate on a plateau; null: none")
    phases: tuple[Phase, ...] = Field(min_length=1, description="in the order they are trained")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            check_backbone(name)
        except ModelError as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("weights")
    @classmethod
    def _there(cls, weights: str) -> str:
        if weights not in ("hub", "none") and not Path(weights).is_file():
            raise ValueError(f"expected hub, none or a file that exists, found {weights!r}")
        return weights

    @field_validator("input_size")
    @classmethod
    def _takes(cls, size: int | None, info: ValidationInfo) -> int | None:
        if size is None or "name" not in info.data:
            return size
        facts = backbone(info.data["name"])
        if facts.fixed_size and (size, size) != facts.input_size:
            height, width = facts.input_size
            raise ValueError(f"{facts.name} takes {height} x {width} only, found {size}")
        return size

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the classifier's input, pixels."""
        return (self.input_size,) * 2 if self.input_size else backbone(self.name).input_size

    @property
    def n_epochs(self) -> int:
        """Epochs over all phases."""
        return sum(phase.epochs for phase in self.phases)


class Augment(Settings):
    """What training images go through at random (PROTOCOL.md 2)."""

    flip: bool = Field(True, description="mirror left and right, one time in two")
    rotation: float = Field(10.0, ge=0, le=45, description="up to so many degrees either way")


class Training(Settings):
    """What holds for every trial."""

    augment: Augment = Field(Augment(), description="random changes of the training images")
    cpus_per_trial: int = Field(1, ge=1, description="cores of each trial")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of each trial, fractions too; null: one where there is one"
    )


class Search(Settings):
    """Optuna (TPE) proposes, Ray Tune runs."""

    trials_per_backbone: int = Field(1, ge=1, description="the same number for every backbone")
    scheduler: Literal["asha", "none"] = Field(
        "none",
        description="asha stops trials early that lag behind others of their backbone; none "
        "trains all to the end",
    )
    grace_epochs: int = Field(2, ge=1, description="epochs before asha may stop a trial")
    max_concurrent: int | None = Field(
        None, ge=1, description="trials side by side; null: as many as fit; 1 makes a seed fix all"
    )
    n_startup: int = Field(4, ge=1, description="random proposals before TPE learns from them")
