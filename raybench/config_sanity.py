"""The blocks `sanity` and `stability` of a sweep file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field, field_validator

from raybench.errors import ModelError
from raybench.models.backbones import backbone
from raybench.models.randomise import Depth
from raybench.settings import Settings

MOST_IMAGES = 200
"""Maps of so many images, of all explainers of a model, are held in memory at once."""


class Sanity(Settings):
    """Whether maps follow the model: it is randomised, and what happens to its maps is looked at.

    Cascading randomisation of Adebayo et al. (2018), on Test images that are explained.
    """

    n_images: int = Field(
        8, ge=1, le=MOST_IMAGES, description="of the explained Test images, evenly over the list"
    )
    depths: tuple[Depth, ...] = Field(
        ("head", "partial", "full"),
        min_length=1,
        description="how far down the model is randomised: head, partial, a number of its last "
        "stages (1 is partial), and full, which has to be there",
    )
    draws: int = Field(
        2, ge=1, le=100, description="random networks a depth; images are dealt to them in turn"
    )
    shuffled_labels: bool = Field(
        False,
        description="also train each best trial once more on permuted labels, and hold its maps "
        "against the real ones",
    )
    unmoved_above: float = Field(
        0.5,
        ge=-1,
        lt=1,
        description="an explainer is `unmoved` where the lower end of the interval of its mean "
        "rank correlation, at full randomisation, is above this",
    )

    @field_validator("depths")
    @classmethod
    def _distinct_and_full(cls, depths: Sequence[Depth]) -> tuple[Depth, ...]:
        plain = [1 if depth == "partial" else depth for depth in depths]
        if any(isinstance(depth, int) and depth < 1 for depth in plain):
            raise ValueError("expected head, partial, full or numbers of stages from 1 on")
        if "full" not in plain:
            raise ValueError("expected full among the depths: `unmoved` is told by it")
        if len(set(plain)) < len(plain):
            raise ValueError("expected each depth once (partial is 1)")
        return tuple(sorted(depths, key=_order))

    def check(self, backbones: Iterable[str]) -> None:
        """Whether each has as many stages as the depths ask for.

        Raises:
            ValueError: one has fewer; the message says how many.
        """
        for name in backbones:
            for depth in self.depths:
                if isinstance(depth, int):
                    try:
                        backbone(name).stage(depth)
                    except ModelError as error:
                        raise ValueError(f"depths: {error}") from error


class Stability(Settings):
    """How alike maps stay over an explainer's seeds, and over noise too small to change the class.

    Asked on Test images that are explained.
    """

    n_images: int = Field(
        8, ge=1, le=MOST_IMAGES, description="of the explained Test images, evenly over the list"
    )
    n_seeds: int = Field(3, ge=1, le=100, description="other seeds of each explainer that has one")
    n_noise: int = Field(3, ge=1, le=100, description="draws of noise an image")
    noise: float = Field(
        2.0,
        gt=0,
        le=64,
        description="standard deviation of Gaussian noise, grey levels of 0 to "
        "255, on the X-ray before preprocessing",
    )


def _order(depth: Depth) -> float:
    """Shallow first."""
    if isinstance(depth, int):
        return depth
    return {"head": 0.0, "partial": 1.0, "full": float("inf")}[depth]
