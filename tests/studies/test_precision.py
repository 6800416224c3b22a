"""The choice of a precision: maps in, precision out; and with two precisions on a CPU worker."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from raybench.data import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ModelError
from raybench.executor import Execution, Job, make_pool
from raybench.executor.jobs import Answer, Task
from raybench.executor.local import LocalPool, Resident
from raybench.explain import Explainer, GradCam, Lime
from raybench.models.runtime import Runtime, split_key, with_precision
from raybench.storage import Storage
from raybench.studies.precision import choose_precision, decide, model_keys
from raybench.tracking.events import EventLog
from raybench.types import Subject, Unit, XrayRecord


def field(n_salient: int, n: int = 400) -> np.ndarray:
    """A map of 20 x 20 whose first pixels are salient."""
    return (np.arange(n) < n_salient).astype(np.float32).reshape(20, 20)


@pytest.mark.parametrize(
    ("pairs", "chosen", "ious"),
    [
        ([(field(200), field(200)), (field(200), field(198))], "bfloat16", [1.0, 0.99]),
        ([(field(200), field(200)), (field(200), field(197))], "float32", [1.0, 0.985]),
        ([(field(200), -3 + 7 * field(200))], "bfloat16", [1.0]),
        ([(field(0), field(0))], "bfloat16", [1.0]),
        ([(field(0), field(10))], "float32", [0.0]),
        ([], "float32", []),
    ],
    ids=["at the limit", "below it", "other scale", "empty", "one empty", "no images"],
)
def test_bfloat16_only_where_the_least_alike_masks_are_the_same(
    pairs: list[tuple[np.ndarray, np.ndarray]], chosen: str, ious: list[float]
) -> None:
    precision, found = decide(pairs)
    assert precision == chosen
    np.testing.assert_allclose(found, ious)


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    data = Phantom(name="phantom", n_train=1, n_val=3, n_test=1, size=96)
    found = []
    for record in [r for r in data.records() if r.split == "Val"][:3]:
        xray = data.load(record)
        image = resize_gray(Preprocess().apply(xray), (64, 64))
        subject = Subject(record.image_id, image, xray.lung_mask, (96, 96))
        found.append(Job(record.image_id, Lime(n_samples=120), subject, "t0"))
    return found


class Noted(LocalPool):
    """Writes down what is asked."""

    asked: list[str | None]

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        self.asked = [*getattr(self, "asked", []), model]
        super().submit(ticket, task, unit, model)


def test_both_precisions_are_run_and_the_choice_is_kept(
    checkpoint: bytes, jobs: list[Job], tmp_path: Path
) -> None:
    events = EventLog(Storage(str(tmp_path)))
    pool = Noted(lambda key: {"t0": checkpoint}[key], 1)
    chosen = choose_precision("t0", jobs, pool, events)
    assert set(pool.asked) == {None, "t0@float32", "t0@bfloat16"}
    (event,) = events.read()
    assert (event["kind"], event["trial_id"]) == ("precision_chosen", "t0")
    assert (event["precision"], event["errors"]) == (chosen, [])
    assert len(event["ious"]) == 3
    assert (chosen == "bfloat16") == (min(event["ious"]) >= 0.99)
    pool.asked = []
    assert choose_precision("t0", jobs, pool, events) == chosen
    assert pool.asked == []
    assert len(events.read()) == 1


def test_an_image_that_fails_chooses_float32(
    checkpoint: bytes, jobs: list[Job], tmp_path: Path
) -> None:
    class Fails(LocalPool):
        def next(self) -> Answer:
            ticket, _, _, model = self._queue[0]
            answer = super().next()
            bad = model is not None and model.endswith("bfloat16")
            return Answer(ticket, None, "planted", 0.0) if bad else answer

    events = EventLog(Storage(str(tmp_path)))
    pool = Fails(lambda key: checkpoint, 1)
    assert choose_precision("t0", jobs, pool, events) == "float32"
    assert (events.read()[0]["errors"], events.read()[0]["ious"]) == (["planted"], [])


def test_a_key_names_the_precision_that_its_classifier_runs_in(checkpoint: bytes) -> None:
    resident = Resident(Runtime(), "cpu")
    found = {
        key: resident.get(key, lambda: checkpoint)
        for key in ("t0", with_precision("t0", "bfloat16"))
    }
    assert [c.runtime.precision for c in found.values()] == ["float32", "bfloat16"]
    assert len({c.identity for c in found.values()}) == 2
    assert resident.get("t0", lambda: b"") is found["t0"]
    assert split_key("t0") == ("t0", None)
    with pytest.raises(ModelError, match=r"expected a precision of float32, bfloat16.*'int8'"):
        split_key("t0@int8")


def test_settings_reach_the_classifier(checkpoint: bytes) -> None:
    pool = make_pool(
        Execution(mode="local", precision="bfloat16", batch_size=5), lambda key: checkpoint
    )
    assert isinstance(pool, LocalPool)
    classifier = pool._resident.get("t0", lambda: checkpoint)
    assert classifier.runtime == Runtime("folded", "bfloat16", 5, 1)
    assert classifier.batch_size == 5
    assert Execution().runtime == Runtime("auto", "float32", None, 1)


def test_keys_name_a_precision_only_where_there_is_one_to_choose(
    checkpoint: bytes, jobs: list[Job], tmp_path: Path
) -> None:
    made: list[tuple[str, str]] = []

    def make_job(trial_id: str, explainer: Explainer, record: XrayRecord) -> Job:
        made.append((trial_id, record.image_id))
        return jobs[len(made) % 3]

    def keys(device: str, precision: str, *explainers: Explainer) -> dict[str, str]:
        context = SimpleNamespace(
            config=SimpleNamespace(
                explain=SimpleNamespace(explainers=explainers),
                execution=Execution(precision=precision),
            ),
            explained={"Val": tuple(XrayRecord(f"i{n}", "Val", "a", "") for n in range(7))},
            run=SimpleNamespace(events=events),
        )
        pool = LocalPool(lambda key: checkpoint, 1)
        pool.device = device  # a GPU's choice, made on a CPU
        return model_keys(context, pool, ["t0", "t1"], make_job)

    events, lime = EventLog(Storage(str(tmp_path))), Lime(n_samples=60)
    assert keys("cpu", "auto", lime) == {}
    assert keys("cuda", "float32", lime) == {}
    assert keys("cuda", "auto", GradCam()) == {}
    assert events.read() == made == []
    found = keys("cuda", "auto", GradCam(), lime)
    assert made == [(t, i) for t in ("t0", "t1") for i in ("i0", "i2", "i4")]
    chosen = {event["trial_id"]: event["precision"] for event in events.read()}
    assert found == {trial: f"{trial}@{precision}" for trial, precision in chosen.items()}
    assert set(found) == {"t0", "t1"}
