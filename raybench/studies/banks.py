"""Banks of neighbours: Train's images by what a model makes of them, for KP-LIME and K*LIME."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from cachetools import LRUCache, cached
from numpy.typing import NDArray

from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ExecutionError
from raybench.executor import Job, Pool, run_jobs
from raybench.explain.fills import Neighbour
from raybench.explain.neighbours import Bank, pixel_features
from raybench.models.predict import Batch, Embed
from raybench.studies.context import Context, progress_bar
from raybench.types import Gray, Mask, XrayRecord

_BATCH = 32
_KEPT_BYTES = 64 * 2**20
"""Of Train's images decoded: those that are near to one image are near to others."""

_Name = tuple[str, str]
_Decoded = tuple[Gray, Mask | None]
_Features = dict[_Name, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one model makes of the images: Train's as a bank, the features of those explained."""

    bank: Bank
    explained: Mapping[_Name, NDArray[np.float32]]


class Banks:
    """Neighbours of the images that are explained, for each model.

    Features are asked for once, in `prepare`, before any image is explained; they cost a forward
    pass for each image of Train and each explained one, and are kept in the store of answers, and
    here until they are released.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._train = context.of("Train")
        # By trial; where images are compared by their pixels, by what these went through.
        self._seen: dict[str | Preprocess, _Seen] = {}
        kept: LRUCache[tuple[int, Preprocess], _Decoded] = LRUCache(_KEPT_BYTES, _n_bytes)
        self._load = cached(kept)(
            lambda number, preprocess: self._decode(self._train[number], preprocess)
        )

    def prepare(
        self, pool: Pool, trial_id: str, size: tuple[int, int], fills: Iterable[Neighbour]
    ) -> None:
        """Look at all images with every embedding that a trial's fills ask for.

        Args:
            size: `(height, width)` that the trial's model takes.

        Raises:
            ExecutionError: the model has no features to give.
        """
        embeddings = {fill.embedding for fill in fills}
        preprocess = self._context.preprocess_of(trial_id)
        if "pixels" in embeddings and preprocess not in self._seen:
            features = {
                _name(record): pixel_features([self._image(record, preprocess)])[0]
                for record in self._all
            }
            self._seen[preprocess] = self._sorted(features, preprocess)
        if "features" in embeddings and trial_id not in self._seen:
            asked = self._ask(pool, trial_id, size, preprocess)
            self._seen[trial_id] = self._sorted(asked, preprocess)

    def near(
        self, trial_id: str, record: XrayRecord, image: Gray, lungs: Mask | None, fill: Neighbour
    ) -> NDArray[np.uint8]:
        """The neighbours that a fill shows in an image, laid over it, uint8 `[n, h, w]`.

        Args:
            image: uint8 `[h, w]`, on the grid where it is perturbed.

        Raises:
            ExplainError: Train has too few images of other patients.
        """
        by_pixels = fill.embedding == "pixels"
        seen = self._seen[self._context.preprocess_of(trial_id) if by_pixels else trial_id]
        feature = seen.explained[_name(record)]
        return seen.bank.neighbours(image, lungs, feature, fill.n, record.patient, fill.among)

    def release(self, trial_id: str) -> None:
        """Drop what a trial's model made of the images; its `prepare` would have to come again."""
        self._seen.pop(trial_id, None)

    def _sorted(self, features: _Features, preprocess: Preprocess) -> _Seen:
        train = self._train
        bank = Bank(
            np.stack([features.pop(_name(record)) for record in train]),
            lambda number: self._load(number, preprocess),
            [record.label for record in train],
            [record.patient for record in train],
        )
        return _Seen(bank, features)

    @property
    def _all(self) -> Sequence[XrayRecord]:
        explained = self._context.explained
        return [*self._train, *explained["Val"], *explained["Test"]]

    def _ask(
        self, pool: Pool, trial_id: str, size: tuple[int, int], preprocess: Preprocess
    ) -> _Features:
        records = self._all
        bar = progress_bar(len(records), f"neighbours of {trial_id}", "image")
        found: _Features = {}
        try:
            jobs = self._jobs(trial_id, size, records, preprocess)
            for outcome in run_jobs(jobs, pool, lambda unit, _: bar.update(unit.n_forward)):
                if outcome.error is not None:
                    raise ExecutionError(f"features of {trial_id}: {outcome.error}")
                assert isinstance(outcome.key, tuple)
                found |= dict(zip(outcome.key, outcome.result, strict=True))
        finally:
            bar.close()
        return found

    def _jobs(
        self,
        trial_id: str,
        size: tuple[int, int],
        records: Sequence[XrayRecord],
        preprocess: Preprocess,
    ) -> Iterator[Job]:
        feed = iter(records)
        while batch := list(islice(feed, _BATCH)):
            images = [self._image(record, preprocess) for record in batch]
            pixels = np.stack([resize_gray(image, size) for image in images])
            names = tuple(record.image_id for record in batch)
            yield Job(tuple(map(_name, batch)), Embed(), Batch(names, pixels), trial_id)

    def _image(self, record: XrayRecord, preprocess: Preprocess) -> Gray:
        return self._decode(record, preprocess)[0]

    def _decode(self, record: XrayRecord, preprocess: Preprocess) -> _Decoded:
        # Train is the classifiers'; all others are explained.
        of = self._context.dataset if record.split == "Train" else self._context.source
        xray = of.load(record)
        return preprocess.apply(xray), xray.lung_mask


def _name(record: XrayRecord) -> _Name:
    """Apart from that of another data set's image: of that no image is in Train."""
    return record.split, record.image_id


def _n_bytes(decoded: _Decoded) -> int:
    image, lungs = decoded
    return image.nbytes + (0 if lungs is None else lungs.nbytes)
