"""The run folder, its event log and its parts: what survives a kill, and who may write."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.errors import RunFolderError, StorageError
from raybench.storage import Storage
from raybench.tracking import parts
from raybench.tracking.events import EventLog
from raybench.tracking.run_folder import RunFolder

CONFIG: dict[str, Any] = {"name": "fake", "seed": 0, "explainers": [{"name": "lime", "n": 100}]}


def log_at(folder: Path) -> EventLog:
    return EventLog(Storage(str(folder)))


def test_events_come_back_in_order_with_plain_values(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    written = log.append("epoch", epoch=np.int64(3), train_loss=np.float32(0.5), path=Path("a/b"))
    log.append("epoch", epoch=4, losses=[math.nan, math.inf, -math.inf], flag=np.bool_(True))
    first, second = log_at(tmp_path).read()
    assert first == written
    assert (first["kind"], first["epoch"], first["train_loss"]) == ("epoch", 3, 0.5)
    assert first["path"] == "a/b"
    values = [float(v) for v in second["losses"]]
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]
    assert second["flag"] is True
    assert first["time"] <= second["time"]


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(min_value=1, max_value=200))
def test_a_write_killed_at_any_byte_costs_that_event_only(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log_at(folder).append("trial_started", trial_id="t1")
    whole = (folder / "events.jsonl").read_bytes()
    last = json.dumps({"time": 1.0, "kind": "warning", "message": "déjà " * 20}).encode()
    (folder / "events.jsonl").write_bytes(whole + last[:cut])
    seen = log_at(folder).read()
    assert len(seen) == (2 if cut >= len(last) else 1)
    log_at(folder).append("sweep_finished")
    assert [e["kind"] for e in log_at(folder).read()] == [e["kind"] for e in seen] + [
        "sweep_finished"
    ]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    log.append("sweep_started")
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "epo\n')
    log.append("sweep_finished")
    with pytest.raises(StorageError, match=r"events\.jsonl, line 2"):
        log.read()


def test_threads_share_an_event_log(tmp_path: Path) -> None:
    log = log_at(tmp_path)
    threads = [
        threading.Thread(target=lambda: [log.append("warning", message="x" * 500) for _ in "12345"])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(log_at(tmp_path).read()) == 40


def test_states_of_a_folder(tmp_path: Path) -> None:
    root = str(tmp_path / "runs" / "fake")
    with RunFolder(root) as run:
        assert run.open(CONFIG, "d1") == "new"
        assert run.config == CONFIG
    with pytest.raises(RunFolderError, match=r"--resume .* --overwrite"):
        RunFolder(root).open(CONFIG, "d1")
    with RunFolder(root) as run:
        assert run.open(CONFIG, "d1", resume=True) == "resumed"
        assert not run.is_finished
        run.mark_finished()
    with RunFolder(root) as run:
        assert run.open(CONFIG, "d1") == "finished"
        assert run.is_finished


def test_halves_that_a_killed_process_was_writing_are_swept_up(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    with RunFolder(str(folder)) as run:
        run.open({"seed": 1}, "abc")
    halves = [folder / name for name in (".tune_spent.json.0a1b2c3d.part", "parts/.a.b.part")]
    kept = [folder / name for name in ("tune_spent.json", "parts/a.part")]
    for file in (*halves, *kept):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"{")
    with RunFolder(str(folder)) as run:
        run.open({"seed": 1}, "abc", resume=True, defer=True)
        assert all(file.exists() for file in halves), "nothing is removed before all is checked"
        run.begin()
    assert [file.exists() for file in (*halves, *kept)] == [False, False, True, True]


def test_another_configuration_is_refused_with_its_differences(tmp_path: Path) -> None:
    with RunFolder(str(tmp_path)) as run:
        run.open(CONFIG, "d1")
    other = {**CONFIG, "explainers": [{"name": "lime", "n": 400}], "extra": {"deep": True}}
    with pytest.raises(RunFolderError) as caught:
        RunFolder(str(tmp_path)).open(other, "d2", resume=True)
    assert "explainers.0.n: 100 there, 400 here" in str(caught.value)
    assert "extra.deep: nothing there, True here" in str(caught.value)
    assert "seed" not in str(caught.value)
    with pytest.raises(RunFolderError) as caught:
        RunFolder(str(tmp_path)).open({f"k{i}": i for i in range(99)}, "d3")
    assert len(str(caught.value).splitlines()) == 11
    assert run.config == CONFIG


def test_overwrite_removes_what_raybench_wrote_and_nothing_else(tmp_path: Path) -> None:
    with RunFolder(str(tmp_path)) as run:
        run.open(CONFIG, "d1")
        run.events.append("sweep_started")
        run.append("scores", pd.DataFrame({"a": [1]}))
        run.write_csv("comparison.csv", pd.DataFrame({"a": [1]}))
        run.write_figure("roc.png", b"png")
        (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(str(tmp_path)) as run:
        assert run.open({"name": "new"}, "d2", overwrite=True) == "new"
        assert run.config == {"name": "new"}
        assert run.events.read() == []
        run.append("scores", pd.DataFrame({"a": [2]}))
        assert run.read("scores")["a"].tolist() == [2]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".lock",
        "config.yaml",
        "notes.txt",
        "parts",
    ]


def test_an_interrupted_overwrite_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunFolder(str(tmp_path)) as run:
        run.open(CONFIG, "d1")
        run.events.append("sweep_started")
        run.append("scores", pd.DataFrame({"a": [1]}))
    with monkeypatch.context() as patch:

        def killed(_: Storage, name: str) -> None:
            raise KeyboardInterrupt

        patch.setattr(Storage, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(str(tmp_path)).open(CONFIG, "d1", overwrite=True)
    with pytest.raises(RunFolderError, match="pass --overwrite again"):
        RunFolder(str(tmp_path)).open(CONFIG, "d1", resume=True)
    with RunFolder(str(tmp_path)) as run:
        assert run.open(CONFIG, "d1", overwrite=True) == "new"
        assert run.read("scores").empty


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "config.yaml").write_text("mine: true\n")
    (tmp_path / "parts").mkdir()
    with pytest.raises(RunFolderError, match="choose another output folder"):
        RunFolder(str(tmp_path)).open(CONFIG, "d1", overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "parts"]


def test_places_that_cannot_be_run_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="cannot be a run folder"):
            RunFolder(str(root)).open(CONFIG, "d1")
    with pytest.raises(RunFolderError, match="nowhere://bucket/runs/fake: no reader"):
        RunFolder("nowhere://bucket/runs/fake").open(CONFIG, "d1")
    with pytest.raises(RunFolderError, match="not a run folder"):
        _ = RunFolder(str(tmp_path)).config


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(str(tmp_path)).open(CONFIG, "d1")


def test_the_lock_keeps_a_second_sweep_out_and_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from raybench.tracking.run_folder import RunFolder\n"
        f"run = RunFolder({str(tmp_path)!r}); run.open({CONFIG!r}, 'd1')\n"
        "print('open', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunFolderError, match=rf"another sweep .*process {holder.pid} on"):
            RunFolder(str(tmp_path)).open(CONFIG, "d1", overwrite=True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        if holder.stdout:
            holder.stdout.close()
    with RunFolder(str(tmp_path)) as run:
        assert run.open(CONFIG, "d1", resume=True) == "resumed"
        with pytest.raises(RunFolderError, match="another sweep"):
            RunFolder(str(tmp_path)).open(CONFIG, "d1", resume=True)


def rows(first: int, count: int) -> pd.DataFrame:
    numbers = range(first, first + count)
    return pd.DataFrame(
        {
            "n": list(numbers),
            "blob": [np.arange(i, dtype=np.float32).tobytes() for i in numbers],
            "error": [None if i < 3 else f"e{i}" for i in numbers],
        }
    )


def test_parts_keep_order_and_binary_columns(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    assert run.read("answers").empty
    run.append("answers", rows(0, 3))  # `error` is all null here, text later
    run.append("answers", rows(3, 0))
    again = RunFolder(str(tmp_path))
    again.append("answers", rows(3, 4))
    run = RunFolder(str(tmp_path))
    run.append("answers", rows(7, 2).assign(more=1.5))
    found = run.read("answers")
    assert found["n"].tolist() == list(range(9))
    assert [len(blob) for blob in found["blob"]] == [4 * i for i in range(9)]
    assert found["error"].isna().tolist() == [True] * 3 + [False] * 6
    assert found["more"].notna().sum() == 2
    assert len(list((tmp_path / "parts/answers").iterdir())) == 3


def test_torn_temporary_files_are_passed_over_and_damaged_parts_are_named(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    run.append("answers", rows(0, 2))
    folder = tmp_path / "parts/answers"
    (folder / ".00000001-0123abcd.parquet.99.part").write_bytes(b"PAR1 half")
    assert run.read("answers")["n"].tolist() == [0, 1]
    (folder / "00000001-0123abcd.parquet").write_bytes(b"PAR1 half")
    with pytest.raises(StorageError, match=r"00000001-0123abcd\.parquet"):
        run.read("answers")


@pytest.mark.parametrize("killed_after", range(6))
def test_compaction_killed_anywhere_neither_loses_nor_doubles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    run = RunFolder(str(tmp_path))
    for first in range(4):
        run.append("answers", rows(first, 1))
    steps = 0
    write, remove = Storage.write, Storage.remove

    def step() -> None:
        nonlocal steps
        if steps == killed_after:
            raise KeyboardInterrupt
        steps += 1

    def counted_write(self: Storage, name: str, data: bytes) -> None:
        step()
        write(self, name, data)

    def counted_remove(self: Storage, name: str) -> None:
        step()
        remove(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", counted_write)
        patch.setattr(Storage, "remove", counted_remove)
        if killed_after < 5:
            with pytest.raises(KeyboardInterrupt):
                run.compact("answers")
        else:
            run.compact("answers")
    run = RunFolder(str(tmp_path))
    assert run.read("answers")["n"].tolist() == [0, 1, 2, 3]
    run.append("answers", rows(4, 1))
    assert run.read("answers")["n"].tolist() == [0, 1, 2, 3, 4]
    run.compact("answers")
    assert run.read("answers")["n"].tolist() == [0, 1, 2, 3, 4]
    (part,) = (tmp_path / "parts/answers").iterdir()
    assert pq.ParquetFile(part).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_reader_beside_a_compaction_sees_every_row_once(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    done = threading.Event()
    seen: list[list[int]] = []

    def read() -> None:
        while not done.is_set():
            found = RunFolder(str(tmp_path)).read("answers")
            seen.append(found["n"].tolist() if len(found) else [])

    reader = threading.Thread(target=read)
    reader.start()
    for first in range(30):
        run.append("answers", rows(first, 1))
        if first % 5 == 4:
            run.compact("answers")
    done.set()
    reader.join()
    assert seen
    assert all(found == list(range(len(found))) for found in seen)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    full=st.sampled_from([1, 20_000, 10**9]),
    reopened=st.sets(st.integers(0, 39)),
)
def test_many_small_parts_are_merged_on_the_way(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], full: int, reopened: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "MERGE_AT", 4)
        patch.setattr(parts, "FULL", full)
        run, n = RunFolder(str(folder)), 0
        for number, count in enumerate(sizes):
            if number in reopened:
                run = RunFolder(str(folder))
            run.append("answers", rows(n, count))
            n += count
        listed = list((folder / "parts/answers").iterdir())
        assert run.read("answers")["n"].tolist() == list(range(n))
        assert [i for frame in run.iterate("answers", ["n"]) for i in frame["n"]] == list(range(n))
        loose = [p for p in listed if ".merged." not in p.name]
        if full == 1:
            assert len(listed) == len(sizes)
        elif full == 10**9:
            assert len(loose) < 4
        else:  # one that fits no neighbour stays as it is
            assert len(listed) <= len(sizes)
        run.compact("answers")
        assert run.read("answers")["n"].tolist() == list(range(n))


def test_a_merge_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FULL", 150_000)
    run = RunFolder(str(tmp_path))
    for first in range(70):
        run.append("answers", pd.DataFrame({"n": [first], "blob": [os.urandom(20_000)]}))
    run.compact("answers")
    found = [p.stat().st_size for p in (tmp_path / "parts/answers").iterdir()]
    assert max(found) <= 150_000
    assert 70 * 20_000 / 150_000 <= len(found) <= 20
    assert run.read("answers")["n"].tolist() == list(range(70))


def test_tables_and_figures(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    frame = pd.DataFrame({"trial_id": ["007", "1e3"], "value": [0.1 + 0.2, math.nan]})
    run.write_csv("trials.csv", frame)
    run.write_parquet("scores.parquet", frame)
    pd.testing.assert_frame_equal(run.read_csv("trials.csv"), frame)
    pd.testing.assert_frame_equal(run.read_parquet("scores.parquet"), frame)
    run.write_csv("trials.csv", pd.DataFrame())
    assert run.read_csv("trials.csv").empty
    assert run.read_csv("leaderboard.csv").empty
    run.write_figure("roc.png", b"png")
    assert (tmp_path / "figures/roc.png").read_bytes() == b"png"
    for name in ("../roc.png", "a/b.png", "roc.jpg"):
        with pytest.raises(StorageError):
            run.write_figure(name, b"")
    for name in ("../x.csv", "config.yaml", ""):
        with pytest.raises(StorageError):
            run.write_csv(name, frame)
