"""A little noise on X-rays, and which of them a classifier takes for another class with it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from raybench.errors import ExecutionError, RaybenchError
from raybench.executor import Job, Pool, run_jobs
from raybench.explain import WholeLung
from raybench.models.predict import Batch, Predict
from raybench.studies.context import Context
from raybench.studies.material import Material
from raybench.types import Gray, XrayRecord

_SEEDS, _PIXELS = 1, 2
"""Streams of the sweep's seed, so that an explainer's is none of the noise's."""


@dataclass(frozen=True, slots=True)
class Noise:
    """Gaussian noise on the X-ray as it lies in the data set, before any preprocessing.

    Attributes:
        deviation: in grey levels of 0 to 255.
        n: draws an image.
        seed: the sweep's.
    """

    deviation: float
    n: int
    seed: int

    def of(self, image_id: str, number: int) -> Callable[[Gray], Gray]:
        """What adds a draw to an image; rounded, and cut off at 0 and 255."""
        name = zlib.crc32(image_id.encode())

        def change(image: Gray) -> Gray:
            rng = np.random.default_rng([_PIXELS, self.seed, number, name])
            drawn = image + rng.normal(0, self.deviation, image.shape)
            return np.asarray(np.clip(np.rint(drawn), 0, 255), np.uint8)

        return change

    def seed_of(self, number: int) -> int:
        """Another seed of an explainer, 0 to 2**32 - 1."""
        return int(np.random.SeedSequence([_SEEDS, self.seed, number]).generate_state(1)[0])


def classes_that_change(
    context: Context,
    pool: Pool,
    material: Material,
    trial_id: str,
    noise: Noise,
    records: Sequence[XrayRecord],
) -> set[tuple[str, int]]:
    """Images and draws of noise whose predicted class is not that of the image itself.

    An image that cannot be read any more changes none: its maps will say so.

    Raises:
        ExecutionError: the classifier could not be asked.
    """
    table = f"noise_classes_{trial_id}"
    known = context.run.read(table)
    done = set() if known.empty else set(known.image_id)
    todo = [record for record in records if record.image_id not in done]
    jobs = _jobs(material, trial_id, noise, todo)
    for outcome in run_jobs(jobs, pool):
        if outcome.error is not None:
            raise ExecutionError(f"stability: {outcome.key} could not be asked: {outcome.error}")
        predicted = outcome.result.argmax(axis=1)
        rows = [
            {"image_id": outcome.key, "number": n, "changed": bool(of != predicted[0])}
            for n, of in enumerate(predicted[1:])
        ]
        context.run.append(table, pd.DataFrame(rows))
    context.run.compact(table)
    frame = context.run.read(table)
    if frame.empty:
        return set()
    names = {record.image_id for record in records}
    changed = frame[frame.changed & frame.image_id.isin(names)]
    return {(str(i), int(n)) for i, n in zip(changed.image_id, changed.number, strict=True)}


def _jobs(
    material: Material, trial_id: str, noise: Noise, records: Sequence[XrayRecord]
) -> Iterator[Job]:
    """A batch an image: itself, then with every draw of noise."""
    plain = WholeLung()  # a reference's subject is the image alone
    for record in records:
        draws = [None, *(noise.of(record.image_id, n) for n in range(noise.n))]
        try:
            images = [material.subject(plain, record, trial_id, d).image for d in draws]
        except RaybenchError:
            continue
        names = tuple(f"{record.image_id} {n}" for n in range(len(images)))
        yield Job(record.image_id, Predict(), Batch(names, np.stack(images)), trial_id)
