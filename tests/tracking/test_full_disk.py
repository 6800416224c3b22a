"""A disk that fills up while units are written, and clocks that jump: counted, and resumed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench.errors import RunFolderError, StorageError
from raybench.storage import Storage
from raybench.tracking.lease import Lease
from raybench.tracking.run_folder import RunFolder

CONFIG: dict[str, Any] = {"name": "fake", "seed": 0}
UNITS = 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("only root may mount a file system, and not everywhere")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def unit(number: int) -> pd.DataFrame:
    values = np.random.default_rng(number).bytes(20_000)
    return pd.DataFrame({"unit": [number], "map": [values]})


def work(run: RunFolder, computed: list[int]) -> None:
    done = run.read("maps_a")
    for number in sorted(set(range(UNITS)) - set(done.unit if len(done) else [])):
        computed.append(number)
        run.append("maps_a", unit(number))


def test_a_full_disk_is_one_clear_error_and_resume_computes_what_is_missing(
    small_disk: Path, record_property: Any
) -> None:
    computed: list[int] = []
    root = small_disk / "run"
    with RunFolder(str(root)) as run:
        run.open(CONFIG, "d1")
        with pytest.raises(StorageError) as caught:
            work(run, computed)
    said = str(caught.value)
    for part in (str(root), "No space left", "MiB are free in", "--resume"):
        assert part in said
    assert not list(root.rglob("*.part")), "nothing torn is left"
    kept = set(Storage(str(root)).walk("parts"))
    assert 0 < len(kept) == len(computed) - 1 < UNITS
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    with RunFolder(str(root)) as run:
        assert run.open(CONFIG, "d1", resume=True) == "resumed"
        work(run, computed)
        found = run.read("maps_a")
    twice = len(computed) - len(set(computed))
    lost = UNITS - found.unit.nunique()
    record_property("faults", {"computed": len(computed), "lost": lost, "twice": twice})
    assert lost == 0
    assert twice == 1, "the unit that found no room, and no other"
    expected = pd.concat([unit(n) for n in range(UNITS)], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected)


def test_no_half_line_of_the_log_stays_on_a_full_disk(small_disk: Path) -> None:
    storage, count = Storage(str(small_disk)), 0

    def fill() -> None:
        nonlocal count
        for count in range(1000):
            storage.append_line("log", f"{count:05d}" + "x" * 3000)

    with pytest.raises(StorageError, match="MiB are free in"):
        fill()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    storage.append_line("log", f"{count:05d}" + "x" * 3000)
    lines = (small_disk / "log").read_text().splitlines()
    assert [int(line[:5]) for line in lines] == list(range(count + 1))
    assert {len(line) for line in lines} == {3005}


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_lease_knows_no_wall_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    storage, real = Storage(str(tmp_path)), time.time
    holder = Lease(storage, ".lock", beat=0.05, stale=1.0)
    monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
    with pytest.raises(RunFolderError, match="another sweep is working"):
        Lease(storage, ".lock", beat=0.05, stale=1.0)
    holder.check()
    holder._stop.set()  # it dies without letting go
    holder._thread.join()
    began = time.monotonic()
    Lease(storage, ".lock", beat=0.05, stale=0.4).release()
    assert 0.4 <= time.monotonic() - began < 10


def test_heartbeats_that_are_refused_for_a_while_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, refused = Storage(str(tmp_path)), [0]
    holder = Lease(storage, ".lock", beat=0.05, stale=5.0)
    before = storage.read(".lock")

    def refuse(*_: Any) -> None:
        refused[0] += 1
        raise StorageError("503 Slow Down")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", refuse)
        end = time.monotonic() + 10
        while refused[0] < 3 and time.monotonic() < end:
            time.sleep(0.02)
    assert refused[0] >= 3
    with pytest.raises(RunFolderError, match="another sweep is working"):
        Lease(storage, ".lock", beat=0.05, stale=5.0)
    holder.check()
    assert storage.read(".lock") != before
    holder.release()
    assert not storage.exists(".lock")
