"""Prediction as a unit of work, so that it fans out like explaining does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raybench.errors import ModelError
from raybench.models.classifier import Classifier
from raybench.types import Arrays, Unit


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
