"""LIME for images (Ribeiro et al. 2016), as the lime library computes it, in shippable units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from raybench.errors import ExplainError
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape
from raybench.explain.perturbation import (
    Keep,
    active_superpixels,
    coin_flips,
    distinct,
    fill_image,
    render,
)
from raybench.explain.superpixels import Quickshift
from raybench.explain.surrogate import cosine_distance, kernel, ridge
from raybench.models.classifier import Classifier
from raybench.types import Arrays, AttributionMap, Subject, Unit


class Lime(Explainer):
    """Superpixels are switched off at random; a linear surrogate says what each one did.

    The defaults are the study's (PROTOCOL.md 4). With the same superpixels and keep-vectors the
    weights are those of the lime library. One departure, without effect on the result: perturbed
    images that are equal, pixel for pixel, are asked once (`deduplicate`).
    """

    name: Literal["lime"] = "lime"
    n_samples: int = Field(1000, ge=10, le=1_000_000, description="perturbations an image")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the perturbations")
    superpixels: Quickshift = Field(Quickshift(), description="the regions switched off")
    fill: Literal["black", "mean"] = Field("black", description="what stands in for them")
    kernel_width: float = Field(0.25, gt=0, description="of the exponential kernel")
    alpha: float = Field(1.0, ge=0, description="ridge penalty")
    deduplicate: bool = Field(True, description="ask equal perturbed images once")
    chunk: int = Field(128, ge=1, description="forward passes in a unit of work")

    def n_forward_planned(self) -> int:
        """Forward passes an image, before equal ones are merged."""
        return self.n_samples

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """First the superpixels, then chunks of keep-vectors."""
        if "superpixels" not in done:
            return [Unit("superpixels", {"image": subject.image}, needs_model=False)]
        if len(done) > 1:
            return []
        superpixels = done["superpixels"]["labels"]
        keep = self._keep(subject, superpixels)
        first, _ = self._distinct(subject, superpixels, keep)
        asked = keep[first]
        return [
            Unit(
                name=f"samples:{start:07d}",
                payload={
                    "image": subject.image,
                    "superpixels": superpixels,
                    "keep": np.packbits(asked[start : start + self.chunk], axis=1),
                },
                n_forward=min(self.chunk, len(asked) - start),
            )
            for start in range(0, len(asked), self.chunk)
        ]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Segment, or render a chunk of perturbations and ask the classifier."""
        image = unit.payload["image"]
        if unit.name == "superpixels":
            return {"labels": self.superpixels.segment(image)}
        model = need_classifier(unit, classifier)
        superpixels = unit.payload["superpixels"]
        n_superpixels = int(superpixels.max()) + 1
        keep = np.unpackbits(unit.payload["keep"], axis=1, count=n_superpixels).astype(bool)
        fill = fill_image(image, superpixels, self.fill)
        step = model.batch_size
        answers = [
            model.predict(render(image, fill, superpixels, keep[i : i + step]))
            for i in range(0, len(keep), step)
        ]
        return {"answers": np.concatenate(answers)}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """Fit the surrogate of the target class and paint its weights onto the superpixels."""
        superpixels = done["superpixels"]["labels"]
        keep = self._keep(subject, superpixels)
        first, same_as = self._distinct(subject, superpixels, keep)
        chunks = [done[name]["answers"] for name in sorted(done) if name.startswith("samples:")]
        asked = np.concatenate(chunks)
        if len(asked) != len(first):
            raise ExplainError(
                f"{subject.image_id}: {len(asked)} answers for {len(first)} perturbed images"
            )
        answers = asked[same_as]
        target = target_class(answers[0], subject.target)
        weights = kernel(cosine_distance(keep), self.kernel_width)
        fit = ridge(keep, answers[:, target], weights, self.alpha)
        return AttributionMap(
            values=to_shape(fit.weights[superpixels], subject.shape, smooth=False),
            target=target,
            n_forward=len(asked),
            extras={"superpixels": superpixels, "weights": fit.weights, "r2": fit.r2},
        )

    def _keep(self, subject: Subject, superpixels: np.ndarray) -> Keep:
        return coin_flips(self.n_samples, int(superpixels.max()) + 1, self.seed)

    def _distinct(
        self, subject: Subject, superpixels: np.ndarray, keep: Keep
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.deduplicate:
            every = np.arange(len(keep))
            return every, every
        fill = fill_image(subject.image, superpixels, self.fill)
        return distinct(keep, active_superpixels(subject.image, fill, superpixels))
