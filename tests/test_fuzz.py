"""Random input: whatever is read, an error is one of raybench's own.

`make fuzz` runs for `RAYBENCH_FUZZ_SECONDS` in all, ten minutes by default, and says how many
examples that was. What it finds becomes a case of its own in the tests beside it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from raybench.config import load_config
from raybench.data.folder import Folder
from raybench.data.images import encode_png, read_gray, read_mask
from raybench.data.scan import scan
from raybench.errors import BadImageError, ConfigError, RaybenchError
from raybench.storage import Storage
from raybench.types import SPLITS

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("RAYBENCH_FUZZ_SECONDS", "600"))
FIRST = int(os.environ.get("RAYBENCH_FUZZ_SEED", "0"))
N_TESTS = 4
SWEEPS = sorted((Path(__file__).resolve().parents[1] / "sweeps").glob("*.yaml"))
GRAY = np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)


def _for_a_while(what: str, strategy: st.SearchStrategy[Any], check: Callable[[Any], bool]) -> None:
    """Run `check`, which says whether the input was used, on examples until the time is up."""
    count, used, end, number = 0, 0, time.monotonic() + SECONDS / N_TESTS, FIRST

    def one(example: Any) -> None:
        nonlocal count, used
        count += 1
        used += check(example)

    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    limits = settings(max_examples=200, deadline=None, database=None, suppress_health_check=slow)
    while time.monotonic() < end:
        limits(seed(number)(given(strategy)(one)))()
        number += 1
    print(f"\n{what}: {count:,} examples, {used:,} of them used, the others refused")
    assert 0 < used < count, "inputs of both kinds: those that are used and those that are refused"


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 300)
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=4)
    | st.sampled_from(["none", "hub", "lime", "phantom", "folder", "tpe", "../x", "~x", "a\0b", ""])
)
KEYS = st.text(max_size=6) | st.sampled_from(
    ["name", "low", "high", "log", "choices", "first", "root", "label", "fill", "lr", "phases"]
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
EDITS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=5),
        st.sampled_from(["replace", "drop", "rename", "copy"]),
        TREES,
        KEYS,
    ),
    min_size=1,
    max_size=4,
)


def _edit(tree: Any, places: list[int], how: str, junk: Any, key: str) -> None:
    """Change one place of a tree, found by going down by numbers as far as they lead."""
    for place in places[:-1]:
        inner = _at(tree, place)
        if not isinstance(inner, dict | list) or not inner:
            break
        tree = inner
    if not tree:
        return
    found = list(tree)[places[-1] % len(tree)] if isinstance(tree, dict) else None
    index = found if isinstance(tree, dict) else places[-1] % len(tree)
    if how == "replace":
        tree[index] = junk
    elif how == "drop":
        del tree[index]
    elif isinstance(tree, dict):
        tree[key] = tree.pop(index) if how == "rename" else copy.deepcopy(tree[index])
    else:
        tree.append(copy.deepcopy(tree[index]))


def _at(tree: Any, place: int) -> Any:
    values = list(tree.values()) if isinstance(tree, dict) else tree
    return values[place % len(values)]


def _load(path: Path, overrides: list[tuple[str, str]] | None = None) -> bool:
    try:
        config = load_config(path, overrides or [])
    except ConfigError:
        return False
    assert len(config.digest) == 16
    config.located()
    return True


def test_mutated_sweeps(tmp_path: Path) -> None:
    trees = [yaml.safe_load(path.read_text()) for path in SWEEPS]
    path = tmp_path / "sweep.yaml"

    def check(example: tuple[int, list[Any], list[tuple[str, str]]]) -> bool:
        which, edits, overrides = example
        tree = copy.deepcopy(trees[which])
        for edit in edits:
            _edit(tree, *edit)
        path.write_text(yaml.safe_dump(tree))
        return _load(path, overrides)

    dotted = st.lists(
        KEYS | st.sampled_from(["0", "9", "data", "explain", "explainers"]), min_size=1
    )
    overrides = st.lists(st.tuples(dotted.map(".".join), st.text(max_size=12)), max_size=2)
    _for_a_while("sweeps", st.tuples(st.integers(0, len(trees) - 1), EDITS, overrides), check)


def test_any_yaml(tmp_path: Path) -> None:
    texts = [path.read_bytes() for path in SWEEPS]
    path = tmp_path / "sweep.yaml"
    marks = [b"&a ", b"*a", b"? ", b"<<: ", b"!!int ", b"!!python/name:os ", b"!!timestamp ", b"- "]
    marks += [
        b"[",
        b"{",
        b"}",
        b"\n",
        b"---\n",
        b"\0",
        b"\xff",
        b": ",
        b"%TAG ! x\n",
        b"2020-13-01",
    ]

    def check(example: tuple[int, list[tuple[int, int, bytes]]]) -> bool:
        which, edits = example
        path.write_bytes(_spoilt(texts[which % len(texts)], edits))
        return _load(path)

    piece = st.sampled_from(marks) | st.binary(max_size=6) | st.text(max_size=6).map(str.encode)
    edits = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 60), piece), max_size=5)
    _for_a_while("YAML", st.tuples(st.integers(0, 99), edits), check)


def _spoilt(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Some bytes out, others in, at places of the data."""
    for place, n_out, piece in edits:
        start = place % (len(data) + 1)
        data = data[:start] + piece + data[start + n_out :]
    return data


def test_any_index(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a.png", "b/c.png", "d é.png"):
        storage.write(name, encode_png(GRAY))
    storage.write("m.png", encode_png(GRAY > 100))
    known = ["a.png", "b/c.png", "d é.png", "./a.png", "b", "m.png", "sick", "well", "Train"]
    odd = ["Val", "Test", "", "NaN", "inf", "../a.png", "/etc/passwd", "p1", "~", "C:\\x", "a\0b"]
    columns = ["image", "label", "split", "lung_mask", "infection_mask", "patient", "age"]
    cells = st.sampled_from(known + odd) | st.text(max_size=6)
    row = st.lists(cells, min_size=2, max_size=7)
    header = st.permutations(columns).flatmap(
        lambda names: st.integers(2, 7).map(lambda n: names[:n])
    )
    sound = st.sampled_from(
        [["a.png", "sick", "Test", "m.png", "m.png"], ["b/c.png", "well", "Train", "", "m.png"]]
    )
    edit = st.tuples(st.integers(0, 300), st.integers(0, 5), st.binary(max_size=4))

    def check(
        example: tuple[list[str], list[list[str]], str, list[tuple[int, int, bytes]]],
    ) -> bool:
        head, rows, mark, edits = example
        text = "\n".join(mark.join(cells) for cells in [head, *rows])
        storage.write("index.csv", _spoilt(text.encode("utf-8", "surrogatepass"), edits))
        data = Folder.model_validate(
            {"name": "folder", "root": str(tmp_path), "infection_class": "sick"}
        )
        try:
            found = scan(data, SPLITS, "skip", needs_lung_masks=False, n_threads=1)
        except RaybenchError:
            return False
        return bool(found.records)

    both = [["a.png", "sick", "Test", "m.png", "m.png"], ["b/c.png", "well", "Train", "", "m.png"]]
    wild = st.tuples(
        header | st.just(columns[:5]),
        st.lists(row | sound, max_size=5),
        st.sampled_from([",", ",", ",", ";", "\t"]),
        st.lists(edit, max_size=2),
    )
    near = st.tuples(
        st.just(columns[:5]),
        st.lists(sound, max_size=1).map(lambda more: both + more),
        st.just(","),
        st.lists(edit, max_size=2),
    )
    tables = wild | near
    _for_a_while("indexes", tables, check)


def _with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks' checksums are right again, as far as its lengths lead."""
    out, offset = data[:8], 8
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        body = data[offset + 4 : offset + 8 + length]
        if len(body) < 4 + length:
            break
        out += data[offset : offset + 4] + body + struct.pack(">I", zlib.crc32(body))
        offset += 12 + length
    return out + data[offset:]


def _pictures() -> list[bytes]:
    colour = np.dstack([GRAY, GRAY[::-1], GRAY[:, ::-1]])
    alpha = np.dstack([colour, GRAY])
    arrays = [GRAY, colour, alpha, (GRAY > 100) * np.uint8(255), GRAY.astype(np.uint16)]
    found = [cv2.imencode(".png", array)[1].tobytes() for array in arrays]
    found.append(cv2.imencode(".png", GRAY, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes())
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    found += [cv2.imencode(".jpg", array)[1].tobytes() for array in (GRAY, colour)]
    return [*found, cv2.imencode(".jpg", colour, progressive)[1].tobytes()]


def test_any_image(tmp_path: Path) -> None:
    storage, pictures = Storage(str(tmp_path)), _pictures()

    def check(example: tuple[int, list[tuple[int, int, bytes]], bool, int | None]) -> bool:
        which, edits, mended, cut = example
        data = _spoilt(pictures[which], edits)[:cut]
        (tmp_path / "a.png").write_bytes(_with_checksums(data) if mended else data)
        try:
            found = read_gray(storage, "a.png")
        except BadImageError:
            return False
        assert (found.dtype, found.ndim) == (np.uint8, 2)
        assert found.flags.c_contiguous
        with contextlib.suppress(BadImageError):
            read_mask(storage, "a.png", (24, 32))
        return True

    piece = st.binary(max_size=4) | st.sampled_from(
        [b"\xff\xd9", b"\xff\xc0", b"\xff\xd8", b"IDAT", b"acTL", b"PLTE", b"\0\0\0\0", b"\xff" * 4]
    )
    edits = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 8), piece), max_size=5)
    cut = st.none() | st.none() | st.integers(0, 1500)
    _for_a_while(
        "images", st.tuples(st.integers(0, len(pictures) - 1), edits, st.booleans(), cut), check
    )
