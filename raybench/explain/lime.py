"""LIME for images (Ribeiro et al. 2016), as the lime library computes it, in shippable units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from raybench.answers import digest
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape
from raybench.explain.designs import Design, asked_like, n_completions
from raybench.explain.fills import AnyFill, Black
from raybench.explain.neighbourhood import Neighbourhood, fit_of, is_settled
from raybench.explain.superpixels import AnySuperpixels, Quickshift, superpixels_unit
from raybench.explain.surrogate import LocalFit
from raybench.explain.surrogates import AnySurrogate, RidgeSurrogate
from raybench.models.classifier import Classifier
from raybench.settings import Choice, Range
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

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "n_samples": Choice(choices=(64, 128, 256, 448)),
        "design": Choice(choices=("independent", "paired", "orthogonal", "completed")),
        "superpixels": Choice(choices=("quickshift", "slic", "felzenszwalb", "watershed", "grid")),
        "fill": Choice(choices=("black", "mean", "blur", "inpaint", "noise", "neighbour")),
        "surrogate": Choice(choices=("ridge", "bayesian_ridge")),
    }
    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "completions": ("design", ("completed",)),
        # The others need the design that draws by their law.
        "design": ("surrogate", ("ridge", "bayesian_ridge")),
    }

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
    superpixels: AnySuperpixels = Field(Quickshift(), description="the regions switched off")
    fill: AnyFill = Field(Black(), description="what stands in for them")
    surrogate: AnySurrogate = Field(
        RidgeSurrogate(), description="what is fitted to the answers; its weights are the map"
    )
    deduplicate: bool = Field(True, description="ask equal perturbed images once")
    chunk: int = Field(64, ge=1, description="forward passes in a unit of work")

    @property
    def of_mask(self) -> frozenset[str]:
        """Without threshold and sign where they say when an image has settled."""
        return super().of_mask - ({"threshold", "sign"} if self.adaptive else set())

    def n_forward_planned(self) -> int:
        """Forward passes an image, before equal ones are merged."""
        return self.n_samples + self.n_apart

    @property
    def n_apart(self) -> int:
        """Images asked for beside the design's, at most: everything switched off, by each fill."""
        if not self.surrogate.needs_nothing:
            return 0
        n_fills = self.fill.n_drawn
        asked_early = self.adaptive is None or self.chunk > 1
        return 0 if self.design == "shapley" and asked_early and n_fills == 1 else n_fills

    def n_units_planned(self) -> int:
        """The superpixels, what stands in for them, and chunks of perturbations."""
        aside = 1 + int(self.fill.is_drawn_once) + int(self.n_apart > 0)
        return aside - (-self.n_samples // self.chunk)

    @property
    def needs_lungs(self) -> bool:
        """Whether the superpixels are confined, or the mask is clipped."""
        return super().needs_lungs or self.superpixels.confine

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """First the superpixels, then chunks of keep-vectors: all, or one more until it settles.

        With the first chunk the image with everything switched off is asked for, where the
        surrogate needs it and no keep-vector that is sure to be asked is that.
        """
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
        drawn = f"{asked_like(self.design, self._keep_share)} {self.seed} {self.deduplicate}"
        fills = self._fills(subject, done)
        labels = done["superpixels"]["labels"]
        key = digest("lime", drawn, subject.image, labels, fills)
        units = [self._unit(key, subject, labels, fills, seen, start) for start in starts]
        if self.surrogate.needs_nothing and not answered:
            # An adaptive run may stop after its first chunk, whatever the next ones ask.
            certain = seen.n_distinct if self.adaptive is None else self.chunk
            if len(fills) > 1 or not seen.asks_nothing_kept(certain):
                units.append(_nothing(subject, labels, fills))
        return units

    @property
    def _keep_share(self) -> float:
        return self.surrogate.keep_share if self.keep_share is None else self.keep_share

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
            rows=("keep", "which"),
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
        return self._merged(subject, done, uncertain=True)

    def merge_map(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """Without the uncertainty, which costs more than the fit; it is infinite here."""
        return self._merged(subject, done, uncertain=False)

    def _merged(
        self, subject: Subject, done: Mapping[str, Arrays], uncertain: bool
    ) -> AttributionMap:
        seen = self._neighbourhood(subject, done)
        answers = _answers(done)
        if self.adaptive is None:
            seen.expect(subject.image_id, len(answers))
        target = target_class(answers[0], subject.target)
        fit = self._fit(seen, done, target, uncertain)
        seen.expect_effective(subject.image_id, len(answers), fit, self.surrogate)
        superpixels = done["superpixels"]["labels"]
        return AttributionMap(
            values=to_shape(fit.weights[superpixels], subject.shape, smooth=False),
            target=target,
            n_forward=len(answers) + (len(done["nothing"]["answers"]) if "nothing" in done else 0),
            extras={
                "superpixels": superpixels,
                "weights": fit.weights,
                "uncertainty": fit.uncertainty,
                "r2": fit.r2,
                "n_effective": fit.n_effective,
            },
        )

    def _fit(
        self,
        seen: Neighbourhood,
        done: Mapping[str, Arrays],
        target: int,
        uncertain: bool = True,
    ) -> LocalFit:
        nothing = None
        if "nothing" in done:
            nothing = float(done["nothing"]["answers"][:, target].mean(dtype=np.float64))
        return fit_of(seen, _answers(done), target, self.surrogate, nothing, uncertain)

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
        return is_settled(fit, areas, self.threshold, self.adaptive, self.seed, self.sign)

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
            self._keep_share,
        )


def _nothing(subject: Subject, superpixels: np.ndarray, fills: np.ndarray) -> Unit:
    """Ask for the image with all superpixels switched off, by each fill, whatever the design."""
    n = len(fills)
    payload = {
        "image": subject.image,
        "superpixels": superpixels,
        "keep": np.packbits(np.zeros((n, int(superpixels.max()) + 1), bool), axis=1),
        "fills": fills,
        "which": np.arange(n),
    }
    key = digest("lime", "nothing kept", fills)
    return Unit("nothing", payload, n_forward=n, question=Question(key, 0, n))


def _answers(done: Mapping[str, Arrays]) -> np.ndarray:
    """Answers so far, `[m, C]`, in the order in which they were asked; empty where none is."""
    chunks = [done[name]["answers"] for name in sorted(done) if name.startswith("samples:")]
    return np.concatenate(chunks) if chunks else np.zeros((0, 0), np.float32)
