"""One image's forward passes spread over all workers, for a person who waits for its maps."""

from __future__ import annotations

import time
from dataclasses import replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from raybench.errors import ExplainError
from raybench.executor import Execution, Job, make_pool, run_jobs
from raybench.explain import Explainer
from raybench.models.classifier import Classifier
from raybench.storage import Storage
from raybench.types import AttributionMap, Mask

_FEWEST = 8
"""Forward passes of a unit at least: a smaller batch costs hardly less than one of these."""

_MODEL = "checkpoint"


class Spread:
    """Workers that keep one classifier loaded between X-rays. Ray has to be started or joined
    (`raybench.cli.cluster.start_ray`), but for `mode="local"`.

    An explainer whose passes do not depend on one another (the LIME family without `adaptive`,
    RISE, occlusion, Score-CAM) is cut into two units a worker; any other runs as it is, on one.
    Maps are those of `Explainer.attribute` but for the rounding of other batches.

    Args:
        path: `runs/<name>/checkpoints/<trial>.safetensors`.
        execution: how many workers, of how many cores and GPUs; by default all that there is
            room for.

    Raises:
        StorageError: there is no such file.
        ModelError: it is no checkpoint of raybench.
        ExecutionError: the cluster has no room for a worker.
    """

    def __init__(self, path: str, execution: Execution | None = None) -> None:
        folder, _, name = path.replace("\\", "/").rpartition("/")
        data = Storage(folder or ("/" if path.startswith("/") else ".")).read(name)
        self._classifier = Classifier.from_checkpoint(data, where=path)
        self._pool = make_pool(execution or Execution(), lambda key: data)

    def __enter__(self) -> Spread:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def attribute(
        self,
        explainer: Explainer,
        image: NDArray[np.uint8],
        target: int | None = None,
        lung_mask: Mask | None = None,
    ) -> AttributionMap:
        """One map. The first one takes longer: workers load the classifier then.

        Args:
            image, target, lung_mask: as for `Explainer.attribute`.

        Returns:
            As of `Explainer.attribute`; `extras["seconds"]` is the time that the person waited.

        Raises:
            ExplainError: as for `Explainer.attribute`, or a unit of it failed.
        """
        started = time.perf_counter()
        subject = explainer.subject(self._classifier, image, target, lung_mask)
        task = _cut(explainer, self._pool.slots)
        model = _MODEL if explainer.uses_model else None
        (outcome,) = run_jobs([Job(explainer.title, task, subject, model)], self._pool)
        if outcome.error is not None:
            raise ExplainError(f"{explainer.title}: {outcome.error}")
        found = outcome.result
        assert isinstance(found, AttributionMap)
        told = {"seconds": time.perf_counter() - started, "n_asked": outcome.n_forward}
        return replace(found, extras={**found.extras, **told})

    def close(self) -> None:
        """Let go of the workers."""
        self._pool.close()


def _cut(explainer: Explainer, n_units: int) -> Explainer:
    """The same explainer in so many units, where it has a `chunk` to be made smaller."""
    chunk = getattr(explainer, "chunk", None)
    if chunk is None or getattr(explainer, "adaptive", None) is not None:
        return explainer
    wanted = max(_FEWEST, -(-explainer.n_forward_planned() // n_units))
    return explainer.model_copy(update={"chunk": min(chunk, wanted)})
