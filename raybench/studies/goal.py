"""The second objective of a search over classifiers: how a trial's explanations localise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from raybench.config_goal import Localisation
from raybench.explain import Explainer
from raybench.models.classifier import Classifier
from raybench.scoring.binarise import binarise, oriented
from raybench.scoring.metrics import METRICS
from raybench.scoring.selection import standard_error
from raybench.studies.context import Context
from raybench.studies.material import target_of
from raybench.training.recipe import Recipe
from raybench.types import Dataset, XrayRecord


@dataclass(frozen=True)
class LocalisationJudge:
    """Explains a few Val images with a trial's checkpoint, in the trial's own process.

    Attributes:
        source: what the images are read from.
        images: each with the index of the class to explain, or None for the predicted one.
    """

    source: Dataset
    images: tuple[tuple[XrayRecord, int | None], ...]
    explainer: Explainer
    score: str

    @classmethod
    def of(cls, context: Context, settings: Localisation) -> LocalisationJudge:
        """The judge that a sweep asks for; it sees Val alone."""
        pool = context.explained["Val"]
        n = len(pool) if settings.n_images is None else min(settings.n_images, len(pool))
        chosen = [pool[i * len(pool) // n] for i in range(n)]
        explainer: Explainer = settings.explainer
        images = tuple((r, target_of(context, explainer, r)) for r in chosen)
        return cls(context.source, images, explainer, settings.score)

    def __call__(self, checkpoint: bytes, recipe: Recipe, device: str) -> float:
        """The mean score over the images, by the explainer's own threshold, in [0, 1].

        Args:
            checkpoint: of the epoch that the trial keeps.
            recipe: whose preprocessing the images go through.
            device: where the classifier runs.

        Raises:
            ExplainError, DataError: an image cannot be explained or read.
        """
        model = Classifier.from_checkpoint(checkpoint, device)
        metric, preprocess = METRICS[self.score].function, recipe.preprocessing
        scores = []
        for record, target in self.images:
            xray = self.source.load(record)
            assert xray.infection_mask is not None  # those of `explained` hold a pixel
            image = preprocess.apply(xray)
            found = self.explainer.attribute(model, image, target, xray.lung_mask)
            clip = xray.lung_mask if self.explainer.clip_to_lungs else None
            values = oriented(found.values, self.explainer.sign)
            salient = binarise(values, self.explainer.threshold, clip, self.explainer.median_filter)
            scores.append(metric(salient, xray.infection_mask))
        return float(np.mean(scores))


def within_one_error(trials: pd.DataFrame, n_images: int, give_up: float = 0.0) -> pd.DataFrame:
    """The trials that accuracy on Val cannot tell from the best of their backbone.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3): with p the best accuracy over
    n images, those of at least p - max(sqrt(p (1 - p) / n), give_up). An accuracy of 1 has no
    standard error: there only `give_up` makes others as good.

    Args:
        trials: `backbone` and `val_accuracy`.
        n_images: of Val.
        give_up: accuracy that localisation is worth.
    """
    top = trials.groupby("backbone").val_accuracy.transform("max")
    error = top.map(lambda p: max(standard_error(p, n_images), give_up))
    # Accuracies are k / n, and 0.8 - 0.1 is more than 0.7 to a float.
    return trials[trials.val_accuracy >= top - error - 1e-9]
