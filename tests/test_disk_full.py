"""A disk that fills up while a sweep trains, and again while it explains: a real one, of 64 MB."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from raybench.tracking.run_folder import RunFolder
from tests.small_study import finish, start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root only, and not in every container")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


def fills_up(study: Path, disk: Path, when: Callable[[RunFolder], bool], *more: str) -> str:
    """Run the sweep until its disk is full; what it said."""
    run, process, end = RunFolder(str(disk / "tiny")), start(study, disk, *more), time.monotonic()
    while not when(run):
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < end + 200
        time.sleep(0.02)
    filler = fill(disk)
    said, _ = process.communicate(timeout=200)
    filler.unlink()
    assert process.returncode == 2, said[-4000:]
    return said


@pytest.mark.slow
def test_a_full_disk_costs_nothing_that_was_finished(
    small_study: Path, small_sweep: Path, small_disk: Path
) -> None:
    def trains(run: RunFolder) -> bool:
        return any(e["kind"] == "epoch" and e["trial_id"] == "t0001" for e in run.events.read())

    def explains(run: RunFolder) -> bool:
        return len(run.read("maps_shared_whole_lung")) > 0

    for when, more in ((trains, ()), (explains, ("--resume",))):
        lines = fills_up(small_study, small_disk, when, *more).splitlines()
        found = [line for line in lines if line.startswith(f"raybench: {small_disk}/")]
        assert len(found) == 1, "\n".join(lines[-9:])
        (said,) = found
        assert "No space left on device: 0.0 MiB are free in " in said
        assert said.endswith("make space there and pass --resume)")
        assert not list(small_disk.rglob("*.part"))
    finish(start(small_study, small_disk, "--resume"))
    whole, run = RunFolder(str(small_sweep)), RunFolder(str(small_disk / "tiny"))
    epochs = pd.DataFrame([e for e in run.events.read() if e["kind"] == "epoch"])
    twice = epochs[epochs.duplicated(["trial_id", "epoch"])]
    again = set(zip(twice.trial_id, twice.epoch, strict=True))
    # Its state could not be written, however often Tune tried it again.
    assert len(again) <= 1, f"trained twice beside the one that was under way: {again}"
    for table in {p.name for p in (small_sweep / "parts").glob("maps_*")}:
        found = run.read(table)
        assert not found.image_id.duplicated().any(), f"{table}: no map is made twice"
        assert len(found) == len(whole.read(table))
    for name in ("trials.csv", "leaderboard.csv", "comparisons.csv"):
        a, b = (
            folder.read_csv(name).drop(columns="seconds", errors="ignore")
            for folder in (whole, run)
        )
        pd.testing.assert_frame_equal(a, b)
