"""CheXlocalize: run-length masks, what is refused, and no patient number anywhere. 2 seconds."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raybench.data.chexlocalize import FINDINGS, CheXlocalize
from raybench.data.rle import decode
from raybench.data.scan import scan
from raybench.errors import BadImageError, DataError

SHAPE = (40, 56)
KEYS = {"val": ("patient70001", "patient70002"), "test": ("patient70003",)}


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Written from the format's description, apart from the decoder."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    if flat[0]:
        runs = [0, *runs]
    text = ""
    for i, run in enumerate(runs):
        x = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            chunk, x = x & 31, x >> 5
            more = x != (-1 if chunk & 16 else 0)
            text += chr((chunk | (32 if more else 0)) + 48)
    return {"size": list(mask.shape), "counts": text}


def box(top: int, left: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.bool_)
    mask[top : top + 9, left : left + 5] = True
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    empty = {f: encode(np.zeros(SHAPE, np.bool_)) for f in FINDINGS}
    drawn = {"Edema": encode(box(3, 4)), "Consolidation": encode(box(20, 30))}
    for split, patients in KEYS.items():
        table = {}
        for number, patient in enumerate(patients):
            path = tmp_path / "CheXpert" / split / patient / "study1" / "view1_frontal.jpg"
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), np.full(SHAPE, 90 + number, np.uint8))
            table[f"{patient}_study1_view1_frontal"] = empty | ({} if number else drawn)
        place = tmp_path / "CheXlocalize" / f"gt_segmentations_{split}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(table))
    return tmp_path


def reader(root: Path, **more: Any) -> CheXlocalize:
    return CheXlocalize.model_validate({"name": "chexlocalize", "root": str(root), **more})


def change(root: Path, finding: str, entry: Any) -> None:
    file = root / "CheXlocalize" / "gt_segmentations_val.json"
    table = json.loads(file.read_text())
    table["patient70001_study1_view1_frontal"][finding] = entry
    file.write_text(json.dumps(table))


def test_findings_are_joined_and_the_others_left_out(root: Path) -> None:
    data = reader(root, findings=["Edema", "Consolidation"])
    records = data.records()
    assert [(r.split, r.label) for r in records] == [
        ("Val", "Finding"),
        ("Val", "No Finding"),
        ("Test", "Finding"),
    ]
    xray = data.load(records[0])
    np.testing.assert_array_equal(xray.infection_mask, box(3, 4) | box(20, 30))
    assert xray.image.shape == SHAPE
    assert xray.lung_mask is None
    assert not data.load(records[1]).infection_mask.any()  # type: ignore[union-attr]
    one = reader(root, findings=["Edema"], infection_class="sick", absent_class="well")
    np.testing.assert_array_equal(one.load(one.records()[0]).infection_mask, box(3, 4))
    assert one.classes == ("sick", "well")
    assert {r.label for r in reader(root, findings=["Lung Lesion"]).records()} == {"No Finding"}


def test_no_patient_number_leaves_the_reader(root: Path) -> None:
    data = reader(root)
    ids = [r.image_id for r in data.records()]
    assert not any("7000" in i or "patient" in i for i in ids)
    assert len(set(ids)) == 3
    assert data.key_of(ids[0]) == "patient70001_study1_view1_frontal"
    (root / "CheXpert/val/patient70001/study1/view1_frontal.jpg").unlink()
    (root / "CheXpert/val/patient70002/study1/view1_frontal.jpg").write_bytes(b"no image")
    found = scan(data, ("Val", "Test"), "skip", needs_lung_masks=False)
    assert len(found.bad) == 2
    assert all(text.startswith("Val/") and "7000" not in text for text in found.bad)


def test_lung_masks_from_a_folder_of_their_own(root: Path, tmp_path: Path) -> None:
    place = tmp_path / "lungs/CheXpert/val/patient70001/study1/view1_frontal.png"
    place.parent.mkdir(parents=True)
    cv2.imwrite(str(place), box(1, 1).astype(np.uint8) * 255)
    data = reader(root, lung_masks=str(tmp_path / "lungs"))
    np.testing.assert_array_equal(data.load(data.records()[0]).lung_mask, box(1, 1))
    with pytest.raises(BadImageError, match="lung mask") as caught:
        data.load(data.records()[1])
    assert "7000" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"size": [40, 56], "counts": "\x7f"}, "character 1 fits no run-length string"),
        ({"size": [40, 56], "counts": "oooooooooo0"}, "fits no run-length string"),
        ({"size": [40, 56], "counts": "nnnnn0"}, "leaves the 2,240 pixels"),
        ({"size": [40, 56], "counts": "5"}, "expected runs of 2,240 pixels in all, found 5"),
        ({"size": [40, 56], "counts": "O"}, "run 1 leaves"),
        ({"size": [40, 56], "counts": "5o"}, "half a number"),
        ({"size": [40, 56], "counts": 7}, "expected a run-length string, found int"),
        ({"size": [10**9, 10**9], "counts": "5"}, "size: expected the image's, [40, 56]"),
        ({"counts": "5"}, "size: expected the image's"),
        ([1], "expected size and counts"),
    ],
)
def test_broken_masks_are_bad_images(root: Path, entry: Any, message: str) -> None:
    change(root, "Consolidation", entry)
    data = reader(root)
    with pytest.raises(BadImageError) as caught:
        data.load(data.records()[0])
    text = str(caught.value)
    assert message in text
    assert "gt_segmentations_val.json: Val/" in text
    assert "Consolidation" in text
    assert "7000" not in text


def test_what_is_refused_before_an_image_is_opened(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"'Oedema'") as caught:
        reader(root, findings=["Oedema"])
    assert all(finding in str(caught.value) for finding in FINDINGS)
    with pytest.raises(DataError, match=r"gt_segmentations_val\.json"):
        reader(tmp_path / "absent").records()
    val, test = (root / "CheXlocalize" / f"gt_segmentations_{s}.json" for s in KEYS)
    test.write_text(val.read_text())
    with pytest.raises(DataError, match="found 2 in both val and test") as shared:
        reader(root).records()
    assert "7000" not in str(shared.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"john_roe": {}}', '{"patient1_study1_view1": 3}'])
def test_files_that_are_no_segmentations(tmp_path: Path, text: str) -> None:
    (tmp_path / "gt_segmentations_val.json").write_text(text)
    with pytest.raises(DataError, match=r"gt_segmentations_val\.json: expected") as caught:
        reader(tmp_path).records()
    assert "john" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_decoder_is_that_of_pycocotools(h: int, w: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((h, w)) < share
    np.testing.assert_array_equal(decode([h, w], encode(mask)["counts"], (h, w)), mask)
    theirs = pytest.importorskip("pycocotools.mask")
    counts = theirs.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert counts == encode(mask)["counts"]
    np.testing.assert_array_equal(decode([h, w], counts, (h, w)), mask)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_mask_or_a_bad_image(text: str) -> None:
    with contextlib.suppress(BadImageError):
        assert decode([30, 50], text, (30, 50)).shape == (30, 50)
