"""The folder reader: what it reads, and that it names every mistake at once."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from raybench.data.folder import Folder
from raybench.data.images import encode_png
from raybench.errors import DataError
from raybench.storage import Storage

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8)
SOUND = """image,label,split,lung_mask,infection_mask,patient,age
b/2.png,sick,Test,,m/2.png,p2,50
a/1.png,well,Train,m/1.png,,p1,60

a/3.png , sick , Train , , , ,
"""


def reader(root: object, **settings: object) -> Folder:
    return Folder.model_validate(
        {"name": "folder", "root": str(root), "infection_class": "sick", **settings}
    )


def plant(root: object, index: str = SOUND) -> None:
    storage = Storage(str(root))
    for name in ("a/1.png", "b/2.png", "a/3.png"):
        storage.write(name, encode_png(GRAY))
    for name in ("m/1.png", "m/2.png"):
        storage.write(name, encode_png(GRAY > 20))
    storage.write("index.csv", index.encode())


@pytest.mark.parametrize("place", ["local", "bucket"])
def test_reads_what_the_index_says(tmp_path: Path, place: str) -> None:
    root = tmp_path if place == "local" else f"memory://{uuid.uuid4().hex}/xrays"
    plant(root)
    data = reader(root)
    assert data.classes == ("sick", "well")
    records = data.records()
    assert [(r.image_id, r.split, r.label) for r in records] == [
        ("a/3.png", "Train", "sick"),
        ("a/1.png", "Train", "well"),
        ("b/2.png", "Test", "sick"),
    ]
    assert [r.patient for r in records] == [None, "p1", "p2"]
    plain, lungs, infected = (data.load(r) for r in records)
    assert plain.lung_mask is None
    assert plain.infection_mask is None
    np.testing.assert_array_equal(lungs.lung_mask, GRAY > 20)
    np.testing.assert_array_equal(infected.infection_mask, GRAY > 20)
    np.testing.assert_array_equal(infected.image, GRAY)


def test_classes_may_be_ordered_and_survive_a_dump(tmp_path: Path) -> None:
    plant(tmp_path)
    data = reader(tmp_path, classes=["well", "sick"])
    assert data.classes == ("well", "sick")
    assert [r.label for r in data.records()] == ["well", "sick", "sick"]
    assert Folder.model_validate(data.model_dump()) == data
    with pytest.raises(ValidationError, match="infection_class: expected one of"):
        reader(tmp_path, classes=["well", "ill"])
    with pytest.raises(ValidationError, match="at least two different labels"):
        reader(tmp_path, classes=["sick"])


def test_every_mistake_at_once_with_its_line(tmp_path: Path) -> None:
    plant(
        tmp_path,
        "image,label,split,patient,infection_mask\n"
        "a/1.png,well,Train,john-roe,\n"
        "a/./1.png,well,Train,,\n"
        "b/2.png,sick,Test,john-roe,m/9.png\n"
        "b/9.png,ill,test,,\n"
        "../a/3.png,sick,Val,,\n"
        ",,Val,,\n",
    )
    with pytest.raises(DataError) as caught:
        reader(tmp_path, classes=["well", "sick"]).records()
    assert [p.split(" below the root")[0] for p in caught.value.problems] == [
        "line 2: patient: that of 'a/1.png' is in more than one split, here Train",
        "line 3: image: 'a/1.png' stands in line 2 already",
        "line 4: infection_mask: no file 'm/9.png'",
        "line 4: patient: that of 'b/2.png' is in more than one split, here Test",
        "line 5: image: no file 'b/9.png'",
        "line 5: label: expected well, sick, found 'ill'",
        "line 5: split: expected Train, Val, Test, found 'test'",
        f"line 6: image: '../a/3.png' leads out of {tmp_path}: use a path below it",
        "line 7: image: expected a path",
        "line 7: label: expected a class name, found nothing",
    ]
    assert "john" not in str(caught.value)


def test_without_a_column_patients_are_dealt(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    rows = ["image,label,patient"]
    for i in range(60):
        storage.write(f"x/{i}.png", encode_png(GRAY))
        rows.append(f"x/{i}.png,{'sick' if i % 3 else 'well'},{f'jane-{i // 4}' if i < 40 else ''}")
    storage.write("index.csv", "\n".join(rows).encode())
    records = reader(tmp_path).records()
    assert records == reader(tmp_path).records()
    where = {r.patient: {o.split for o in records if o.patient == r.patient} for r in records}
    assert all(len(splits) == 1 for patient, splits in where.items() if patient is not None)
    assert where[None] == {"Train", "Val", "Test"}, "images of unknown patients are dealt alone"
    counts = {s: sum(r.split == s for r in records) for s in ("Train", "Val", "Test")}
    assert counts == pytest.approx({"Train": 42, "Val": 9, "Test": 9}, abs=2)
    assert {r.label for r in records if r.split == "Val"} == {"sick", "well"}
    larger = reader(tmp_path, splits={"val": 0.3, "seed": 2}).records()
    assert sum(r.split == "Val" for r in larger) == pytest.approx(18, abs=2)
    assert Folder.model_validate(reader(tmp_path, splits={"val": 0.3}).model_dump()).splits


def test_a_column_and_shares_are_one_too_many(tmp_path: Path) -> None:
    plant(tmp_path)
    with pytest.raises(DataError, match="has a column split, and the setting splits"):
        reader(tmp_path, splits={"val": 0.2}).records()


def test_long_lists_of_mistakes_are_cut_and_counted(tmp_path: Path) -> None:
    rows = "".join(f"none/{i}.png,sick,Test\n" for i in range(120))
    plant(tmp_path, "image,label,split\na/1.png,well,Test\n" + rows)
    with pytest.raises(DataError) as caught:
        reader(tmp_path).records()
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1] == "... and 70 more (120 in all)"


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("image,class\na/1.png,well\n", "missing label; found image, class"),
        ("image,label,split\n", "expected a line an image, found none"),
        ("image,label,split\na/1.png,well,Train\n", "at least two different labels"),
        (
            "image,label,split\na/1.png,well,Train\na/3.png,ill,Val\n",
            "infection_class: expected one of the labels ill, well, found 'sick'",
        ),
    ],
)
def test_indexes_that_cannot_be_used(tmp_path: Path, index: str, message: str) -> None:
    plant(tmp_path, index)
    with pytest.raises(DataError) as caught:
        reader(tmp_path).records()
    assert message in str(caught.value)


def test_missing_root_or_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: expected the data set's root"):
        reader(tmp_path / "absent").records()
    with pytest.raises(DataError, match=r"list\.csv: expected a CSV file with the columns"):
        reader(tmp_path, index="list.csv").records()
