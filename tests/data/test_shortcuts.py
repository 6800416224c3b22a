"""The shortcut check: it finds what is planted, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from raybench.data import CovidQuEx, Phantom
from raybench.data import shortcuts as module
from raybench.data.scan import scan
from raybench.data.shortcuts import EVERYTHING, Evidence, look_for_shortcuts, statistics_of
from raybench.types import SPLITS, ChestXray, Mask, Split, XrayRecord

KINDS = ("sick", "well", "ill")


def made(
    kind: str, seed: int = 0, n: int = 30, patients: int | None = None
) -> tuple[list[XrayRecord], dict[str, np.ndarray]]:
    """Images of noise in which one thing goes with the class."""
    rng = np.random.default_rng(seed)
    records, statistics = [], {}
    splits: tuple[Split, ...] = ("Train", "Val")
    for split in splits:
        for place, label in enumerate(KINDS):
            for i in range(n):
                told = place if kind != "nothing" else int(rng.integers(3))
                height = 40 + (8 * told if kind == "size" else int(rng.integers(20)))
                image = rng.integers(40, 200, (height, 48)).astype(np.uint8)
                lungs: Mask = np.zeros(image.shape, bool)
                top = int(rng.integers(4)) + (5 * told if kind == "lung masks" else 0)
                lungs[top + 6 : top + 20, 8:20] = True
                if kind == "grey levels":
                    image[12:-12, 12:-12] = image[12:-12, 12:-12] // (told + 1)
                if kind == "border and corners":
                    image[:3, :3] = (0, 128, 255)[told]
                ending = ("png", "jpg", "JPG")[told if kind == "file type" else 0]
                who = None if patients is None else f"secret-{label}-{split}-{i % patients}"
                record = XrayRecord(
                    f"{split}-{label}-{i}", split, label, f"x.y/{i}.{ending}", patient=who
                )
                records.append(record)
                statistics[record.image_id] = statistics_of(ChestXray(record, image, lungs, None))
    return records, statistics


def warned(found: list[Evidence]) -> set[str]:
    return {e.family for e in found if e.is_shortcut}


@pytest.mark.parametrize(
    "kind", ["size", "grey levels", "border and corners", "lung masks", "file type"]
)
def test_each_planted_shortcut_is_found(kind: str) -> None:
    records, statistics = made(kind)
    found = look_for_shortcuts(records, statistics)
    assert {kind, EVERYTHING} <= warned(found)
    best = max((e for e in found if e.family != EVERYTHING), key=lambda e: e.score)
    assert best.family == kind
    # Upper and lower case of an ending are one type: two of the three classes cannot be told.
    assert best.score > (0.6 if kind == "file type" else 0.85)
    assert best.chance == pytest.approx(1 / 3)
    assert look_for_shortcuts(records, statistics) == found, "deterministic"


def test_false_alarms_are_as_rare_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_N_PERMUTATIONS", 1000)
    records, statistics = made("nothing", n=12)
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(80):
        dealt = [
            replace(r, label=label)
            for r, label in zip(records, rng.permutation([r.label for r in records]), strict=True)
        ]
        alarms += bool(warned(look_for_shortcuts(dealt, statistics)))
    assert alarms / 80 <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 80)


def test_test_is_not_looked_at() -> None:
    records, statistics = made("size")
    test = [replace(r, image_id=f"{r.image_id}-t", split="Test") for r in records]
    assert look_for_shortcuts([*records, *test], statistics) == look_for_shortcuts(
        records, statistics
    )
    phantoms = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=64)
    noted = scan(phantoms, SPLITS, "stop", needs_lung_masks=True).statistics
    assert {name.split("/")[0] for name in noted} == {"Train", "Val"}


def test_images_of_one_patient_count_once() -> None:
    """Three patients of each class can never rule out chance as thirty can."""
    few = {e.family: e for e in look_for_shortcuts(*made("nothing", n=30, patients=1))}
    assert {e.score for e in few.values()} <= {0, 1 / 3, 2 / 3, 1}
    assert all(e.p > 1 / 6 - 0.02 for e in few.values()), "3 patients: 6 orders at the most"
    many = look_for_shortcuts(*made("size", n=30, patients=10))
    assert "size" in warned(many)


def test_the_score_is_scikit_learns() -> None:
    records, statistics = made("grey levels", n=20)
    found = {e.family: e for e in look_for_shortcuts(records, statistics)}["grey levels"]
    parts = [[r for r in records if r.split == s] for s in ("Train", "Val")]
    x, v = (np.array([statistics[r.image_id][2:4] for r in part], float) for part in parts)
    y, w = ([r.label for r in part] for part in parts)
    x, v = ((part - x.mean(0)) / x.std(0) for part in (x, v))
    x, v = (np.hstack([np.clip(p, -5, 5), np.clip(p, -5, 5) ** 2]) for p in (x, v))
    model = LogisticRegression(C=0.25, class_weight="balanced").fit(x, y)
    assert found.score == pytest.approx(balanced_accuracy_score(w, model.predict(v)))


def test_statistics_of_an_image() -> None:
    image = np.full((32, 64), 100, np.uint8)
    image[:4, :4], image[-2:, 20:24] = 200, 0
    record = XrayRecord("a", "Val", "sick", "a.png")
    noted = statistics_of(ChestXray(record, image, None, None))
    assert noted.shape == (276,)
    assert noted[:2] == pytest.approx(np.log([32, 64]))
    assert noted[2:4] == pytest.approx([image.mean(), image.std()])
    assert noted[4:6] == pytest.approx([image[:2].mean(), image[:2].std()])
    assert noted[12:14] == pytest.approx([200, 0]), "the upper left corner"
    assert not noted[20:].any()
    lungs: Mask = np.zeros(image.shape, bool)
    lungs[8:16, 16:32] = True
    masked = statistics_of(ChestXray(record, image, lungs, None))
    assert masked[2] == pytest.approx(image[~lungs].mean())
    ill = np.where(lungs, np.uint8(250), image)
    assert np.array_equal(statistics_of(ChestXray(record, ill, lungs, None)), masked), (
        "what is in the lungs is no shortcut"
    )
    expected = cv2.resize(lungs.astype(np.float32), (16, 16), interpolation=cv2.INTER_AREA)
    assert masked[20:] == pytest.approx(expected.ravel(), abs=0.01)
    everything = statistics_of(ChestXray(record, image, np.ones_like(lungs), None))
    assert everything[2] == pytest.approx(image.mean())


@pytest.mark.parametrize("settings", [{}, {"marker": True}])
def test_phantoms(settings: dict[str, bool]) -> None:
    phantoms = Phantom(name="phantom", n_train=16, n_val=8, n_test=1, size=64, **settings)
    noted = scan(phantoms, SPLITS, "stop", needs_lung_masks=True)
    found = warned(look_for_shortcuts(noted.records, noted.statistics))
    assert found == ({"border and corners", EVERYTHING} if settings else set())


def test_real_xrays_are_warned_of(cxr: Path) -> None:
    data = CovidQuEx(name="covid_qu_ex", root=str(cxr))
    noted = scan(data, ("Train", "Val"), "stop", needs_lung_masks=True)
    found = {e.family: e for e in look_for_shortcuts(noted.records, noted.statistics)}
    assert found[EVERYTHING].is_shortcut
    assert found["lung masks"].p < 0.05
