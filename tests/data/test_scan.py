"""The scan: what stops, what is skipped, what a sweep needs, and the digest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from raybench.data import CovidQuEx, DatasetSettings, Phantom
from raybench.data.phantom import write_phantoms
from raybench.data.scan import Scan, check, check_infection, scan
from raybench.errors import BadImageError, DataError
from raybench.storage import Storage
from raybench.types import SPLITS, ChestXray, Split, XrayRecord

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
COVID = "Test/sick/0"


@dataclass
class Drawn:
    """A data set in memory: `n` images a class and split; `broken` ones do not open."""

    n: int = 3
    broken: frozenset[str] = frozenset()
    changed: dict[str, object] = field(default_factory=dict)
    classes: tuple[str, ...] = ("sick", "well")
    infection_class: str = "sick"
    slow: bool = False

    def records(self) -> list[XrayRecord]:
        return [
            XrayRecord(f"{s}/{c}/{i}", s, c, "image", "lungs", "infection", f"patient-{i}")
            for s in SPLITS
            for c in self.classes
            for i in range(self.n)
        ]

    def load(self, record: XrayRecord) -> ChestXray:
        if record.image_id in self.broken:
            raise BadImageError(f"{record.image_id}: does not open")
        if self.slow:
            time.sleep(0.002 * (hash(record.image_id) % 3))
        rng = np.random.default_rng(list(record.image_id.encode()))
        image = rng.integers(0, 256, (5, 5), dtype=np.uint8)
        lungs = np.ones((5, 5), dtype=np.bool_)
        infection = lungs & (record.label == "sick")
        xray = ChestXray(record, image, lungs, infection)
        return replace(xray, **self.changed) if record.image_id == COVID else xray  # type: ignore[arg-type]


def scanned(data: Drawn, splits: Sequence[Split] = SPLITS, n_threads: int = 4) -> Scan:
    return scan(data, splits, "skip", needs_lung_masks=True, n_threads=n_threads)


def test_all_real_xrays_can_be_used() -> None:
    if not (SHARED / "cxr").is_dir():
        pytest.skip("the real X-rays of cxr are not here")
    data = CovidQuEx(name="covid_qu_ex", root=str(SHARED / "cxr"))
    found = scan(data, SPLITS, "stop", needs_lung_masks=True)
    assert (len(found.records), found.bad) == (351, ())
    assert len(found.with_infection) == 14 + 26
    check(found.records, data, SPLITS)
    check_infection(found, data, ("Val", "Test"))


def test_stop_lists_every_bad_image_and_skip_leaves_them_out() -> None:
    broken = frozenset({"Train/well/1", "Test/sick/2", "Val/sick/0"})
    data = Drawn(broken=broken)
    with pytest.raises(DataError, match="3 of 18 images cannot be used") as caught:
        scan(data, SPLITS, "stop", needs_lung_masks=True)
    assert caught.value.problems == (
        "Train/well/1: does not open",
        "Val/sick/0: does not open",
        "Test/sick/2: does not open",
    )
    found = scanned(data)
    assert found.bad == caught.value.problems
    assert [r.image_id for r in found.records] == [
        r.image_id for r in data.records() if r.image_id not in broken
    ]
    assert "patient" not in str(caught.value)


def test_a_long_list_is_whole() -> None:
    data = Drawn(
        n=40,
        broken=frozenset(f"Train/sick/{i}" for i in range(40))
        | {f"Val/well/{i}" for i in range(40)},
    )
    with pytest.raises(DataError, match="80 of 240") as caught:
        scan(data, SPLITS, "stop", needs_lung_masks=True)
    assert len(caught.value.problems) == 80
    assert len(scanned(data).bad) == 80


@pytest.mark.parametrize(
    ("lungs", "message"), [(None, "found none"), (np.zeros((5, 5), np.bool_), "found an empty one")]
)
def test_a_lung_mask_that_is_needed(lungs: object, message: str) -> None:
    data = Drawn(changed={"lung_mask": lungs})
    found = scanned(data)
    assert len(found.bad) == 1
    assert found.bad[0].startswith(f"{COVID}: expected a lung mask, {message}")
    assert scan(data, SPLITS, "stop", needs_lung_masks=False).bad == ()


def test_the_digest_stands_for_the_pixels_and_nothing_else() -> None:
    plain = scanned(Drawn()).digest
    assert len(plain) == 16
    assert {scanned(Drawn(slow=True), n_threads=n).digest for n in (1, 8)} == {plain}
    image = Drawn().load(Drawn().records()[-6]).image.copy()
    image[0, 0] ^= 1
    others = [
        scanned(Drawn(changed={"image": image})),
        scanned(Drawn(changed={"infection_mask": None})),
        scanned(Drawn(changed={"infection_mask": np.zeros((5, 5), np.bool_)})),
        scanned(Drawn(broken=frozenset({"Val/well/0"}))),
        scanned(Drawn(), ("Train", "Test")),
    ]
    assert len({plain, *(o.digest for o in others)}) == 6


def test_the_digest_is_the_same_in_memory_and_in_files(tmp_path: Path) -> None:
    phantoms = Phantom(name="phantom", n_train=2, n_val=1, n_test=1, size=64)
    write_phantoms(phantoms, Storage(str(tmp_path)))
    drawn = scan(phantoms, SPLITS, "stop", needs_lung_masks=True)
    settings = {"name": "covid_qu_ex", "root": str(tmp_path)}
    files = TypeAdapter(DatasetSettings).validate_python(settings)
    read = scan(files, SPLITS, "stop", needs_lung_masks=True)
    assert read.digest == drawn.digest
    assert read.with_infection == drawn.with_infection


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    scan(Drawn(), ("Test",), "stop", True, progress=lambda done, n: seen.append((done, n)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_a_failure_that_is_no_bad_image_is_not_swallowed() -> None:
    class Failing(Drawn):
        def load(self, record: XrayRecord) -> ChestXray:
            raise MemoryError("no memory")

    with pytest.raises(MemoryError):
        scanned(Failing())


def test_check_lists_what_a_sweep_lacks() -> None:
    data = Drawn()
    check(data.records(), data, SPLITS)
    left = [
        replace(r, infection_mask=None) if r.split == "Test" else r
        for r in data.records()
        if r.split != "Train" and (r.split, r.label) != ("Val", "well")
    ]
    with pytest.raises(DataError) as caught:
        check(left, data, SPLITS)
    assert caught.value.problems == (
        "Train: expected images of this split, found no usable one",
        "Val/well: expected images, found no usable one",
        "Test/sick: expected infection masks to hold explanations against, found none",
    )
    check(left, data, ("Test",), explain_split=None)
    with pytest.raises(DataError, match="Test/sick: expected infection masks"):
        check(left, data, ("Test",))


def test_infection_masks_that_are_all_empty() -> None:
    data = Drawn(n=1, changed={"infection_mask": np.zeros((5, 5), np.bool_)})
    found = scanned(data)
    assert found.with_infection == {"Train/sick/0", "Val/sick/0"}
    check_infection(found, data, ("Val",))
    with pytest.raises(DataError, match="Test/sick: expected at least one image whose infection"):
        check_infection(found, data)
