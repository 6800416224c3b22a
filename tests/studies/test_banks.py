"""Neighbours in a sweep: from Train alone, of other patients, and asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raybench.data import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ExecutionError, ExplainError
from raybench.executor.local import LocalPool
from raybench.explain import GradCam, Lime
from raybench.explain.neighbours import Bank, lay_over
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.studies import banks
from raybench.studies.context import Context
from raybench.studies.explain_stage import Item, _jobs
from raybench.studies.material import Material
from raybench.types import ChestXray, XrayRecord

PHANTOM = Phantom(name="phantom", n_train=5, n_val=2, n_test=2, size=96)
SIZE = (64, 64)


@dataclass
class WithPatients:
    """Train's first images are of the patient whose Test image is explained."""

    classes: Sequence[str] = PHANTOM.classes

    def records(self) -> list[XrayRecord]:
        numbers = dict.fromkeys(("Train", "Val", "Test"), 0)
        found = []
        for record in PHANTOM.records():
            number = numbers[record.split]
            numbers[record.split] += 1
            same = record.split != "Val" and number < 2
            found.append(replace(record, patient="p" if same else f"{record.split}{number}"))
        return found

    def load(self, record: XrayRecord) -> ChestXray:
        return PHANTOM.load(next(r for r in PHANTOM.records() if r.image_id == record.image_id))


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch.manual_seed(0)
    return save_checkpoint(build("test_resnet", 3), Card("test_resnet", ("a", "b", "c"), SIZE))


class Noted(LocalPool):
    """Counts the passes that are made."""

    passes = 0

    def next(self) -> Any:
        answer = super().next()
        self.passes += answer.n_forward
        return answer


def context_of() -> Context:
    dataset = WithPatients()
    records = tuple(dataset.records())
    explained = {s: tuple(r for r in records if r.split == s)[:1] for s in ("Val", "Test")}
    config = SimpleNamespace(
        varies_preprocess=False,
        base_preprocess=Preprocess(),
        explain=SimpleNamespace(grid="model", target="predicted"),
    )
    run = SimpleNamespace(events=None)
    return Context(config, run, dataset, records, explained)  # type: ignore[arg-type]


@pytest.mark.parametrize("embedding", ["features", "pixels"])
def test_neighbours_are_the_nearest_of_train_and_of_other_patients(
    embedding: str, checkpoint: bytes, tmp_path: Path
) -> None:
    context = context_of()
    lime = Lime.model_validate({"fill": {"name": "neighbour", "n": 3, "embedding": embedding}})
    pool = Noted(lambda key: checkpoint, 1, store=str(tmp_path))
    material = Material(context, {"t0": SIZE})
    material.prepare(pool, [("t0", lime), ("t0", GradCam())])
    explained = context.explained["Test"][0]
    found = material.subject(lime, explained, "t0")
    assert found.neighbours is not None
    assert found.neighbours.shape == (3, *SIZE)
    assert material.subject(GradCam(), explained, "t0").neighbours is None

    train = context.of("Train")
    images = [Preprocess().apply(context.dataset.load(r)) for r in (*train, explained)]
    if embedding == "features":
        model = Classifier.from_checkpoint(checkpoint)
        features = model.embed(np.stack([resize_gray(image, SIZE) for image in images]))
        assert pool.passes == len(train) + 2
        again = Noted(lambda key: checkpoint, 1, store=str(tmp_path))
        Material(context, {"t0": SIZE}).prepare(again, [("t0", lime)])
        assert again.passes == 0
    else:
        small = [resize_gray(image, (16, 16)).astype(float).ravel() for image in images]
        features = np.stack([row - row.mean() for row in small])
        assert pool.passes == 0
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    order = np.argsort(-(features[:-1] @ features[-1]), kind="stable")
    others = [int(i) for i in order if train[i].patient != "p"][:3]
    assert len(others) == 3
    assert others != [int(i) for i in order[:3]], "the patient's own images are the nearest here"
    lungs = context.dataset.load(explained).lung_mask
    expected = [
        lay_over(images[i], context.dataset.load(train[i]).lung_mask, found.image, lungs)
        for i in others
    ]
    np.testing.assert_array_equal(found.neighbours, expected)


def test_what_cannot_be_had_is_refused(checkpoint: bytes, tmp_path: Path) -> None:
    context = context_of()
    material = Material(context, {"t0": SIZE})
    pool = LocalPool(lambda key: checkpoint, 1)
    many = Lime.model_validate({"fill": {"name": "neighbour", "n": 14, "embedding": "pixels"}})
    material.prepare(pool, [("t0", many)])
    with pytest.raises(ExplainError, match="expected 14 neighbours of other patients"):
        material.subject(many, context.explained["Test"][0], "t0")
    broken = LocalPool(lambda key: b"", 1)
    with pytest.raises(ExecutionError, match="features of t0: ModelError"):
        material.prepare(broken, [("t0", Lime.model_validate({"fill": "neighbour"}))])


def test_one_bank_serves_all_images_of_a_model_until_it_is_released(
    checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Bank] = []

    class Counted(Bank):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(banks, "Bank", Counted)
    context = context_of()
    material = Material(context, {"t0": SIZE, "t1": SIZE})
    lime = Lime.model_validate({"fill": "neighbour"})
    pool = LocalPool(lambda key: checkpoint, 1)
    material.prepare(pool, [("t0", lime), ("t1", lime)])
    records = [*context.explained["Val"], *context.explained["Test"]]
    first = [material.subject(lime, r, t).neighbours for t in ("t0", "t1") for r in records]
    assert len(made) == 2
    material.release("t0")
    material.release("t0")
    with pytest.raises(KeyError):
        material.subject(lime, records[0], "t0")
    still = material.subject(lime, records[0], "t1").neighbours
    np.testing.assert_array_equal(still, first[2])


def test_a_trial_whose_images_have_all_been_begun_is_released() -> None:
    told: list[str] = []

    class Told:
        def release(self, trial_id: str) -> None:
            told.append(f"release {trial_id}")

        def subject(self, explainer: Any, record: XrayRecord, trial_id: str | None) -> Any:
            told.append(f"subject {trial_id}")
            return None

    record = context_of().explained["Val"][0]
    todo = [Item(t, e, record) for t in ("t0", "t1") for e in (Lime(), GradCam())]
    list(_jobs(Told(), todo, {}, None))  # type: ignore[arg-type]
    after = told.index("release t0")
    assert told[after - 1 : after + 2] == ["subject t0", "release t0", "subject t1"]
    assert told.count("subject t0") == 2
    assert "release t1" not in told[: told.index("subject t1")]
