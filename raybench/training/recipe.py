"""How a backbone is trained: the settings of a sweep file, with values or intervals to search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from raybench.data.preprocess import Preprocess
from raybench.errors import ModelError
from raybench.models.backbones import backbone, check_backbone
from raybench.settings import Settings, domain_of, values_of, with_domains


def _depth(value: Any, inner: ValidatorFunctionWrapHandler) -> Any:
    """One message for a wrong depth, in place of one for each kind that it is not."""
    try:
        if not isinstance(value, bool):
            return inner(value)
    except ValidationError:
        pass
    raise ValueError(f"expected head, partial, full or a number of last stages, found {value!r}")


Unfreeze = Annotated[
    Literal["head", "partial", "full"] | Annotated[int, Field(ge=1)], WrapValidator(_depth)
]

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1)]


class Augment(Settings):
    """What training images go through at random: PROTOCOL.md 2 by default, and what users add."""

    flip: bool = Field(True, description="mirror left and right, one time in two")
    rotation: float = Field(10.0, ge=0, le=45, description="up to so many degrees either way")
    scale: float = Field(0.0, ge=0, lt=1, description="larger or smaller by up to this share")
    shift: float = Field(
        0.0, ge=0, lt=1, description="moved by up to this share of each side, either way"
    )
    brightness: float = Field(
        0.0, ge=0, lt=1, description="grey levels times 1 plus or minus up to this"
    )
    contrast: float = Field(
        0.0, ge=0, lt=1, description="distance from the image's mean times 1 plus or minus up to it"
    )


PreprocessDomains = with_domains(Preprocess, "PreprocessDomains", __name__)
AugmentDomains = with_domains(Augment, "AugmentDomains", __name__)


class Plateau(Settings):
    """ReduceLROnPlateau on the validation loss, anew in each phase."""

    patience: int = Field(2, ge=0, description="epochs without a better loss before the rate falls")
    factor: float = Field(0.5, gt=0, lt=1, description="what the rate is multiplied by")


class Phase(Settings):
    """A stretch of epochs with one set of trainable layers and one starting rate."""

    unfreeze: domain_of(Unfreeze) = Field(  # type: ignore[valid-type]
        "full",
        description="head (the classifier), partial (the last stage and all after it), full, or a "
        "number of last stages",
    )
    epochs: int = Field(ge=1, description="epochs of this phase")
    lr: domain_of(PositiveFloat) = Field(description="learning rate at its start")  # type: ignore[valid-type]


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
    batch_size: domain_of(PositiveInt) = Field(32, description="images a step")  # type: ignore[valid-type]
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="the optimiser")
    weight_decay: domain_of(NonNegativeFloat) = Field(0.0, description="of the optimiser")  # type: ignore[valid-type]
    label_smoothing: domain_of(Fraction) = Field(0.0, description="of the cross-entropy")  # type: ignore[valid-type]
    dropout: domain_of(Fraction) = Field(0.0, description="before the classifier's last layer")  # type: ignore[valid-type]
    plateau: Plateau | None = Field(None, description="fall of the rate on a plateau; null: none")
    phases: tuple[Phase, ...] = Field(min_length=1, description="in the order they are trained")
    preprocess: PreprocessDomains | None = Field(  # type: ignore[valid-type]
        None, description="what its images go through; null: the sweep's `preprocess`"
    )
    augment: AugmentDomains | None = Field(  # type: ignore[valid-type]
        None, description="random changes of its training images; null: `training.augment`"
    )

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

    @field_validator("phases")
    @classmethod
    def _deep_enough(cls, phases: tuple[Phase, ...], info: ValidationInfo) -> tuple[Phase, ...]:
        if "name" not in info.data:
            return phases
        facts = backbone(info.data["name"])
        for index, phase in enumerate(phases):
            for depth in values_of(phase.unfreeze):
                if isinstance(depth, int | float):
                    try:
                        facts.stage(int(depth))
                    except ModelError as error:
                        raise ValueError(f"{index}.unfreeze: {error}") from error
        return phases

    @property
    def preprocessing(self) -> Preprocess:
        """What this resolved recipe's images go through; the defaults where it does not say."""
        return Preprocess.model_validate((self.preprocess or PreprocessDomains()).model_dump())

    @property
    def augmentation(self) -> Augment:
        """How this resolved recipe's training images are changed; defaults likewise."""
        return Augment.model_validate((self.augment or AugmentDomains()).model_dump())

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` of the classifier's input, pixels."""
        return (self.input_size,) * 2 if self.input_size else backbone(self.name).input_size

    @property
    def n_epochs(self) -> int:
        """Epochs over all phases."""
        return sum(phase.epochs for phase in self.phases)
