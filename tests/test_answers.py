"""The store of answers: what is kept is found again, whole, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from raybench.answers import AnswerStore, digest
from raybench.errors import StorageError
from raybench.types import Arrays, Question, Unit

TABLE = np.random.default_rng(0).random((100, 3)).astype(np.float32)


def rows(start: int, stop: int) -> Arrays:
    return {"answers": TABLE[start:stop]}


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(str(tmp_path / "answers"))


def unit(start: int, stop: int, **more: Any) -> Unit:
    return Unit("u", {}, n_forward=stop - start, question=Question("key", start, stop), **more)


@given(
    parts=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 60)), max_size=6),
    wanted=st.tuples(st.integers(0, 99), st.integers(1, 60)),
)
@settings(max_examples=60, deadline=None)
def test_any_rows_are_found_where_all_of_them_are_kept(
    parts: list[tuple[int, int]], wanted: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = str(tmp_path_factory.mktemp("store"))
    kept = set()
    for start, length in parts:
        stop = min(start + length, 100)
        AnswerStore(root).keep("ab12", start, stop, rows(start, stop))
        kept |= set(range(start, stop))
    start, stop = wanted[0], min(sum(wanted), 100)
    found = AnswerStore(root).find("ab12", start, stop)  # another process: nothing in memory
    if set(range(start, stop)) <= kept:
        assert found is not None
        np.testing.assert_array_equal(found["answers"], TABLE[start:stop])
    else:
        assert found is None


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int32, np.uint8]),
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20),
    )
)
@settings(max_examples=60, deadline=None)
def test_arrays_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray
) -> None:
    root = str(tmp_path_factory.mktemp("store"))
    AnswerStore(root).keep("cd34", 5, 5 + len(array), {"x": array, "y": array[:, :1]})
    found = AnswerStore(root).find("cd34", 5, 5 + len(array))
    assert found is not None
    np.testing.assert_array_equal(found["x"], array)
    np.testing.assert_array_equal(found["y"], array[:, :1])
    assert found["x"].dtype == array.dtype


def test_a_question_is_asked_once(store: AnswerStore) -> None:
    asked: list[int] = []

    def run() -> Arrays:
        asked.append(1)
        return rows(0, 10)

    for expected in (10, 0, 0):
        arrays, n_forward = store.answer(unit(0, 10), "model", run)
        assert n_forward == expected
        np.testing.assert_array_equal(arrays["answers"], TABLE[:10])
    assert len(asked) == 1
    # a shorter question that begins alike is answered by the longer one
    again = AnswerStore(store.root)
    arrays, n_forward = again.answer(unit(2, 7), "model", run)
    assert n_forward == 0
    np.testing.assert_array_equal(arrays["answers"], TABLE[2:7])
    assert len(asked) == 1


def test_another_model_or_key_is_another_question(store: AnswerStore) -> None:
    store.answer(unit(0, 10), "model", lambda: rows(0, 10))
    other = Unit("u", {}, n_forward=10, question=Question("other", 0, 10))
    for asked, identity in ((unit(0, 10), "model 2"), (other, "model")):
        _, n_forward = store.answer(asked, identity, lambda: rows(20, 30))
        assert n_forward == 10


def test_a_model_without_a_name_is_asked_and_nothing_is_kept(
    store: AnswerStore, tmp_path: Path
) -> None:
    for _ in range(2):
        assert store.answer(unit(0, 10), None, lambda: rows(0, 10))[1] == 10
    assert not (tmp_path / "answers").exists()


def test_what_needs_no_model_is_kept_whoever_asks(store: AnswerStore) -> None:
    free = Unit("u", {}, needs_model=False, question=Question("key", 0, 10))
    store.answer(free, None, lambda: rows(0, 10))
    found, _ = store.answer(free, "model", lambda: rows(20, 30))  # not what is kept
    np.testing.assert_array_equal(found["answers"], TABLE[:10])


def test_the_files_are_parquet_that_anybody_can_read(store: AnswerStore, tmp_path: Path) -> None:
    store.keep("ab", 10, 14, rows(10, 14))
    (path,) = (tmp_path / "answers").rglob("*.parquet")
    frame = pq.read_table(path).to_pandas()
    assert list(frame.row) == [10, 11, 12, 13]
    np.testing.assert_array_equal(np.stack(list(frame.answers)), TABLE[10:14])


def test_a_file_that_is_none_is_named(store: AnswerStore, tmp_path: Path) -> None:
    store.keep("ab", 0, 4, rows(0, 4))
    (path,) = (tmp_path / "answers").rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StorageError, match=r"00000004\.parquet: expected a Parquet file"):
        AnswerStore(store.root).find("ab", 0, 4)


def test_rows_that_are_not_those_asked_for_are_refused(store: AnswerStore) -> None:
    with pytest.raises(StorageError, match=r"expected arrays \[5, m\]"):
        store.keep("ab", 0, 5, rows(0, 4))


def test_memory_is_bounded(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybench.answers._IN_MEMORY", 3 * TABLE.nbytes)
    for number in range(10):
        store.keep(f"k{number}", 0, 100, rows(0, 100))
        assert store._size <= 3 * TABLE.nbytes
    assert len(store._recent) == 3
    found = store.find("k0", 0, 100)
    assert found is not None
    np.testing.assert_array_equal(found["answers"], TABLE)


def test_digests_tell_parts_apart() -> None:
    a, b = np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)
    seen = [digest(a), digest(b), digest(a.astype(np.int8)), digest("ab", "c"), digest("a", "bc")]
    seen += [digest(b"a"), digest("a"), digest(a, a), digest(np.r_[a, a])]
    assert len(set(seen)) == len(seen)
    assert digest(a) == digest(a.copy(order="F"))
