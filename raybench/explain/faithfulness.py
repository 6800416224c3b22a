"""Faithfulness of a map: what the model says while pixels go, or come, in the map's order.

A task of the executor, as an explainer is: it plans, runs and merges units of work, so that it
runs in this process or on the model actors, and its answers are kept in the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raybench.answers import digest
from raybench.errors import ExplainError
from raybench.explain.base import joined, need_classifier, target_class
from raybench.explain.fills import Black, Blur, Mean
from raybench.explain.imputation import noisy_linear
from raybench.models.classifier import Classifier
from raybench.settings import Settings, named
from raybench.types import Arrays, Gray, Question, Subject, Unit, Values

if TYPE_CHECKING:
    Background = Black | Mean | Blur
else:
    Background = named(Black | Mean | Blur)
"""What stands where pixels are not shown: one image, drawn from the X-ray alone."""

_SWAPS = ("deletion", "insertion")
_ROAD = ("morf", "lerf")


@dataclass(frozen=True, slots=True)
class Explained:
    """An image and the map whose faithfulness is asked.

    Attributes:
        values: float32 `[H, W]`, signed, for the subject's target; any resolution.
    """

    subject: Subject
    values: Values


@dataclass(frozen=True, slots=True)
class Curves:
    """Probabilities of the target, float64, by share of pixels.

    Attributes:
        target: index of the class.
        shares: `[steps + 1]`, 0 to 1, of pixels deleted or inserted.
        deletion, insertion: `[steps + 1]`, most relevant pixels first.
        road_shares: `[road_steps]`, from 0 to below 1, of pixels imputed.
        morf, lerf: `[road_steps]`, most, and least, relevant pixels first.
        n_forward: forward passes.
    """

    target: int
    shares: NDArray[np.float64]
    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]
    road_shares: NDArray[np.float64]
    morf: NDArray[np.float64]
    lerf: NDArray[np.float64]
    n_forward: int


class Faithfulness(Settings):
    """Insertion and deletion (Petsiuk et al. 2018), and MoRF and LeRF with ROAD's imputation.

    Pixels are ordered by the signed map on the model's own grid: what speaks for the target comes
    first. Equal values are put in an order drawn once from `seed`, the same for all explainers, so
    that none gains by where its plateaus lie.
    """

    steps: int = Field(20, ge=2, le=1000, description="of the insertion and deletion curves")
    road_steps: int = Field(
        10, ge=2, le=100, description="of the MoRF and LeRF curves; all but the last are asked"
    )
    deleted: Background = Field(Black(), description="what stands where pixels are deleted")
    inserted_into: Background = Field(Blur(), description="what pixels are inserted into")
    noise: float = Field(
        0.01, ge=0, le=1, description="of imputed pixels, a share of the grey levels' range"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the noise and of ties")
    chunk: int = Field(32, ge=1, description="forward passes in a unit of work")

    def n_forward_planned(self) -> int:
        """Forward passes a map."""
        return 2 * (self.steps + 1) + 2 * self.road_steps

    def plan(self, explained: Explained, done: Mapping[str, Arrays]) -> list[Unit]:
        """Chunks of each curve.

        Raises:
            ExplainError: the map is not finite.
        """
        if done:
            return []
        image = explained.subject.image
        order = self._order(explained)
        swaps = [unit for kind in _SWAPS for unit in self._swaps(kind, explained.subject, order)]
        return swaps + [unit for kind in _ROAD for unit in self._imputed(kind, image, order)]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Ask a chunk of one curve."""
        model = need_classifier(unit, classifier)
        told = unit.payload
        if "keep" in told:
            asked = model.predict_perturbed(
                told["image"], told["fill"], told["labels"], told["keep"]
            )
            return {"answers": asked}
        images = [
            noisy_linear(told["image"], told["labels"] < row, told["noise"], told["seed"])
            for row in told["row"]
        ]
        return {"answers": model.predict(np.stack(images))}

    def merge(self, explained: Explained, done: Mapping[str, Arrays]) -> Curves:
        """The target's probability along each curve."""
        answers = {kind: joined(done, f"{kind}:") for kind in (*_SWAPS, *_ROAD)}
        target = target_class(answers["deletion"][0], explained.subject.target)
        of_target = {kind: each[:, target].astype(np.float64) for kind, each in answers.items()}
        return Curves(
            target=target,
            shares=np.arange(self.steps + 1) / self.steps,
            road_shares=np.arange(self.road_steps) / self.road_steps,
            n_forward=sum(len(each) for each in answers.values()),
            **of_target,
        )

    def _order(self, explained: Explained) -> NDArray[np.intp]:
        """Pixels of the grid, the most relevant first, `[h * w]`."""
        if not np.isfinite(explained.values).all():
            raise ExplainError("values: expected a finite map, found values that are not")
        h, w = explained.subject.image.shape
        values = np.asarray(explained.values, np.float32)
        if values.shape != (h, w):
            values = np.asarray(cv2.resize(values, (w, h), interpolation=cv2.INTER_AREA))
        ties = np.random.default_rng(self.seed).permutation(h * w)
        return np.lexsort((ties, -values.ravel()))

    def _swaps(self, kind: str, subject: Subject, order: NDArray[np.intp]) -> list[Unit]:
        """Each step is a region of its own, that is shown or not."""
        labels = _steps(order, subject.image, self.steps)
        earlier = np.arange(self.steps)[None] < np.arange(self.steps + 1)[:, None]
        fill = self.deleted if kind == "deletion" else self.inserted_into
        keep = earlier if kind == "insertion" else ~earlier
        drawn = fill.draw(subject, None)[0]
        key = digest("swaps", kind, subject.image, drawn, labels)
        return [
            Unit(
                name=f"{kind}:{start:05d}",
                payload={
                    "image": subject.image,
                    "fill": drawn,
                    "labels": labels,
                    "keep": keep[start:stop],
                },
                n_forward=stop - start,
                question=Question(key, start, stop),
                rows=("keep",),
            )
            for start, stop in self._chunks(len(keep))
        ]

    def _imputed(self, kind: str, image: Gray, order: NDArray[np.intp]) -> list[Unit]:
        labels = _steps(order if kind == "morf" else order[::-1], image, self.road_steps)
        key = digest("road", image, labels, repr(self.noise), str(self.seed))
        told = {"image": image, "labels": labels, "noise": self.noise, "seed": self.seed}
        return [
            Unit(
                name=f"{kind}:{start:05d}",
                payload=told | {"row": np.arange(start, stop)},
                n_forward=stop - start,
                question=Question(key, start, stop),
                rows=("row",),
            )
            for start, stop in self._chunks(self.road_steps)
        ]

    def _chunks(self, n: int) -> list[tuple[int, int]]:
        return [(start, min(start + self.chunk, n)) for start in range(0, n, self.chunk)]


class SweepFaithfulness(Faithfulness):
    """The same, of a sweep."""

    n_images: int | None = Field(
        16, ge=1, description="of the explained Test images, evenly over the list; null: all"
    )


def _steps(order: NDArray[np.intp], image: Gray, n: int) -> NDArray[np.int32]:
    """The step, 0 to n - 1, at which each pixel's turn comes, int32 `[h, w]`."""
    labels = np.empty(image.size, np.int32)
    labels[order] = np.arange(image.size) * n // image.size
    return labels.reshape(image.shape)
