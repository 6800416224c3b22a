"""Two writers never overlap: holders that were cut off or asleep, and several who take over."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raybench.errors import RunFolderError, StorageError
from raybench.storage import Storage
from raybench.tracking import lease
from raybench.tracking.lease import Lease, LeasedStorage
from tests.refusing import until

CHECKS = 2e-3


class Cut(Storage):
    """A holder's way to the bucket, which can be cut."""

    is_cut = False

    def once(self) -> Storage:
        return self

    def read(self, name: str) -> bytes:
        if Cut.is_cut:
            raise StorageError(f"{self.path(name)}: cannot be read (503)")
        return super().read(name)


class Writer(threading.Thread):
    """Writes as long as its lease lets it; the times at which it did."""

    def __init__(self, holder: Lease) -> None:
        super().__init__(daemon=True)
        self.holder, self.times, self.refusals = holder, [], []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(CHECKS):
            try:
                self.holder.check()
                self.times.append(time.monotonic())
            except RunFolderError as error:
                self.refusals.append(str(error))


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cut:
    monkeypatch.setattr(Cut, "is_cut", False)
    return Cut(str(tmp_path))


def test_a_holder_that_is_cut_off_stops_before_another_one_may_begin(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    holder = Lease(cut, ".lock", beat=0.1, stale=0.8, patience=0.0)
    writer = Writer(holder)
    writer.start()
    monkeypatch.setattr(Cut, "is_cut", True)
    since = time.monotonic()
    second = Lease(Storage(str(tmp_path)), ".lock", beat=0.1, stale=0.8)
    began = time.monotonic()
    monkeypatch.setattr(Cut, "is_cut", False)
    until(lambda: any("another sweep took this folder over" in r for r in writer.refusals), 10)
    writer.stop.set()
    writer.join()
    assert max(writer.times) < began
    assert max(writer.times) < since + 0.8, "it stops by itself"
    assert "for 1 s that it is alive" in writer.refusals[0]
    assert "pass --resume" in writer.refusals[0]
    second.check()
    print(f"quiet {began - max(writer.times):.1f} s before the other one; none written twice")
    holder.release()
    second.check()
    second.release()


def test_a_holder_that_was_cut_off_goes_on_where_nobody_took_over(
    cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = Lease(cut, ".lock", beat=0.1, stale=0.5, patience=0.0)
    monkeypatch.setattr(Cut, "is_cut", True)
    time.sleep(0.5)
    with pytest.raises(RunFolderError, match=r"could not show for .* --resume"):
        impatient.check()
    monkeypatch.setattr(Cut, "is_cut", False)
    until(lambda: impatient._error is None, 10)
    impatient.check()
    impatient.release()
    patient = Lease(cut, ".lock", beat=0.1, stale=0.5, patience=30.0)
    monkeypatch.setattr(Cut, "is_cut", True)
    threading.Timer(0.8, setattr, [Cut, "is_cut", False]).start()
    time.sleep(0.5)
    begin = time.monotonic()
    patient.check()
    assert 0.1 < time.monotonic() - begin < 5, "it waits until a sign of life goes through"
    patient.release()


def test_a_machine_that_slept_leaves_a_sign_of_life_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    holder = Lease(storage, ".lock", beat=60.0, stale=600.0)  # its thread does nothing here
    before, now = storage.read(".lock"), lease._now
    holder.check()
    assert storage.read(".lock") == before, "no request where there is no need"
    monkeypatch.setattr(lease, "_now", lambda: now() + 3600)
    holder.check()
    assert json.loads(storage.read(".lock"))["beat"] == 1
    storage.write(".lock", b'{"token": "of another"}')
    monkeypatch.setattr(lease, "_now", lambda: now() + 7200)
    with pytest.raises(RunFolderError, match="another sweep took this folder over"):
        holder.check()
    holder.release()
    assert storage.exists(".lock")


STOPPED = """
import sys, time
from raybench.errors import RunFolderError
from raybench.storage import Storage
from raybench.tracking.lease import Lease
holder = Lease(Storage(sys.argv[1]), ".lock", beat=0.1, stale=1.0)
try:
    while True:
        holder.check()
        print(time.monotonic(), flush=True)
        time.sleep(0.01)
except RunFolderError as error:
    print(error)
"""


def test_a_process_that_was_stopped_writes_no_more_once_it_was_taken_over(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        second = Lease(Storage(str(tmp_path)), ".lock", beat=0.1, stale=1.0)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGCONT)
        *times, said = process.communicate(timeout=30)[0].splitlines()
    finally:
        process.kill()
        process.wait()
    assert "another sweep took this folder over" in said
    # The one that had passed the check as the signal came, if any.
    assert sum(float(when) > began for when in times) <= 1
    second.check()
    second.release()


def test_of_several_who_take_over_one_gets_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write(".lock", b'{"token": "of a dead one"}')
    got: list[Lease] = []
    refused: list[str] = []

    def take() -> None:
        try:
            # A beat has to be longer than any step takes, and a disk may be slow to flush.
            got.append(Lease(storage, ".lock", beat=1.0, stale=3.0))
        except RunFolderError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(got), len(refused)) == (1, 3), refused
    got[0].check()
    got[0].release()


def test_files_of_a_lease_that_was_lost_cannot_be_written_and_copies_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Lease(Storage(str(tmp_path)), ".lock", beat=60.0, stale=600.0)
    files = LeasedStorage("memory://leased", [holder])
    files.write("a", b"1")
    holder._lost = True
    for call in (
        lambda: files.write("a", b"2"),
        lambda: files.create("b", b"2"),
        lambda: files.remove("a"),
    ):
        with pytest.raises(RunFolderError, match="took this folder over"):
            call()
    assert files.read("a") == b"1"
    assert type(pickle.loads(pickle.dumps(files))) is Storage
    holder.release()
