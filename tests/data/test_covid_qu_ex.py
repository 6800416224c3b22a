"""The COVID-QU-Ex reader: real trees, every bad one, and a tree in a bucket."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from raybench.data.covid_qu_ex import CovidQuEx
from raybench.data.images import encode_png, read_gray
from raybench.errors import BadImageError, DataError
from raybench.storage import Storage

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
OUTER = "Infection Segmentation Data"
NAMES = {
    "COVID-19": "covid_1579.png",
    "Non-COVID": "non_COVID (11905).png",
    "Normal": "Normal (1).png",
}
GRAY = np.arange(64, dtype=np.uint8).reshape(8, 8)
MASK = GRAY % 2 == 0


def real(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"the real X-rays of {name} are not here")
    return path


def reader(root: object, **settings: object) -> CovidQuEx:
    return CovidQuEx.model_validate({"name": "covid_qu_ex", "root": str(root), **settings})


def plant(root: str, nesting: str = f"{OUTER}/{OUTER}") -> Storage:
    """A small complete tree, one image a class and split; no infection masks in Train."""
    storage = Storage(root)
    for split in ("Train", "Val", "Test"):
        for i, (cls, name) in enumerate(NAMES.items()):
            folder = f"{nesting}/{split}/{cls}"
            storage.write(f"{folder}/images/{split}_{name}", encode_png(GRAY + np.uint8(i)))
            storage.write(f"{folder}/lung masks/{split}_{name}", encode_png(MASK))
            if split != "Train":
                drawn = MASK if cls == "COVID-19" else ~MASK & MASK
                storage.write(f"{folder}/infection masks/{split}_{name}", encode_png(drawn))
    return storage


def test_351_real_xrays_with_their_patients() -> None:
    data = reader(real("cxr"))
    records = data.records()
    counts = Counter((r.split, r.label) for r in records)
    assert [counts[s, c] for s in ("Train", "Val", "Test") for c in data.classes] == [
        *(51, 80, 80),
        *(14, 20, 20),
        *(26, 30, 30),
    ]
    covid = {
        s: [r for r in records if (r.split, r.label) == (s, "COVID-19")] for s in ("Val", "Test")
    }
    assert len({r.patient for r in covid["Val"]}) == 9
    assert len({r.patient for r in covid["Test"]}) == 20
    unmasked = {(r.split, r.label) for r in records if r.infection_mask is None}
    assert unmasked == {("Train", "COVID-19")}
    assert all(r.patient and r.lung_mask for r in records)
    assert not any(r.patient in repr(r) for r in records if r.patient)


def test_genuine_sample_pixel_by_pixel() -> None:
    root = real("covid-qu-ex-sample")
    data = reader(root)
    records = data.records()
    assert Counter(r.label for r in records) == dict.fromkeys(data.classes, 4)
    assert {r.split for r in records} == {"Test"}
    for record in records:
        xray = data.load(record)
        plain = cv2.imread(str(root / record.image), cv2.IMREAD_GRAYSCALE)
        assert xray.image.shape == (256, 256)
        np.testing.assert_array_equal(xray.image, plain)
        mask = cv2.imread(str(root / str(record.infection_mask)), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(xray.infection_mask, mask == 255)
        assert bool(mask.any()) == (record.label == "COVID-19")


@pytest.mark.parametrize("nesting", [OUTER, f"{OUTER}/{OUTER}"])
def test_both_nestings_and_a_bucket_read_equally(tmp_path: Path, nesting: str) -> None:
    bucket = f"memory://{uuid.uuid4().hex}/data set"
    plant(str(tmp_path), nesting)
    plant(bucket, nesting)
    local, remote = reader(tmp_path), reader(bucket)
    assert local.records() == remote.records()
    ids = [r.image_id for r in local.records()]
    assert ids[:2] == [
        "Train/COVID-19/Train_covid_1579.png",
        "Train/Non-COVID/Train_non_COVID (11905).png",
    ]
    for record in local.records():
        a, b = local.load(record), remote.load(record)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.lung_mask, b.lung_mask)
        np.testing.assert_array_equal(a.infection_mask, b.infection_mask)
        assert (a.infection_mask is None) == (record.split == "Train")


def test_two_classes_in_the_given_order(tmp_path: Path) -> None:
    plant(str(tmp_path))
    data = reader(tmp_path, classes=["Non-COVID", "COVID-19"])
    assert [r.label for r in data.records()] == ["Non-COVID", "COVID-19"] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ["COVID-19"]}, "at least two different classes"),
        ({"classes": ["COVID-19", "COVID-19"]}, "at least two different classes"),
        ({"classes": ["COVID-19", "Covid"]}, "found 'Covid'"),
        ({"classes": ["Normal", "Non-COVID"]}, "infection_class: expected one of"),
        ({"subst": "lung"}, "subst"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        reader("anywhere", **settings)


def test_only_visible_images_are_read(tmp_path: Path) -> None:
    storage = plant(str(tmp_path))
    folder = f"{OUTER}/{OUTER}/Test/Normal"
    for name in (".hidden.png", "Thumbs.db", "notes.txt"):
        storage.write(f"{folder}/images/{name}", b"no image")
    for kind in ("images", "lung masks", "infection masks"):
        storage.write(f"{folder}/{kind}/UPPER.PNG", encode_png(MASK))
    names = [r.image_id for r in reader(tmp_path).records() if r.image_id.startswith("Test/Normal")]
    assert names == ["Test/Normal/Test_Normal (1).png", "Test/Normal/UPPER.PNG"]


def test_roots_that_hold_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: expected the data set's root, found nothing"):
        reader(tmp_path / "absent").records()
    with pytest.raises(DataError, match=r"'Infection Segmentation Data'.*found nothing"):
        reader(tmp_path).records()
    plant(str(tmp_path))
    with pytest.raises(DataError, match=r"set root to the folder above"):
        reader(tmp_path / OUTER / OUTER).records()
    with pytest.raises(DataError, match=r"'Lung Segmentation Data'.*subset: lung"):
        reader(tmp_path, subset="lung").records()
    other = tmp_path / "other"
    (other / OUTER / "test").mkdir(parents=True)
    with pytest.raises(DataError, match=r"one of the folders Train, Val, Test, found 'test'"):
        reader(other).records()


def test_empty_classes_and_missing_masks_are_all_listed(tmp_path: Path) -> None:
    storage = plant(str(tmp_path))
    base = f"{OUTER}/{OUTER}"
    storage.remove(f"{base}/Val/Normal/images/Val_Normal (1).png")
    storage.remove(f"{base}/Test/Normal")
    storage.remove(f"{base}/Train/Non-COVID/lung masks/Train_non_COVID (11905).png")
    storage.remove(f"{base}/Test/COVID-19/infection masks/Test_covid_1579.png")
    with pytest.raises(DataError) as caught:
        reader(tmp_path).records()
    assert caught.value.problems == (
        "Train/Non-COVID/lung masks: no 'Train_non_COVID (11905).png'",
        "Val/Normal/images: expected images (PNG or JPEG), found none",
        "Test/COVID-19/infection masks: no 'Test_covid_1579.png'",
        "Test/Normal/images: expected images (PNG or JPEG), found none",
    )


def test_a_patient_in_two_splits_is_counted_and_never_named(tmp_path: Path) -> None:
    storage = plant(str(tmp_path))
    rows = ["patient,name,cls,split,age"]
    for split in ("Train", "Val", "Test"):
        patient = "jane-doe" if split != "Val" else "someone"
        rows.append(f"{patient},{split}_covid_1579.png,COVID-19,{split},77")
    storage.write("index.csv", ("\ufeff" + "\r\n".join(rows)).encode())
    with pytest.raises(DataError, match="found 1 in more than one") as caught:
        reader(tmp_path).records()
    assert caught.value.problems == (
        "Train/COVID-19/Train_covid_1579.png",
        "Test/COVID-19/Test_covid_1579.png",
    )
    assert "jane" not in str(caught.value)
    assert "77" not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"split,cls,file\nTest,Normal,a.png\n", "missing name, patient; found split, cls, file"),
        (b"", "found no header line"),
        (b"\xff\xfe\x00", "CSV file in UTF-8"),
        (b"split,cls,name,patient\nTest,Normal\n", "line 2: 2 cells"),
        (b"split,cls,name,patient,name\n", "more than once: name"),
        (b"split,cls,name,patient\nTest,A,b,p1\nTest,A,b,p2\n", "line 3: Test/A/b"),
    ],
)
def test_indexes_that_cannot_be_read(tmp_path: Path, index: bytes, message: str) -> None:
    plant(str(tmp_path)).write("index.csv", index)
    with pytest.raises(DataError) as caught:
        reader(tmp_path).records()
    assert message in str(caught.value)


def png_with(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + bytes([value]) + data[at + 1 :]


SOUND = encode_png(GRAY)
BOMB = SOUND[:16] + (100_000).to_bytes(4, "big") * 2 + SOUND[24:]


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("images", b"", "the file is empty"),
        ("images", SOUND[:-20], "cut short"),
        ("images", png_with(SOUND, len(SOUND) - 20, 7), "checksum"),
        ("images", BOMB, "checksum"),
        ("images", cv2.imencode(".jpg", GRAY)[1].tobytes()[:-9], "JPEG file is cut short"),
        ("images", cv2.imencode(".png", GRAY.astype(np.uint16))[1].tobytes(), "found 16-bit"),
        ("lung masks", encode_png(MASK[:5, :7]), "8 x 8 .height x width., found 5 x 7"),
        ("infection masks", encode_png(GRAY), r"found 0, 1, 2, 3, 4, 5, ... .64 values."),
        ("infection masks", encode_png((GRAY % 2) * np.uint8(128)), "found 0, 128: binarise"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, kind: str, data: bytes, message: str) -> None:
    storage = plant(str(tmp_path))
    storage.write(f"{OUTER}/{OUTER}/Test/COVID-19/{kind}/Test_covid_1579.png", data)
    data_set = reader(tmp_path)
    record = next(r for r in data_set.records() if r.image_id.startswith("Test/COVID-19"))
    with pytest.raises(BadImageError, match=message) as caught:
        data_set.load(record)
    assert f"COVID-19/{kind}/Test_covid_1579.png: " in str(caught.value)


def test_huge_images_are_refused_by_their_header(tmp_path: Path) -> None:
    jpeg = bytearray(cv2.imencode(".jpg", GRAY)[1].tobytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    Storage(str(tmp_path)).write("huge.jpg", bytes(jpeg))
    with pytest.raises(BadImageError, match="at most 50 megapixels, found 60000 x 60000"):
        read_gray(Storage(str(tmp_path)), "huge.jpg")


def test_masks_of_ones_and_colour_images(tmp_path: Path) -> None:
    storage = plant(str(tmp_path))
    folder = f"{OUTER}/{OUTER}/Test/COVID-19"
    colour = np.stack([GRAY, GRAY // 2, GRAY * 0], axis=2)
    storage.write(f"{folder}/images/Test_covid_1579.png", encode_png(colour))
    storage.write(f"{folder}/lung masks/Test_covid_1579.png", encode_png(MASK.astype(np.uint8)))
    data = reader(tmp_path)
    xray = data.load(next(r for r in data.records() if r.image_id.startswith("Test/COVID-19")))
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(xray.image - luma).max() <= 0.51
    np.testing.assert_array_equal(xray.lung_mask, MASK)


def test_thirty_thousand_names_are_listed_quickly(tmp_path: Path) -> None:
    for cls in ("COVID-19", "Normal"):
        for kind in ("images", "lung masks"):
            folder = tmp_path / OUTER / "Train" / cls / kind
            folder.mkdir(parents=True)
            for i in range(1_500):
                (folder / f"{i}.png").touch()
    start = time.perf_counter()
    records = reader(tmp_path, classes=["COVID-19", "Normal"]).records()
    seconds = time.perf_counter() - start
    assert len(records) == 3_000
    assert seconds < 3, f"3,000 records took {seconds:.1f} s; 30,000 would take ten times that"
