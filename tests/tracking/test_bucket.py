"""Run folders in a bucket: a real S3 server on loopback, and what its clients make of trouble."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench.errors import RunFolderError, StorageError
from raybench.storage import Storage
from raybench.tracking import lease, segments
from raybench.tracking.events import EventLog
from raybench.tracking.lease import Lease
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.segments import Segments

CONFIG: dict[str, Any] = {"name": "fake", "seed": 0}


@pytest.fixture
def root(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of the bucket that is empty, and a home whose cache is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"{s3}/{uuid.uuid4().hex}"


def test_files_of_a_bucket_are_as_local_ones(root: str) -> None:
    storage = Storage(root)
    assert (storage.names(), storage.exists("a/b [1].csv")) == ([], False)
    storage.write("a/b [1].csv", b"1")
    storage.write("a/b 1.csv", b"2")
    assert storage.names("a") == ["b 1.csv", "b [1].csv"]
    assert list(storage.walk()) == ["a/b 1.csv", "a/b [1].csv"]
    storage.remove("a/b [1].csv")
    assert storage.names("a") == ["b 1.csv"], "brackets are no pattern"
    assert (storage.create("a/b 1.csv", b"3"), storage.create("c", b"3")) == (False, True)
    assert storage.read("a/b 1.csv") == b"2"
    storage.remove("a")
    assert storage.names() == ["c"]


def test_a_bucket_that_refuses_is_one_clear_error(s3: str) -> None:
    nobody = Storage("s3://raybench-none-such-bucket/runs")
    assert (nobody.names(), nobody.exists("x"), list(nobody.walk())) == ([], False, [])
    for call in (
        nobody.read,
        lambda name: nobody.write(name, b""),
        lambda n: nobody.create(n, b""),
    ):
        with pytest.raises(StorageError, match=r"s3://raybench-none-such-bucket/runs/x: cannot be"):
            call("x")


def test_local_files_are_created_once(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert [storage.create("a/b", data) for data in (b"1", b"2")] == [True, False]
    assert storage.read("a/b") == b"1"


def test_the_log_of_a_bucket_is_merged_and_a_kill_while_it_is_costs_nothing(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "MERGE_AT", 5)
    log = EventLog(Storage(root))
    for number in range(12):
        log.append("epoch", epoch=number)
    names = Storage(root).names("events")
    assert len(names) < 6, "objects are merged"
    assert [e["epoch"] for e in EventLog(Storage(root)).read()] == list(range(12))
    assert [e["epoch"] for e in log.read()] == list(range(12))
    # A process killed between writing the merged object and removing the others.
    killed = Segments(Storage(root), "events")
    monkeypatch.setattr(Storage, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        killed.merge()
    monkeypatch.undo()
    assert len(Storage(root).names("events")) == len(names) + 1
    again = EventLog(Storage(root))
    assert [e["epoch"] for e in again.read()] == list(range(12))
    again.append("epoch", epoch=12)
    assert [e["epoch"] for e in log.read()] == list(range(13)), "a reader sees what another writes"


def test_one_sweep_at_a_time_and_the_dead_are_taken_over(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(root)
    holder = Lease(storage, ".lock", beat=0.1, stale=2.0)
    with pytest.raises(RunFolderError, match=r"another sweep is working in this folder \(process"):
        Lease(storage, ".lock", beat=0.1, stale=2.0)
    holder.check()
    holder._stop.set()  # it dies without letting go
    holder._thread.join()
    second = Lease(storage, ".lock", beat=0.1, stale=0.6)
    # The dead wakes up: it was asleep, or cut off.
    holder._stop.clear()
    waking = threading.Thread(target=holder._live)
    waking.start()
    waking.join(5)
    with pytest.raises(RunFolderError, match="another sweep took this folder over"):
        holder.check()
    holder.release()
    second.check()
    assert storage.exists(".lock"), "what another holds is not removed"
    second.release()
    assert not storage.exists(".lock")
    Lease(storage, ".lock").release()


def test_a_run_in_a_bucket_goes_through_the_states_of_a_local_one(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STALE", 0.5)
    with RunFolder(root) as run:
        assert run.open(CONFIG, "d1") == "new"
        run.append("maps_a", pd.DataFrame({"x": [1, 2]}))
        run.events.append("sweep_started")
        run.write_csv("leaderboard.csv", pd.DataFrame({"iou": [0.5]}))
        run.write_figure("bars.png", b"png")
        run.claim("tune")
        assert (run.path / "leaderboard.csv").exists(), "projections read a copy of this machine"
        assert (run.path / "figures/bars.png").read_bytes() == b"png"
    with pytest.raises(RunFolderError, match=r"s3://.*: holds an unfinished sweep"):
        RunFolder(root).open(CONFIG, "d1")
    with pytest.raises(RunFolderError, match=r"s3://.*: holds a sweep of another configuration"):
        RunFolder(root).open({**CONFIG, "seed": 1}, "d2")
    elsewhere = RunFolder(root)
    elsewhere.path = elsewhere.path.with_name("elsewhere")
    elsewhere._copy = Storage(str(elsewhere.path))
    elsewhere.bring()
    assert sorted(p.name for p in elsewhere.path.iterdir()) == [
        "config.yaml",
        "events.jsonl",
        "figures",
        "leaderboard.csv",
    ]
    with RunFolder(root) as run:
        assert run.open(CONFIG, "d1", resume=True) == "resumed"
        assert run.read("maps_a").x.tolist() == [1, 2]
        run.mark_finished()
    with RunFolder(root) as run:
        assert run.open({**CONFIG, "seed": 1}, "d2", overwrite=True) == "new"
        assert run.events.read() == []
        assert len(run.read("maps_a")) == 0
    assert Storage(root).names() == ["config.yaml"]


def test_rows_are_refused_once_another_sweep_has_the_folder(root: str) -> None:
    with RunFolder(root) as run:
        run.open(CONFIG, "d1")
        assert isinstance(run._lock, Lease)
        run._lock._lost = True
        with pytest.raises(RunFolderError, match="took this folder over"):
            run.append("maps_a", pd.DataFrame({"x": [1]}))
