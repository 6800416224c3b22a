"""Judging, at the end of training, the trials that a budget stopped before they were."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from raybench.errors import RaybenchError
from raybench.storage import Storage
from raybench.studies.context import Context
from raybench.training.trial import Judge
from raybench.training.tune import TrialResult


def judged(
    context: Context, judge: Judge | None, results: Sequence[TrialResult], name: str
) -> Iterator[TrialResult]:
    """The trials; one that the budget stopped is judged here, so that it counts for the choice.

    One that failed is not: it is known by its accuracy alone. Each judgement is written down at
    once, so that a killed driver asks for none of them again.

    Args:
        name: file in the run folder that holds the judgements, by digest of what was judged.
    """
    for result in results:
        told = result.localisation is not None or result.status == "failed"
        if judge is None or told or result.checkpoint is None:
            yield result
            continue
        data = context.run.storage.read(result.checkpoint)
        key, known = hashlib.sha256(data).hexdigest(), _known(context.run.storage, name)
        if key not in known:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            try:
                known[key] = judge(data, result.recipe, device)
            except RaybenchError as error:
                context.warn_once(f"trial {result.trial_id} could not be judged: {error}")
                yield result
                continue
            context.run.storage.write(name, json.dumps(known).encode())
        yield replace(result, localisation=known[key])


def _known(storage: Storage, name: str) -> dict[str, float]:
    if not storage.exists(name):
        return {}
    return {key: float(score) for key, score in json.loads(storage.read(name)).items()}
