"""A bucket that refuses in the middle of the work, for a moment and for long: counted, resumed."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

import raybench.patience as patience
from raybench.errors import RunFolderError, StorageError, UnavailableError
from raybench.executor.jobs import Job, run_jobs
from raybench.executor.local import LocalPool
from raybench.storage import Storage
from raybench.tracking.lease import Lease
from raybench.tracking.run_folder import RunFolder
from raybench.types import Arrays, Question, Unit
from tests.refusing import Refusing, Way

CONFIG: dict[str, Any] = {"name": "fake", "seed": 0}
UNITS, AT = 40, 13


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Refusing]:
    """Stands before the S3 server from here on; clients that were made before are forgotten."""
    import s3fs

    found = Refusing(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    s3fs.S3FileSystem.clear_instance_cache()
    patience._known.clear()
    patience._since.clear()
    yield found
    found.close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def root(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex}"


def unit(number: int) -> pd.DataFrame:
    values = np.random.default_rng(number).bytes(2_000)
    return pd.DataFrame({"unit": [number], "map": [values]})


def work(run: RunFolder, computed: list[int], trouble: Any = None) -> None:
    done = run.read("maps_a")
    for number in sorted(set(range(UNITS)) - set(done.unit if len(done) else [])):
        computed.append(number)
        if trouble is not None and number == AT:
            trouble()
        run.append("maps_a", unit(number))
        if number % 10 == 0:
            run.events.append("warning", message=f"unit {number}")


def told(found: pd.DataFrame, computed: list[int], seconds: float, record: Any) -> int:
    """Print the count; how many were computed twice. All have to be there, once, and right."""
    lost = UNITS - found.unit.nunique()
    twice = len(computed) - len(set(computed))
    record("faults", {"computed": len(computed), "lost": lost, "twice": twice})
    print(f"computed {len(computed)}, lost {lost}, twice {twice}, {seconds:.1f} s to recover")
    assert lost == 0
    expected = pd.concat([unit(n) for n in range(UNITS)], ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values("unit", ignore_index=True), expected)
    return twice


def fast(*ways: Way) -> list[Any]:
    """All ways, those beside the named ones marked slow."""
    return [
        pytest.param(way, marks=[] if way in ways else pytest.mark.slow)
        for way in ("503", "403", "close", "hang")
    ]


@pytest.mark.parametrize("way", fast("503"))
def test_a_moment_of_refusal_is_waited_out(
    proxy: Refusing, root: str, way: Way, record_property: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    computed: list[int] = []
    back = 0.0

    def trouble() -> None:
        nonlocal back
        begin = time.monotonic()
        with proxy.refusing(way, 0.6):
            run.append("maps_b", unit(AT))  # while it refuses
            assert time.monotonic() - begin >= 0.6
        back = time.monotonic() - begin - 0.6

    with RunFolder(root) as run:
        run.open(CONFIG, "d1")
        run.append("maps_b", unit(0))
        work(run, computed, trouble)
        found = run.read("maps_a")
        assert len(run.read("maps_b")) == 2
        assert [e["message"] for e in run.events.read()] == [f"unit {n}" for n in (0, 10, 20, 30)]
    assert proxy.n_refused > 0
    assert told(found, computed, back, record_property) == 0
    assert back < 5
    if way != "hang":  # what is broken off there may be sent again by the client itself
        assert sum("refuses (" in record.message for record in caplog.records) == 1, "told once"


@pytest.mark.parametrize("way", fast("close"))
def test_a_long_refusal_is_one_clear_error_and_resume_computes_what_is_missing(
    proxy: Refusing,
    root: str,
    way: Way,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 1.0)
    monkeypatch.setattr(patience, "FIRST", 0.5)
    monkeypatch.setattr(Lease.__init__, "__defaults__", (0.1, 1.0, 1.0))
    computed: list[int] = []
    with RunFolder(root) as run:
        run.open(CONFIG, "d1")
        begin = time.monotonic()
        with pytest.raises((StorageError, RunFolderError)) as caught:
            work(run, computed, lambda: proxy.turn(way))
        ended = time.monotonic() - begin
        begin = time.monotonic()
        with pytest.raises((StorageError, RunFolderError)):
            run.events.append("warning", message="one more")  # what sweeps do as they end
    closed = time.monotonic() - begin
    a_try = 15.0 if way == "hang" else 0.5  # the client's own timeout
    assert ended < 1.0 + 4 * a_try + 2
    assert closed < 4 * a_try + 2
    said = str(caught.value)
    assert "\n" not in said
    assert root in said
    assert "--resume" in said
    assert "Traceback" not in capfd.readouterr().err
    print(f"{way}: told after {ended:.1f} s, closed after {closed:.1f} s")
    proxy.turn("serve")
    begin = time.monotonic()
    with RunFolder(root) as run:
        assert run.open(CONFIG, "d1", resume=True) == "resumed"
        work(run, computed)
        found = run.read("maps_a")
    assert told(found, computed, time.monotonic() - begin, record_property) <= 1


def test_what_never_worked_is_told_soon(proxy: Refusing, s3: str) -> None:
    proxy.turn("403")
    begin = time.monotonic()
    with pytest.raises(UnavailableError, match=r"s3://raybench/none: cannot be listed \(Access"):
        Storage(f"{s3}/none").names()
    assert time.monotonic() - begin < 2


@dataclass
class Counted:
    """Jobs of four units, whose answers are kept; at one of them the bucket begins to refuse."""

    proxy: Refusing
    ran: list[str]
    refuse_at: str = ""

    def plan(self, subject: str, done: Mapping[str, Arrays]) -> list[Unit]:
        return [
            Unit(
                str(i),
                {"of": subject},
                needs_model=False,
                question=Question(f"{subject}{i}".rjust(32, "0"), 0, 2),
            )
            for i in range(4)
            if not done
        ]

    def run(self, unit: Unit, classifier: Any) -> Arrays:
        name = f"{unit.payload['of']}:{unit.name}"
        self.ran.append(name)
        if name == self.refuse_at:
            self.proxy.turn("503")
        return {"said": np.full((2, 1), float(unit.name), np.float32)}

    def merge(self, subject: str, done: Mapping[str, Arrays]) -> float:
        return float(sum(a["said"].sum() for a in done.values()))


def test_a_store_that_refuses_ends_the_work_and_fails_no_image(
    proxy: Refusing, root: str, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setattr(patience, "PATIENCE", 0.5)
    task = Counted(proxy, [], refuse_at="6:2")
    jobs = [Job(n, task, f"{n}") for n in range(UNITS // 4)]
    results: dict[Any, Any] = {}

    def go_on() -> None:
        left = [job for job in jobs if job.key not in results]
        pool = LocalPool(lambda key: b"", 1, store=f"{root}/answers")
        for outcome in run_jobs(left, pool):
            assert outcome.error is None, "no image is recorded as failed"
            results[outcome.key] = outcome.result

    with pytest.raises(UnavailableError, match=r"answers.*refused for .* --resume"):
        go_on()
    assert 0 < len(results) < len(jobs)
    proxy.turn("serve")
    task.refuse_at, begin = "", time.monotonic()
    go_on()
    twice, lost = len(task.ran) - len(set(task.ran)), UNITS - len(set(task.ran))
    record_property("faults", {"computed": len(task.ran), "lost": lost, "twice": twice})
    seconds = time.monotonic() - begin
    print(f"computed {len(task.ran)}, lost {lost}, twice {twice}, {seconds:.1f} s to recover")
    assert (lost, twice) == (0, 1), "the unit whose answer could not be kept, and no other"
    assert results == dict.fromkeys(range(UNITS // 4), 12.0)
