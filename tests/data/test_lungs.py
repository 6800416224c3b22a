"""Predicted lung masks: what is made of probabilities, and a data set that reads them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raybench.data.lungs import WithLungs, is_predicted, lungs_of
from raybench.data.phantom import Phantom
from raybench.errors import BadImageError
from raybench.storage import Storage
from raybench.types import ChestXray, XrayRecord


class Without(Phantom):
    """Phantoms of which Val's have no lung masks."""

    def records(self) -> list[XrayRecord]:
        return [replace(r, lung_mask=None) if r.split == "Val" else r for r in super().records()]

    def load(self, record: XrayRecord) -> ChestXray:
        there = next(r for r in super().records() if r.image_id == record.image_id)
        xray = super().load(there)
        lungs = xray.lung_mask if record.lung_mask is not None else None
        return replace(xray, record=record, lung_mask=lungs)


def test_the_two_largest_regions_are_kept_and_their_holes_filled() -> None:
    found = np.zeros((20, 30), np.float32)
    found[2:12, 2:10] = 0.9
    found[5:7, 4:6] = 0.1  # a hole
    found[4:14, 15:24] = 0.51
    found[16:19, 3:7] = 1.0  # the stomach's air
    wanted = np.zeros((20, 30), bool)
    wanted[2:12, 2:10] = wanted[4:14, 15:24] = True
    np.testing.assert_array_equal(lungs_of(found), wanted)
    found[4:14, 15:24] = 0.5  # not above: the third takes its place
    wanted[4:14, 15:24] = False
    wanted[16:19, 3:7] = True
    np.testing.assert_array_equal(lungs_of(found), wanted)


def test_nothing_above_the_threshold_is_an_empty_mask() -> None:
    found = lungs_of(np.full((5, 6), 0.3, np.float32))
    assert found.dtype == bool
    assert found.shape == (5, 6)
    assert not found.any()


def test_a_data_set_reads_predicted_masks_where_it_has_none(tmp_path: Path) -> None:
    inner = Without(name="phantom", n_train=1, n_val=1, n_test=1, size=64)
    data = WithLungs(inner, Storage(str(tmp_path)))
    data = pickle.loads(pickle.dumps(data))
    assert (data.classes, data.infection_class) == (inner.classes, "COVID-19")
    records = data.records()
    assert [is_predicted(r) for r in records] == [r.split == "Val" for r in records]
    train, val = records[0], records[3]
    np.testing.assert_array_equal(data.load(train).lung_mask, inner.load(train).lung_mask)
    with pytest.raises(BadImageError):
        data.load(val)
    assert not data.has(val)
    mask = np.zeros((64, 64), bool)
    mask[10:40, 5:20] = True
    data.write(val, mask)
    assert data.has(val)
    xray = data.load(val)
    np.testing.assert_array_equal(xray.lung_mask, mask)
    assert xray.record is val
    np.testing.assert_array_equal(xray.image, inner.load(inner.records()[3]).image)
