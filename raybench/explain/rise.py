"""RISE (Petsiuk et al. 2018): random soft masks, each weighted by what the model says behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from raybench.answers import digest
from raybench.explain.base import Explainer, joined, need_classifier, target_class, to_shape
from raybench.explain.fills import AnyWholeFill, Black, one_image
from raybench.explain.soft_masks import SoftMasks
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
from raybench.types import Arrays, AttributionMap, Question, Subject, Unit


class Rise(Explainer):
    """Soft random masks; a pixel counts as much as the model says where it is shown.

    The map is the paper's equation 6,

        S(x) = 1 / (E[M] N) * sum over i of f(I . M_i) M_i(x),

    with f the target's probability and E[M] = `keep`. With `coverage: observed` each pixel is
    divided by how much it was shown in these N masks, sum over i of M_i(x), instead of by what is
    expected: the same map in the limit, without the noise of some pixels being shown more often.

    Masks are soft, so what is shown is `M_i * image + (1 - M_i) * fill` in grey levels, not
    rounded; with the paper's fill (black after normalisation) the second term would be nothing.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "n_masks": Choice(choices=(500, 1000, 2000, 4000)),
        "cells": Choice(choices=(5, 7, 10)),
        "keep": Choice(choices=(0.25, 0.5)),
        "coverage": Choice(choices=("expected", "observed")),
        "fill": Choice(choices=("black", "blur")),
    }

    name: Literal["rise"] = "rise"
    n_masks: int = Field(4000, ge=10, le=1_000_000, description="masks, a forward pass each")
    cells: int = Field(7, ge=1, le=64, description="of a mask's grid, along each side")
    keep: float = Field(0.5, gt=0, lt=1, description="probability that a cell is shown")
    coverage: Literal["expected", "observed"] = Field(
        "expected", description="what the weighted sum is divided by: expected as in the paper"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the masks, the same for all images")
    fill: Annotated[AnyWholeFill, AfterValidator(one_image)] = Field(
        Black(), description="what is seen where they hide; mean: of the whole image"
    )
    chunk: int = Field(64, ge=1, description="forward passes in a unit of work")

    def n_forward_planned(self) -> int:
        """The image as it is, and once behind each mask."""
        return 1 + self.n_masks

    def n_units_planned(self) -> int:
        """Chunks of masks."""
        return -(-self.n_forward_planned() // self.chunk)

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """Chunks of masks, by their numbers; row 0 of the answers is the image as it is."""
        if done:
            return []
        told = f"{self.cells} {self.keep!r} {self.seed}"
        fill = self.fill.draw(subject, None)[0]
        key = digest("rise", told, subject.image, fill)
        n = self.n_forward_planned()
        return [
            Unit(
                name=f"masks:{start:07d}",
                payload={"image": subject.image, "fill": fill, "start": start, "stop": stop},
                n_forward=stop - start,
                question=Question(key, start, stop),
            )
            for start in range(0, n, self.chunk)
            for stop in (min(start + self.chunk, n),)
        ]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Draw a chunk of masks and ask what is seen behind them."""
        model = need_classifier(unit, classifier)
        image, first, last = (unit.payload[key] for key in ("image", "start", "stop"))
        masks = self._masks(image.shape)

        def shown(start: int, stop: int) -> torch.Tensor:
            start, stop = first + start, first + stop
            whole = torch.ones((int(start == 0), *image.shape), device=model.device)
            drawn = masks.render(max(start, 1) - 1, stop - 1, model.device)
            return torch.cat([whole, drawn])

        fill = unit.payload["fill"]
        return {"answers": model.predict_blended(image, fill, last - first, shown)}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The masks' sum, weighted by the target's probability, over their coverage."""
        answers = joined(done, "masks:")
        target = target_class(answers[0], subject.target)
        scores = answers[1:, target].astype(np.float64)
        masks = self._masks(subject.image.shape)
        weighted = masks.weighted_sum(scores)
        if self.coverage == "expected":
            values = weighted / (self.keep * len(scores))
        else:
            values = _ratio(weighted, masks.weighted_sum(np.ones(len(scores))), scores.mean())
        return AttributionMap(
            values=to_shape(values, subject.shape, smooth=True),
            target=target,
            n_forward=len(answers),
        )

    def _masks(self, shape: tuple[int, ...]) -> SoftMasks:
        return SoftMasks((shape[0], shape[1]), self.cells, self.keep, self.seed)


def _ratio(
    weighted: NDArray[np.float64], shown: NDArray[np.float64], otherwise: float
) -> NDArray[np.float64]:
    """What was said on average where a pixel was shown; of one never shown, what was at all."""
    seen = shown > 1e-9
    return np.where(seen, weighted / np.where(seen, shown, 1.0), otherwise)
