"""LIME for images (Ribeiro et al. 2016), as the lime library computes it, in shippable units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from raybench.answers import digest
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape
from raybench.explain.designs import Design, asked_like, n_completions
from raybench.explain.neighbourhood import Neighbourhood, fit_of, is_settled
from raybench.explain.perturbation import fill_image
from raybench.explain.superpixels import Quickshift
from raybench.explain.surrogate import LocalFit
from raybench.explain.surrogates import AnySurrogate, RidgeSurrogate
from raybench.models.classifier import Classifier
from raybench.types import Arrays, AttributionMap, Question, Subject, Unit


class Lime(Explainer):
    """Superpixels are switched off at random; a linear surrogate says what each one did.

    Superpixels, fill and surrogate are by default the study's (PROTOCOL.md 4), and with the same
    superpixels and keep-vectors the weights are those of the lime library. Departures: the design
    (`independent` is lime's own, bit for bit; docs/engine.md says why it is not the default), and
    perturbed images that are equal, pixel for pixel, are asked once, which changes no figure. On
    real X-rays the default's 448 samples are worth lime's 1,000.

    The map's extras: `superpixels` int32 `[h, w]`, `weights` `[K]` and their standard errors
    `uncertainty` `[K]` (infinite where there are too few samples to tell), the fit's `r2`, and
    `n_effective`, how many samples of equal weight it rests on.
    """

    name: Literal["lime"] = "lime"
    n_samples: int = Field(
        448, ge=10, le=1_000_000, description="perturbed images, at most, equal ones included"
    )
    design: Design = Field(
        "completed",
        description="how they are chosen: independent (lime's coin flips), paired (complement "
        "pairs), orthogonal (orthogonal arrays with fold-over), completed (these, each image "
        "standing for several keep-vectors), bernoulli (coins that keep with keep_share; for "
        "glime), shapley (by the Shapley kernel; for kernel_shap)",
    )
    keep_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of `bernoulli`: share of the superpixels kept on average; null: what glime's "
        "sigma asks for, or that of sigma 1 (0.73)",
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
    superpixels: Quickshift = Field(Quickshift(), description="the regions switched off")
    fill: Literal["black", "mean"] = Field("black", description="what stands in for them")
    surrogate: AnySurrogate = Field(
        RidgeSurrogate(), description="what is fitted to the answers; its weights are the map"
    )
    deduplicate: bool = Field(True, description="ask equal perturbed images once")
    chunk: int = Field(64, ge=1, description="forward passes in a unit of work")

    def n_forward_planned(self) -> int:
        """Forward passes an image, before equal ones are merged."""
        return self.n_samples + self.n_apart

    @property
    def n_apart(self) -> int:
        """Images asked for beside the design's, at most: the one with everything switched off."""
        by_design = self.design == "shapley" and (self.adaptive is None or self.chunk > 1)
        return int(self.surrogate.needs_nothing and not by_design)

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """First the superpixels, then chunks of keep-vectors: all, or one more until it settles.

        With the first chunk the image with everything switched off is asked for, where the
        surrogate needs it and no keep-vector that is sure to be asked is that.
        """
        if "superpixels" not in done:
            key = digest("superpixels", self.superpixels.identity, subject.image)
            question = Question(key, 0, len(subject.image))
            payload = {"image": subject.image}
            return [Unit("superpixels", payload, needs_model=False, question=question)]
        answered = [name for name in done if name.startswith("samples:")]
        if answered and self.adaptive is None:
            return []
        seen = self._neighbourhood(subject, done)
        starts = range(0, seen.n_distinct, self.chunk)
        if self.adaptive is not None:
            if self._is_settled(subject, done, seen):
                return []
            starts = starts[len(answered) : len(answered) + 1]
        asked = asked_like(self.design, self._keep_share)
        drawn = f"{self.fill} {asked} {self.seed} {self.deduplicate}"
        key = digest("lime", drawn, subject.image, done["superpixels"]["labels"])
        units = [self._unit(key, subject, done, seen, start) for start in starts]
        if self.surrogate.needs_nothing and not answered:
            # An adaptive run may stop after its first chunk, whatever the next ones ask.
            certain = seen.n_distinct if self.adaptive is None else self.chunk
            if not seen.asks_nothing_kept(certain):
                units.append(self._nothing(subject, done))
        return units

    @property
    def _keep_share(self) -> float:
        return self.surrogate.keep_share if self.keep_share is None else self.keep_share

    def _nothing(self, subject: Subject, done: Mapping[str, Arrays]) -> Unit:
        """Ask for the image with all superpixels switched off, whatever the design."""
        superpixels = done["superpixels"]["labels"]
        payload = {
            "image": subject.image,
            "superpixels": superpixels,
            "keep": np.packbits(np.zeros((1, int(superpixels.max()) + 1), bool), axis=1),
        }
        key = digest("lime", "nothing kept", fill_image(subject.image, superpixels, self.fill))
        return Unit("nothing", payload, n_forward=1, question=Question(key, 0, 1))

    def _unit(
        self,
        key: str,
        subject: Subject,
        done: Mapping[str, Arrays],
        seen: Neighbourhood,
        start: int,
    ) -> Unit:
        stop = min(start + self.chunk, seen.n_distinct)
        asked = seen.keep[seen.first[start:stop]]
        return Unit(
            name=f"samples:{start:07d}",
            payload={
                "image": subject.image,
                "superpixels": done["superpixels"]["labels"],
                "keep": np.packbits(asked, axis=1),
            },
            n_forward=stop - start,
            question=Question(key, start, stop),
        )

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
        return {"answers": model.predict_perturbed(image, fill, superpixels, keep)}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """Fit the surrogate of the target class and paint its weights onto the superpixels."""
        seen = self._neighbourhood(subject, done)
        answers = _answers(done)
        if self.adaptive is None:
            seen.expect(subject.image_id, len(answers))
        target = target_class(answers[0], subject.target)
        fit = self._fit(seen, done, target)
        seen.expect_effective(subject.image_id, len(answers), fit, self.surrogate)
        superpixels = done["superpixels"]["labels"]
        return AttributionMap(
            values=to_shape(fit.weights[superpixels], subject.shape, smooth=False),
            target=target,
            n_forward=len(answers) + ("nothing" in done),
            extras={
                "superpixels": superpixels,
                "weights": fit.weights,
                "uncertainty": fit.uncertainty,
                "r2": fit.r2,
                "n_effective": fit.n_effective,
            },
        )

    def _fit(self, seen: Neighbourhood, done: Mapping[str, Arrays], target: int) -> LocalFit:
        nothing = float(done["nothing"]["answers"][0, target]) if "nothing" in done else None
        return fit_of(seen, _answers(done), target, self.surrogate, nothing)

    def _is_settled(
        self, subject: Subject, done: Mapping[str, Arrays], seen: Neighbourhood
    ) -> bool:
        answers = _answers(done)
        if len(answers) == seen.n_distinct:
            return True
        if not len(answers) or self.adaptive is None:
            return False
        target = target_class(answers[0], subject.target)
        fit = self._fit(seen, done, target)
        areas = np.bincount(done["superpixels"]["labels"].ravel())
        return is_settled(fit, areas, self.threshold, self.adaptive, self.seed)

    def _neighbourhood(self, subject: Subject, done: Mapping[str, Arrays]) -> Neighbourhood:
        superpixels = done["superpixels"]["labels"]
        fill = fill_image(subject.image, superpixels, self.fill)
        return Neighbourhood.draw(
            self.design,
            self.n_samples,
            subject.image,
            fill,
            superpixels,
            self.seed,
            n_completions(self.design, self.completions),
            self.deduplicate,
            self._keep_share,
        )


def _answers(done: Mapping[str, Arrays]) -> np.ndarray:
    """Answers so far, `[m, C]`, in the order in which they were asked; empty where none is."""
    chunks = [done[name]["answers"] for name in sorted(done) if name.startswith("samples:")]
    return np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32)
