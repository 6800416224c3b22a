"""Prediction and features as units of work, so that they fan out like explaining does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.answers import digest
from raybench.errors import ModelError
from raybench.models.classifier import Classifier
from raybench.types import Arrays, Question, Unit


@dataclass(frozen=True, slots=True)
class Batch:
    """A few preprocessed images, uint8 `[N, h, w]`, and their names."""

    image_ids: tuple[str, ...]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Predict:
    """Class probabilities of a `Batch`."""

    def plan(self, subject: Batch, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit a batch."""
        if done:
            return []
        return [Unit("predict", {"pixels": subject.pixels}, n_forward=len(subject.image_ids))]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Ask the classifier."""
        if classifier is None:
            raise ModelError("a prediction needs a classifier and was given none")
        return {"probabilities": classifier.predict(unit.payload["pixels"])}

    def merge(self, subject: Batch, done: Mapping[str, Arrays]) -> NDArray[np.float32]:
        """float32 `[N, C]`."""
        return np.asarray(done["predict"]["probabilities"], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Embed:
    """The network's own features of a `Batch`, by which images are near to each other."""

    def plan(self, subject: Batch, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit a batch, whose answer is worth keeping."""
        if done:
            return []
        n = len(subject.image_ids)
        question = Question(digest("embed", subject.pixels), 0, n)
        return [Unit("embed", {"pixels": subject.pixels}, n_forward=n, question=question)]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Ask the classifier."""
        if classifier is None:
            raise ModelError("features need a classifier and were given none")
        return {"features": classifier.embed(unit.payload["pixels"])}

    def merge(self, subject: Batch, done: Mapping[str, Arrays]) -> NDArray[np.float32]:
        """float32 `[N, d]`."""
        return np.asarray(done["embed"]["features"], dtype=np.float32)
