"""The storage seam: whole files or none, locally and in a bucket. About 1 second."""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.errors import StorageError
from raybench.storage import Storage

ODD = ["a b.txt", "non_COVID (11905).png", "x [1]?*.png", "ünï/größe 1.txt", "a#b%20c.txt", ".hid"]


@pytest.fixture(params=["local", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty root with a space in its name."""
    if request.param == "local":
        return Storage(str(tmp_path / "my root"))
    return Storage(f"memory://raybench-{uuid.uuid4().hex}/my root")


def test_what_is_written_is_read(storage: Storage) -> None:
    for number, name in enumerate(ODD):
        storage.write(name, bytes([number]) * (number + 1))
    for number, name in enumerate(ODD):
        assert storage.exists(name)
        assert storage.read(name) == bytes([number]) * (number + 1)
    assert sorted(storage.walk()) == sorted(ODD)
    assert storage.names() == sorted(name.partition("/")[0] for name in ODD)
    assert storage.names("ünï") == ["größe 1.txt"]
    assert storage.sizes("ünï") == {"größe 1.txt": ODD.index("ünï/größe 1.txt") + 1}
    assert storage.sizes("gone") == {}
    assert storage.is_dir("ünï")
    assert not storage.is_dir("a b.txt")


def test_a_file_is_replaced_and_removed(storage: Storage) -> None:
    storage.write("folder/a.bin", b"first, and longer")
    storage.write("folder/a.bin", b"second")
    assert storage.read("folder/a.bin") == b"second"
    storage.write("folder/deep/b.bin", b"")
    assert list(storage.walk("folder")) == ["folder/a.bin", "folder/deep/b.bin"]
    storage.remove("folder/a.bin")
    assert not storage.exists("folder/a.bin")
    storage.remove("folder")
    storage.remove("folder")
    assert not storage.exists("folder/deep/b.bin")
    assert storage.names("folder") == []


def test_what_is_not_there_is_named(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"gone \[1\]\.txt: cannot be read"):
        storage.read("gone [1].txt")
    assert storage.names("gone") == []
    assert not storage.exists("gone")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "\\\\host\\a", "a/.."])
def test_no_path_leads_out_of_the_root(storage: Storage, name: str) -> None:
    for act in (
        lambda: storage.read(name),
        lambda: storage.write(name, b""),
        lambda: storage.exists(name),
        lambda: storage.remove(name),
        lambda: storage.append_line(name, "x"),
        lambda: storage.names(name),
    ):
        with pytest.raises(StorageError, match=r"leads out of|only a local file"):
            act()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "..", ".", "b c", "...", "..a"]), min_size=1, max_size=5))
def test_an_accepted_path_is_below_the_root(parts: list[str]) -> None:
    name = "/".join(parts)
    try:
        path = os.path.normpath(Storage("/some/root").path(name))
    except StorageError:
        assert ".." in parts
        return
    assert path == "/some/root" or path.startswith("/some/root/")


def test_local_paths_are_absolute_and_urls_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Storage("runs").path("a/b") == str(tmp_path / "runs" / "a" / "b")
    assert Storage(f"file://{tmp_path}").path("a") == str(tmp_path / "a")
    assert Storage(f"file://{tmp_path}").is_local
    assert Storage("s3://bucket/x/").path("a") == "s3://bucket/x/a"
    assert not Storage("s3://bucket/x").is_local
    with pytest.raises(StorageError, match="nowhere://x: no reader for this address"):
        Storage("nowhere://x").read("a")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a.txt", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync", full) if step == "fsync" else (Path, "replace", full)))
    with pytest.raises(StorageError, match=r"a\.txt: cannot be written .*No space left"):
        storage.write("a.txt", b"new")
    monkeypatch.undo()
    assert storage.read("a.txt") == b"old"
    assert list(storage.walk()) == ["a.txt"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a.txt", b"old")

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        storage.write("a.txt", b"new")
    assert storage.read("a.txt") == b"old"
    assert storage.names() == ["a.txt"]


def test_a_reader_beside_a_writer_sees_whole_files_only(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    size, n = 100_000, 30
    storage.write("a.bin", b"0" * size)
    seen: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(storage.read("a.bin"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(n):
        storage.write("a.bin", str(number % 10).encode() * size)
    done.set()
    reader.join()
    assert seen
    assert all(data == data[:1] * size for data in seen)


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a/b.txt", b"")
    with pytest.raises(StorageError, match="a: cannot be written"):
        storage.write("a", b"x")
    with pytest.raises(StorageError, match=r"b\.txt/c: cannot be written"):
        storage.write("a/b.txt/c", b"x")
    with pytest.raises(StorageError, match="a: cannot be read"):
        storage.read("a")


def test_lines_are_appended(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for line in ("first", "zweite Zeile ü", ""):
        storage.append_line("deep/log [1].jsonl", line)
    assert storage.read("deep/log [1].jsonl").decode() == "first\nzweite Zeile ü\n\n"
    with pytest.raises(StorageError, match="only a local file can be appended to"):
        Storage("memory://x").append_line("a", "b")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.append_line("deep", "x")


def test_removing_a_name_with_brackets_spares_the_others(
    storage: Storage, request: pytest.FixtureRequest
) -> None:
    for name in ("a[1].txt", "a1.txt", "b*.txt", "bc.txt"):
        storage.write(name, b"x")
    storage.remove("a[1].txt")
    storage.remove("b*.txt")
    assert storage.names() == ["a1.txt", "bc.txt"]
