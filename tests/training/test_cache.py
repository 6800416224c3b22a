"""Decoded images on disk: made once, the same as without, whatever is killed, damaged or full.

About 6 seconds.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raybench.data.phantom import Phantom
from raybench.training.batches import Empty, Images, batches, load_images
from raybench.training.cache import ImageCache, cached_images, entry_key
from raybench.training.recipe import Recipe
from raybench.training.task import Classify
from raybench.types import ChestXray, XrayRecord

DATA = Phantom(name="phantom", n_train=3, n_val=1, n_test=1, size=64)
RECORDS = [r for r in DATA.records() if r.split == "Train"]
TASK = Classify(DATA.classes)
GB = 10**9


@dataclass(frozen=True)
class Lungs:
    """A task whose targets are masks."""

    def target(self, xray: ChestXray) -> torch.Tensor:
        assert xray.lung_mask is not None
        return torch.from_numpy(xray.lung_mask.astype(np.uint8))


class Counting:
    """A data set that counts what is decoded."""

    def __init__(self) -> None:
        self.n = 0

    def load(self, record: XrayRecord) -> ChestXray:
        self.n += 1
        return DATA.load(record)


def recipe(**changes: Any) -> Recipe:
    raw = {"name": "test_resnet", "weights": "none", "input_size": 32}
    raw["phases"] = [{"epochs": 1, "lr": 1e-3}]
    return Recipe.model_validate(raw | changes)


def get(folder: Path, data: Any, task: Any = TASK, limit: int = GB, **changes: Any) -> Images:
    settings = recipe(**changes)
    return cached_images(ImageCache(folder, limit), "d1", data, RECORDS, settings, task)


def same(a: Images, b: Images) -> bool:
    return torch.equal(a.pixels, b.pixels) and torch.equal(a.targets, b.targets)


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("task", [TASK, Lungs()], ids=["classes", "masks"])
@pytest.mark.filterwarnings("error")
def test_what_is_mapped_is_what_is_decoded(task: Any, tmp_path: Path) -> None:
    settings = recipe()
    plain = load_images(DATA, RECORDS, settings.preprocessing, settings.size, task.target)
    data = Counting()
    first, second = (get(tmp_path, data, task) for _ in range(2))
    assert data.n == len(RECORDS)
    assert same(first, plain)
    assert same(second, plain)
    assert second.targets.dtype == (torch.int64 if task is TASK else torch.uint8)
    (entry,) = entries(tmp_path)
    on_disk = np.load(entry / "pixels.npy", mmap_mode="r")
    np.testing.assert_array_equal(on_disk, plain.pixels.numpy())
    parts = list(batches(second, 4, torch.Generator().manual_seed(0)))
    assert sum(len(wanted) for _, wanted in parts) == len(RECORDS)


def test_each_thing_that_decides_the_pixels_has_an_entry_of_its_own(tmp_path: Path) -> None:
    data = Counting()
    get(tmp_path, data)
    for n, other in enumerate(
        (
            {"input_size": 48},
            {"preprocess": {"clahe": True}},
            {"preprocess": {"lung_masking": False}},
        ),
        2,
    ):
        get(tmp_path, data, **other)
        assert len(entries(tmp_path)) == n
    get(tmp_path, data, Lungs())
    cache, settings = ImageCache(tmp_path, GB), recipe()
    cached_images(cache, "d2", data, RECORDS, settings, TASK)
    cached_images(cache, "d1", data, RECORDS[1:], settings, TASK)
    assert len(entries(tmp_path)) == 7
    known = data.n
    # What does not decide them has not: other backbones and rates share.
    get(tmp_path, data, name="test_efficientnet", phases=[{"epochs": 9, "lr": 0.1}], batch_size=2)
    assert (data.n, len(entries(tmp_path))) == (known, 7)


def test_a_key_sees_order_and_nesting() -> None:
    keys = {entry_key("ab", "c"), entry_key("a", "bc"), entry_key(["a", "b"]), entry_key("a", "b")}
    assert len(keys) == 4
    assert entry_key({"a": 1, "b": 2}) == entry_key({"b": 2, "a": 1})


def flip_a_bit(entry: Path) -> None:
    path = entry / "pixels.npy"
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 4
    path.write_bytes(raw)


def cut_short(entry: Path) -> None:
    path = entry / "pixels.npy"
    path.write_bytes(path.read_bytes()[:-100])


def other_targets(entry: Path) -> None:
    np.save(entry / "targets.npy", np.load(entry / "targets.npy")[::-1])


def no_header(entry: Path) -> None:
    (entry / "header.json").write_text("{")


def other_shape(entry: Path) -> None:
    pixels = np.load(entry / "pixels.npy")
    np.save(entry / "pixels.npy", pixels.reshape(len(pixels), -1))


def removed(entry: Path) -> None:
    (entry / "targets.npy").unlink()


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, other_targets, no_header, other_shape, removed]
)
def test_a_damaged_entry_is_noticed_and_made_anew(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = get(tmp_path, DATA)
    expected = Images(plain.pixels.clone(), plain.targets.clone())
    (entry,) = entries(tmp_path)
    damage(entry)
    data = Counting()
    assert same(get(tmp_path, data), expected)
    assert data.n == len(RECORDS)
    assert "decoded images are damaged and made anew" in caplog.text
    caplog.clear()
    assert same(get(tmp_path, data), expected)
    assert data.n == len(RECORDS)
    assert caplog.text == ""


def in_turn(folder: str, at: Any, counts: Any) -> None:
    class Slow(Counting):
        def load(self, record: XrayRecord) -> ChestXray:
            time.sleep(0.02)
            return super().load(record)

    data = Slow()
    at.wait()
    images = get(Path(folder), data)
    counts.put((data.n, int(images.pixels.sum()), images.targets.tolist()))


def half_way(folder: str, begun: Any) -> None:
    def make(empty: Empty) -> Images:
        empty((4, 8, 8), np.uint8)[:] = 7
        begun.set()
        time.sleep(60)
        raise AssertionError

    ImageCache(Path(folder), GB).get("k", 256, make)


def eights(empty: Empty) -> Images:
    pixels, targets = empty((4, 8, 8), np.uint8), empty((4,), np.int64)
    pixels[:], targets[:] = 8, 1
    return Images(torch.from_numpy(pixels), torch.from_numpy(targets))


def test_two_at_once_decode_once_and_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    at, counts, begun = fork.Barrier(2), fork.Queue(), fork.Event()
    both = [fork.Process(target=in_turn, args=(str(tmp_path / "a"), at, counts)) for _ in "ab"]
    killed = fork.Process(target=half_way, args=(str(tmp_path / "b"), begun))
    for process in (*both, killed):
        process.start()
    found = [counts.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    assert sorted(n for n, *_ in found) == [0, len(RECORDS)]
    assert found[0][1:] == found[1][1:]

    assert begun.wait(60)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    (part,) = entries(tmp_path / "b")
    assert part.name.endswith(".part")
    cache = ImageCache(tmp_path / "b", GB)
    assert int(cache.get("k", 256, eights).pixels.unique()) == 8
    assert part.exists()  # could be somebody's at work; a day later it is nobody's
    old = time.time() - 25 * 3600
    os.utime(part, (old, old))
    cache.get("other", 256, eights)
    assert [path.name for path in entries(tmp_path / "b")] == ["k", "other"]


def test_what_was_used_longest_ago_goes_and_what_is_mapped_stays_readable(tmp_path: Path) -> None:
    def size_of(key: str) -> int:
        return sum(path.stat().st_size for path in (tmp_path / key).iterdir())

    cache = ImageCache(tmp_path, GB)
    kept = [cache.get(key, 256, eights) for key in "abc"]
    for age, key in enumerate("bca"):  # c was used last but for a
        os.utime(tmp_path / key, (age * 1000.0, age * 1000.0))
    small = replace(cache, limit=size_of("a") * 2 + 256)
    small.get("d", 256, eights)
    assert [path.name for path in entries(tmp_path)] == ["a", "c", "d"]
    assert all(int(images.pixels.sum()) == 8 * 256 for images in kept)
    small.get("c", 256, eights)  # now c is the one used last
    os.utime(tmp_path / "d", (5000.0, 5000.0))
    replace(cache, limit=size_of("a") + 256).get("e", 256, eights)
    assert [path.name for path in entries(tmp_path)] == ["c", "e"]


def test_an_entry_above_the_limit_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = get(tmp_path / "none", DATA, limit=1000)
    assert len(images) == len(RECORDS)
    assert not (tmp_path / "none").exists()
    assert "training.cache_gb is 0.00" in caplog.text


def test_a_disk_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = get(tmp_path / "well", DATA)
    (tmp_path / "file").write_text("")
    assert same(get(tmp_path / "file" / "below", DATA), expected)
    assert "decoded images cannot be kept there: " in caplog.text
    caplog.clear()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert same(get(tmp_path / "full", DATA), expected)
    assert "No space left on device" in caplog.text
    assert entries(tmp_path / "full") == []


def test_long_decoding_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO):
        get(tmp_path, DATA)
        assert "decoded 1 of 9" not in caplog.text
        monkeypatch.setattr("raybench.training.batches._TELL_SECONDS", 0.0)
        get(tmp_path, DATA, input_size=64)
    assert "decoded 9 of 9 images" in caplog.text
    assert json.loads((entries(tmp_path)[0] / "header.json").read_text())["n_images"] == 9
