"""What explainers are given of the data set, and when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from raybench.data import Phantom
from raybench.data.preprocess import resize_gray
from raybench.explain import CentrePrior, GradCam, Intensity
from raybench.storage import Storage
from raybench.studies.context import Context
from raybench.studies.material import Material
from raybench.tracking.events import EventLog
from raybench.types import ChestXray, XrayRecord

PHANTOM = Phantom(name="phantom", n_train=4, n_val=1, n_test=1, size=96)


@dataclass
class Watched:
    """A data set that notes what is loaded, and has some masks taken away."""

    masked: bool = True
    loaded: list[str] = field(default_factory=list)
    classes: Sequence[str] = PHANTOM.classes

    def records(self) -> list[XrayRecord]:
        return [
            record
            if self.masked or record.split != "Train"
            else replace(record, infection_mask=None)
            for record in PHANTOM.records()
        ]

    def load(self, record: XrayRecord) -> ChestXray:
        self.loaded.append(record.image_id)
        return PHANTOM.load(next(r for r in PHANTOM.records() if r.image_id == record.image_id))


def context_of(dataset: Any, folder: Path, grid: str = "model") -> Context:
    config = SimpleNamespace(
        varies_preprocess=False,
        base_preprocess=SimpleNamespace(apply=lambda xray: xray.image),
        explain=SimpleNamespace(grid=grid, target="true"),
    )
    run = SimpleNamespace(events=EventLog(Storage(str(folder))))
    return Context(config, run, dataset, tuple(dataset.records()), {})  # type: ignore[arg-type]


def priors(context: Context) -> list[dict[str, Any]]:
    return [event for event in context.run.events.read() if event["kind"] == "centre_prior"]


def test_the_prior_is_the_mean_of_trains_masks_that_hold_a_pixel(tmp_path: Path) -> None:
    data = Watched()
    context = context_of(data, tmp_path)
    material, record = Material(context, {}), data.records()[-1]
    assert material.subject(Intensity(), record, None).prior is None
    assert material.subject(CentrePrior(learned=False), record, None).prior is None
    assert len(data.loaded) == 2
    assert not priors(context)

    train = [r for r in data.records() if r.split == "Train"]
    masks = [PHANTOM.load(r).infection_mask for r in train]
    drawn = [mask for mask in masks if mask is not None and mask.any()]
    assert 0 < len(drawn) < len(masks)
    first = material.subject(CentrePrior(), record, None)
    assert first.prior is not None
    assert (first.prior.shape, first.prior.dtype) == (first.shape, np.float32)
    assert 0 <= first.prior.min() < first.prior.max() <= 1
    # Through 256 x 256 and back: an edge is softened by a pixel.
    np.testing.assert_allclose(first.prior, np.mean(drawn, axis=0), atol=0.3)
    assert first.prior.mean() == pytest.approx(np.mean(drawn), rel=1e-3)
    (event,) = priors(context)
    assert (event["source"], event["n_masks"]) == ("train", len(drawn))

    before = len(data.loaded)
    again = material.subject(CentrePrior(), record, None)
    assert len(data.loaded) == before + 1
    np.testing.assert_array_equal(again.prior, first.prior)
    assert len(priors(context)) == 1


def test_at_covid_qu_exs_size_it_is_exact_and_elsewhere_resized(tmp_path: Path) -> None:
    big = PHANTOM.model_copy(update={"size": 256, "n_train": 2})
    records = big.records()
    context = context_of(big, tmp_path)
    found = Material(context, {}).subject(CentrePrior(), records[-1], None).prior
    masks = [big.load(r).infection_mask for r in records if r.split == "Train"]
    mean = np.mean([m for m in masks if m is not None and m.any()], axis=0).astype(np.float32)
    np.testing.assert_array_equal(found, mean)

    small = PHANTOM.model_copy(update={"size": 64})
    mixed = SimpleNamespace(
        classes=big.classes,
        load=lambda r: (small if r.split == "Test" else big).load(r),
        records=lambda: records,
    )
    other = Material(context_of(mixed, tmp_path), {}).subject(CentrePrior(), records[-1], None)
    np.testing.assert_allclose(
        other.prior, cv2.resize(mean, (64, 64), interpolation=cv2.INTER_AREA), atol=1e-6
    )


def test_without_masks_there_is_none_and_it_is_said_once(tmp_path: Path) -> None:
    data = Watched(masked=False)
    context = context_of(data, tmp_path)
    material = Material(context, {})
    for record in data.records()[-2:]:
        assert material.subject(CentrePrior(), record, None).prior is None
    (event,) = priors(context)
    assert (event["source"], event["n_masks"]) == ("gaussian", 0)
    assert len(data.loaded) == 2


@pytest.mark.parametrize("grid", ["model", "image"])
def test_a_model_sees_its_own_size_and_a_reference_the_images(tmp_path: Path, grid: str) -> None:
    data = Watched()
    material = Material(context_of(data, tmp_path, grid), {"a": (64, 48)})
    record = data.records()[0]
    whole = PHANTOM.load(record)
    with_model = material.subject(GradCam(), record, "a")
    expected = resize_gray(whole.image, (64, 48)) if grid == "model" else whole.image
    np.testing.assert_array_equal(with_model.image, expected)
    assert with_model.shape == (96, 96)
    assert with_model.target == PHANTOM.classes.index(record.label)
    np.testing.assert_array_equal(material.subject(Intensity(), record, None).image, whole.image)
