"""LIME for images (Ribeiro et al. 2016), as the lime library computes it, in shippable units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from raybench.answers import digest
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape
from raybench.explain.designs import Design, asked_like, n_completions
from raybench.explain.fills import AnyFill, Black
from raybench.explain.neighbourhood import Neighbourhood, fit_of, is_settled
from raybench.explain.superpixels import AnySuperpixels, Quickshift, superpixels_unit
from raybench.models.classifier import Classifier
from raybench.types import Arrays, AttributionMap, Question, Subject, Unit


class Lime(Explainer):
    """Superpixels are switched off at random; a linear surrogate says what each one did.

    Superpixels, fill, kernel and surrogate are the study's (PROTOCOL.md 4), and with the same
    superpixels and keep-vectors the weights are those of the lime library. Departures: the design
    (`independent` is lime's own, bit for bit; docs/engine.md says why it is not the default), and
    perturbed images that are equal, pixel for pixel, are asked once, which changes no figure. On
    real X-rays the default's 448 samples are worth lime's 1,000.

    The map's extras: `superpixels` int32 `[h, w]`, `weights` `[K]` and their standard errors
    `uncertainty` `[K]` (infinite where there are too few samples to tell), and the fit's `r2`.
    """

    name: Literal["lime"] = "lime"
    n_samples: int = Field(
        448, ge=10, le=1_000_000, description="perturbed images, at most, equal ones included"
    )
    design: Design = Field(
        "completed",
        description="how they are chosen: independent (lime's coin flips), paired (complement "
        "pairs), orthogonal (orthogonal arrays with fold-over), completed (these, each image "
        "standing for several keep-vectors)",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the perturbations")
    completions: int = Field(
        8,
        ge=1,
        le=64,
        description="of `completed`: keep-vectors that an image stands for, which differ in the "
        "superpixels that hold nothing to switch off",
    )
    adaptive: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop an image once its salient mask is expected to agree with that of "
        "endless samples to an IoU of 1 minus this; null: ask all samples",
    )
    superpixels: AnySuperpixels = Field(Quickshift(), description="the regions switched off")
    fill: AnyFill = Field(Black(), description="what stands in for them")
    kernel_width: float = Field(0.25, gt=0, description="of the exponential kernel")
    alpha: float = Field(1.0, ge=0, description="ridge penalty")
    deduplicate: bool = Field(True, description="ask equal perturbed images once")
    chunk: int = Field(64, ge=1, description="forward passes in a unit of work")

    def n_forward_planned(self) -> int:
        """Forward passes an image, before equal ones are merged."""
        return self.n_samples

    def n_units_planned(self) -> int:
        """The superpixels, and chunks of perturbations."""
        return 1 + -(-self.n_samples // self.chunk)

    @property
    def needs_lungs(self) -> bool:
        """Whether the superpixels are confined, or the mask is clipped."""
        return super().needs_lungs or self.superpixels.confine

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """First the superpixels, then chunks of keep-vectors: all, or one more until it settles."""
        if "superpixels" not in done:
            return [superpixels_unit(self.superpixels, subject)]
        if "fill" not in done and self.fill.is_drawn_once:
            return [self._fill_unit(subject, done)]
        answered = [name for name in done if name.startswith("samples:")]
        if answered and self.adaptive is None:
            return []
        seen = self._neighbourhood(subject, done)
        starts = range(0, seen.n_distinct, self.chunk)
        if self.adaptive is not None:
            if self._is_settled(subject, done, seen):
                return []
            starts = starts[len(answered) : len(answered) + 1]
        drawn = f"{asked_like(self.design)} {self.seed} {self.deduplicate}"
        fills = self._fills(subject, done)
        labels = done["superpixels"]["labels"]
        key = digest("lime", drawn, subject.image, labels, fills)
        return [self._unit(key, subject, labels, fills, seen, start) for start in starts]

    def _unit(
        self,
        key: str,
        subject: Subject,
        superpixels: np.ndarray,
        fills: np.ndarray,
        seen: Neighbourhood,
        start: int,
    ) -> Unit:
        stop = min(start + self.chunk, seen.n_distinct)
        rows = seen.first[start:stop]
        shown, which = np.unique(seen.which[rows], return_inverse=True)
        return Unit(
            name=f"samples:{start:07d}",
            payload={
                "image": subject.image,
                "superpixels": superpixels,
                "keep": np.packbits(seen.keep[rows], axis=1),
                "fills": fills[shown],
                "which": which,
            },
            n_forward=stop - start,
            question=Question(key, start, stop),
        )

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Segment, draw what stands in, or ask the classifier about a chunk of perturbations."""
        if unit.name == "fill":
            subject, superpixels = unit.payload["subject"], unit.payload["superpixels"]
            drawn = self.fill.draw(subject, superpixels)
            return {"images": drawn.reshape(-1, drawn.shape[2])}
        image = unit.payload["image"]
        if unit.name == "superpixels":
            return {"labels": self.superpixels.segment(image, unit.payload.get("lungs"))}
        model = need_classifier(unit, classifier)
        superpixels = unit.payload["superpixels"]
        n_superpixels = int(superpixels.max()) + 1
        keep = np.unpackbits(unit.payload["keep"], axis=1, count=n_superpixels).astype(bool)
        fills, which = unit.payload["fills"], unit.payload["which"]
        return {"answers": model.predict_perturbed(image, fills, superpixels, keep, which)}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """Fit the surrogate of the target class and paint its weights onto the superpixels."""
        seen = self._neighbourhood(subject, done)
        answers = _answers(done)
        if self.adaptive is None:
            seen.expect(subject.image_id, len(answers))
        target = target_class(answers[0], subject.target)
        fit = fit_of(seen, answers, target, self.kernel_width, self.alpha)
        superpixels = done["superpixels"]["labels"]
        return AttributionMap(
            values=to_shape(fit.weights[superpixels], subject.shape, smooth=False),
            target=target,
            n_forward=len(answers),
            extras={
                "superpixels": superpixels,
                "weights": fit.weights,
                "uncertainty": fit.uncertainty,
                "r2": fit.r2,
            },
        )

    def _is_settled(
        self, subject: Subject, done: Mapping[str, Arrays], seen: Neighbourhood
    ) -> bool:
        answers = _answers(done)
        if len(answers) == seen.n_distinct:
            return True
        if not len(answers) or self.adaptive is None:
            return False
        target = target_class(answers[0], subject.target)
        fit = fit_of(seen, answers, target, self.kernel_width, self.alpha)
        areas = np.bincount(done["superpixels"]["labels"].ravel())
        return is_settled(fit, areas, self.threshold, self.adaptive, self.seed)

    def _fill_unit(self, subject: Subject, done: Mapping[str, Arrays]) -> Unit:
        labels = done["superpixels"]["labels"]
        key = digest("fill", self.fill.identity, subject.image, labels)
        question = Question(key, 0, self.fill.n_drawn * len(subject.image))
        payload = {"subject": subject, "superpixels": labels}
        return Unit("fill", payload, needs_model=False, question=question)

    def _fills(self, subject: Subject, done: Mapping[str, Arrays]) -> np.ndarray:
        """What stands in, uint8 `[F, h, w]`."""
        if "fill" in done:
            return done["fill"]["images"].reshape(-1, *subject.image.shape)
        return self.fill.draw(subject, done["superpixels"]["labels"])

    def _neighbourhood(self, subject: Subject, done: Mapping[str, Arrays]) -> Neighbourhood:
        superpixels = done["superpixels"]["labels"]
        return Neighbourhood.draw(
            self.design,
            self.n_samples,
            subject.image,
            self._fills(subject, done),
            superpixels,
            self.seed,
            n_completions(self.design, self.completions),
            self.deduplicate,
        )


def _answers(done: Mapping[str, Arrays]) -> np.ndarray:
    """Answers so far, `[m, C]`, in the order in which they were asked; empty where none is."""
    chunks = [done[name]["answers"] for name in sorted(done) if name.startswith("samples:")]
    return np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32)
