"""Units in this process, one after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from raybench.answers import AnswerStore
from raybench.executor.jobs import Answer, Task, failed
from raybench.models.classifier import Classifier
from raybench.models.randomise import depth_of, randomised
from raybench.models.runtime import EAGER, Runtime, check_backend, keep_memory, split_key
from raybench.types import Unit


class Resident:
    """Keeps the classifiers last used; loading one costs more than many units.

    Args:
        runtime: of every classifier, but for a precision that a key names.
        device: `cpu` or `cuda`.
        keep: how many classifiers.
    """

    def __init__(self, runtime: Runtime, device: str, keep: int = 2) -> None:
        self._runtime, self._device, self._keep = runtime, device, keep
        self._loaded: dict[str, Classifier] = {}

    def get(self, key: str, read: Callable[[], bytes]) -> Classifier:
        """The classifier of a model's key; `read` is called where it is not here yet.

        Raises:
            ModelError: the checkpoint does not load, or cannot be run as the runtime asks.
        """
        found = self._loaded.pop(key, None)
        if found is None:
            checkpoint, precision = split_key(key)
            runtime = replace(self._runtime, precision=precision or self._runtime.precision)
            data, depth = read(), depth_of(key)
            if depth is not None:
                data = randomised(data, *depth, checkpoint)
            found = Classifier.from_checkpoint(data, self._device, runtime, checkpoint)
        self._loaded[key] = found
        while len(self._loaded) > self._keep:
            self._loaded.pop(next(iter(self._loaded)))
        return found


def do_unit(
    ticket: int, task: Task, unit: Unit, classifier: Classifier | None, store: AnswerStore | None
) -> Answer:
    """One unit; an error becomes an answer, so that it sinks nothing else (but `stops_all`)."""
    started = time.perf_counter()
    try:
        if store is None:
            arrays, n_forward = task.run(unit, classifier), unit.n_forward
        else:
            identity = None if classifier is None else classifier.identity
            arrays, n_forward = store.answer(unit, identity, lambda: task.run(unit, classifier))
    except Exception as problem:  # recorded for this image; the others go on
        return failed(ticket, problem, time.perf_counter() - started)
    return Answer(ticket, arrays, None, time.perf_counter() - started, n_forward)


class LocalPool:
    """Does units when asked for the next answer.

    Args:
        models: reads a checkpoint by its key.
        n_threads: threads of torch; the same number gives the same bits as a Ray worker.
        runtime: how forward passes are made.
        store: folder where answers are kept; None: nothing is.
    """

    def __init__(
        self,
        models: Callable[[str], bytes],
        n_threads: int,
        runtime: Runtime = EAGER,
        store: str | None = None,
    ) -> None:
        self._store = None if store is None else AnswerStore(store)
        torch.set_num_threads(n_threads)
        keep_memory()
        self._models = models
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        check_backend(runtime.backend, self.device)
        self._resident = Resident(runtime, self.device)
        self._queue: deque[tuple[int, Task, Unit, str | None]] = deque()

    @property
    def slots(self) -> int:
        """One: there is nothing to gain from more."""
        return 1

    @property
    def free_slots(self) -> int:
        """None: units without a model go the way of the others."""
        return 0

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        """Put a unit in the queue."""
        self._queue.append((ticket, task, unit, model))

    def hurry(self) -> None:
        """There is one worker, and it is busy."""

    def next(self) -> Answer:
        """Do the oldest unit."""
        ticket, task, unit, model = self._queue.popleft()
        try:
            classifier = (
                None
                if model is None
                else self._resident.get(model, lambda: self._models(split_key(str(model))[0]))
            )
        except Exception as problem:  # a checkpoint that does not load fails its own images only
            return failed(ticket, problem)
        return do_unit(ticket, task, unit, classifier, self._store)

    def close(self) -> None:
        """Nothing is held."""
