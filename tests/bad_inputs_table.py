"""The table of bad inputs: what each one is, how it is made, and what raybench says of it.

`test_bad_inputs_table.py` runs it, and `python tests/bad_inputs_table.py` (`make bad-inputs`)
writes `docs/bad-inputs.md` from it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

from raybench.config import load_config
from raybench.data.folder import Folder
from raybench.data.images import encode_png
from raybench.data.scan import scan
from raybench.errors import DataError, RaybenchError
from raybench.models.build import build
from raybench.models.checkpoint import load_checkpoint
from raybench.storage import Storage
from raybench.types import SPLITS

DOCS = Path(__file__).resolve().parents[1] / "docs" / "bad-inputs.md"
GRAY = np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8)
LUNGS = np.zeros((24, 32), np.bool_)
LUNGS[4:20, 4:28] = True
INFECTION = np.zeros((24, 32), np.bool_)
INFECTION[8:12, 8:12] = True
PNG = encode_png(GRAY)
JPEG = cv2.imencode(".jpg", GRAY)[1].tobytes()
HEADER = "image,label,split,lung_mask,infection_mask"
ROW = "a.png,sick,Test,lungs.png,infection.png"
SWEEP = {
    "name": "s",
    "data": {"name": "covid_qu_ex", "root": "DATA"},
    "backbones": [
        {"name": "test_resnet", "weights": "none", "phases": [{"epochs": 1, "lr": 0.001}]}
    ],
}
USED = "used"


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        group, title: where it stands in the docs, and what it is.
        says: makes it in an empty folder and gives what raybench says; `USED` where it is used.
        words: what the message must hold, or `USED`.
        note: for what is used, how.
    """

    group: str
    title: str
    says: Callable[[Path], str]
    words: tuple[str, ...]
    note: str = ""


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(height: int, width: int, bits: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = _chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + _chunk(b"IEND", b"")


def _rgba() -> bytes:
    return cv2.imencode(".png", np.dstack([GRAY] * 3 + [np.full_like(GRAY, 9)]))[1].tobytes()


def _palette() -> bytes:
    rows = b"".join(b"\0" + bytes([0, 1] * 16) for _ in range(24))
    return _png(24, 32, 8, 3, rows, _chunk(b"PLTE", bytes([10, 10, 10, 200, 200, 200])))


def _cmyk() -> bytes:
    file = io.BytesIO()
    Image.new("CMYK", (32, 24), (9, 8, 7, 6)).save(file, "JPEG")
    return file.getvalue()


def _plant(root: Path, index: str | bytes = f"{HEADER}\n{ROW}\n") -> None:
    storage = Storage(str(root))
    storage.write("a.png", PNG)
    storage.write("lungs.png", encode_png(LUNGS))
    storage.write("infection.png", encode_png(INFECTION))
    storage.write("index.csv", index if isinstance(index, bytes) else index.encode())


def _scan(root: Path) -> str:
    data = Folder.model_validate(
        {
            "name": "folder",
            "root": str(root),
            "infection_class": "sick",
            "classes": ["sick", "well"],
        }
    )
    found = scan(data, SPLITS, "skip", needs_lung_masks=True)
    if not found.bad:
        return USED
    try:
        scan(data, SPLITS, "stop", needs_lung_masks=True)
    except DataError as error:
        return found.bad[0] if error.problems == found.bad else "stop and skip disagree"
    return "stop does not stop"


def _told(read: Callable[[], object]) -> str:
    try:
        found = read()
    except RaybenchError as error:
        return str(error)
    return found if isinstance(found, str) else USED


def _file(name: str, data: bytes) -> Callable[[Path], str]:
    def says(root: Path) -> str:
        _plant(root)
        Storage(str(root)).write(name, data)
        return _told(lambda: _scan(root))

    return says


def _made(make: Callable[[Path], object], name: str = "a.png") -> Callable[[Path], str]:
    """Something that is no plain file in the place of one."""

    def says(root: Path) -> str:
        _plant(root)
        (root / name).unlink()
        make(root / name)
        return _told(lambda: _scan(root))

    return says


def _one_pixel(root: Path) -> str:
    _plant(root, f"{HEADER}\na.png,sick,Train,lungs.png,lungs.png\n")
    Storage(str(root)).write("a.png", encode_png(GRAY[:1, :1]))
    Storage(str(root)).write("lungs.png", encode_png(np.ones((1, 1), np.bool_)))
    return _told(lambda: _scan(root))


def _index(text: str | bytes) -> Callable[[Path], str]:
    def says(root: Path) -> str:
        _plant(root, text)
        return _told(lambda: _scan(root))

    return says


def _row(**cells: str) -> Callable[[Path], str]:
    row = dict(zip(HEADER.split(","), ROW.split(","), strict=True)) | cells
    return _index(f"{HEADER}\n{','.join(row.values())}\n")


def _outside(path: Path) -> None:
    beyond = path.parent.with_name("beyond")
    beyond.mkdir()
    (beyond / "secret.png").write_bytes(PNG)
    path.symlink_to(beyond / "secret.png")


def _inside(path: Path) -> None:
    path.with_name("real.png").write_bytes(PNG)
    path.symlink_to("real.png")


def _sweep(text: str | bytes) -> Callable[[Path], str]:
    def says(root: Path) -> str:
        root.mkdir(exist_ok=True)
        path = root / "sweep.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return _told(lambda: load_config(path))

    return says


def _key(key: str, value: str) -> Callable[[Path], str]:
    def says(root: Path) -> str:
        root.mkdir(exist_ok=True)
        (root / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        return _told(lambda: load_config(root / "sweep.yaml", [(key, value)]))

    return says


def _sweep_at(make: Callable[[Path], object]) -> Callable[[Path], str]:
    def says(root: Path) -> str:
        root.mkdir(exist_ok=True)
        make(root / "sweep.yaml")
        return _told(lambda: load_config(root / "sweep.yaml"))

    return says


def _checkpoint(data: bytes) -> Callable[[Path], str]:
    return lambda _: _told(lambda: load_checkpoint(data, "t0000.safetensors")[0])


def _weights(name: str, data: bytes) -> Callable[[Path], str]:
    def says(root: Path) -> str:
        Storage(str(root)).write(name, data)
        return _told(lambda: build("test_resnet", 2, str(root / name)))

    return says


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return os.putenv, ("RAYBENCH_EVIL", "1")


def _storage(root: str) -> Callable[[Path], str]:
    return lambda _: _told(lambda: Storage(root).read("a.png"))


_BOMB = _png(40_000, 40_000, 8, 0, b"")
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
_ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
_CARD = {"backbone": "test_resnet", "classes": ["a", "b"], "input_size": [64, 64]}
_UNFIT = safetensors.torch.save({"x": torch.zeros(2)}, {"raybench": json.dumps(_CARD)})
_IMAGES, _MASKS, _PLACES = "Images", "Masks", "Files and places"
_INDEX, _CONFIG, _WEIGHTS = "The index of `folder`", "Sweep files", "Weights and checkpoints"

CASES = [
    Case(_IMAGES, "a file of no bytes", _file("a.png", b""), ("a.png", "empty")),
    Case(_IMAGES, "a PNG cut short", _file("a.png", PNG[:-30]), ("a.png", "cut short")),
    Case(_IMAGES, "a JPEG cut short", _file("a.png", JPEG[:-40]), ("a.png", "cut short")),
    Case(
        _IMAGES,
        "a PNG with a flipped byte",
        _file("a.png", PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:]),
        ("a.png", "checksum"),
    ),
    Case(_IMAGES, "text named .png", _file("a.png", b"no picture"), ("neither a PNG nor a JPEG",)),
    Case(
        _IMAGES, "a decompression bomb", _file("a.png", _BOMB), ("50 megapixels", "40000 x 40000")
    ),
    Case(
        _IMAGES,
        "a header that promises more pixels than follow",
        _file("a.png", _png(24, 32, 8, 0, b"\0" * 33)),
        ("a.png", "cannot be decoded"),
    ),
    Case(
        _IMAGES,
        "an image of no pixels",
        _file("a.png", _png(0, 32, 8, 0, b"")),
        ("a.png", "no pixels"),
    ),
    Case(
        _IMAGES,
        "an animated PNG",
        _file("a.png", _png(24, 32, 8, 0, b"", _chunk(b"acTL", b"\0" * 8))),
        ("animated",),
    ),
    Case(_IMAGES, "a GIF", _file("a.png", b"GIF89a" + b"\0" * 30), ("a GIF", "8-bit PNG")),
    Case(
        _IMAGES,
        "DICOM by mistake",
        _file("a.png", b"\0" * 128 + b"DICM" + b"\0" * 90),
        ("DICOM", "8-bit PNG"),
    ),
    Case(_IMAGES, "a TIFF", _file("a.png", b"II*\0" + b"\0" * 90), ("TIFF", "8-bit PNG")),
    Case(_IMAGES, "a Git LFS pointer", _file("a.png", _LFS), ("git lfs pull",)),
    Case(
        _IMAGES,
        "a 16-bit PNG",
        _file("a.png", cv2.imencode(".png", GRAY.astype(np.uint16) * 257)[1].tobytes()),
        ("8-bit", "16-bit"),
    ),
    Case(_IMAGES, "a JPEG named .png", _file("a.png", JPEG), (USED,), "the content tells, no name"),
    Case(_IMAGES, "colour with transparency", _file("a.png", _rgba()), (USED,), "alpha is ignored"),
    Case(
        _IMAGES, "a palette", _file("a.png", _palette()), (USED,), "its colours, turned into grey"
    ),
    Case(_IMAGES, "a CMYK JPEG", _file("a.png", _cmyk()), ("a.png", "CMYK")),
    Case(
        _IMAGES,
        "an image of one pixel",
        _one_pixel,
        (USED,),
        "resized like any other",
    ),
    Case(
        _MASKS,
        "of another size",
        _file("lungs.png", encode_png(LUNGS[:20])),
        ("lungs.png", "24 x 32", "20 x 32"),
    ),
    Case(
        _MASKS,
        "with grey values",
        _file("infection.png", encode_png(INFECTION * np.uint8(7))),
        ("binary mask", "found 0, 7"),
    ),
    Case(
        _MASKS,
        "lungs empty",
        _file("lungs.png", encode_png(LUNGS & False)),
        ("a.png: expected a lung mask, found an empty one",),
    ),
    Case(_MASKS, "lungs full", _file("lungs.png", encode_png(LUNGS | True)), (USED,), "no masking"),
    Case(
        _MASKS,
        "infection empty",
        _file("infection.png", encode_png(INFECTION & False)),
        (USED,),
        "trained on; not explained. None at all in Val or Test is an error",
    ),
    Case(
        _MASKS,
        "infection full, beyond the lungs",
        _file("infection.png", encode_png(INFECTION | True)),
        ("a.png", "swapped"),
    ),
    Case(
        _MASKS,
        "lungs and infection swapped",
        _row(lung_mask="infection.png", infection_mask="lungs.png"),
        ("a.png", "swapped"),
    ),
    Case(
        _MASKS,
        "the X-ray itself as a mask",
        _row(lung_mask="a.png"),
        ("binary mask", "values", "without loss"),
    ),
    Case(
        _PLACES,
        "a folder where an image should be",
        _made(Path.mkdir),
        ("a.png", "no regular file"),
    ),
    Case(_PLACES, "a named pipe", _made(os.mkfifo), ("a.png", "no regular file")),
    Case(
        _PLACES,
        "a named pipe as the index",
        _made(os.mkfifo, "index.csv"),
        ("index.csv", "no regular file"),
    ),
    Case(
        _PLACES,
        "a link to a device",
        _made(lambda p: p.symlink_to("/dev/zero")),
        ("a.png", "leads out of"),
    ),
    Case(_PLACES, "a link out of the root", _made(_outside), ("a.png", "leads out of", "set root")),
    Case(_PLACES, "a link below the root", _made(_inside), (USED,), "followed"),
    Case(
        _PLACES,
        "a link in a circle",
        _made(lambda p: p.symlink_to(p.name)),
        ("a.png", "cannot be"),
    ),
    Case(
        _PLACES,
        "a link to nothing",
        _made(lambda p: p.symlink_to("gone.png")),
        ("a.png", "cannot be read"),
    ),
    Case(
        _PLACES,
        "keys in the address",
        _storage("s3://AKIA1:hunter2@bucket/x"),
        ("s3://AKIA1:***@bucket", "AWS_SECRET_ACCESS_KEY"),
    ),
    Case(_PLACES, "an unknown scheme", _storage("nfs4://host/x"), ("nfs4://host/x", "no reader")),
    Case(_PLACES, "nobody's home folder", _storage("~no-such-user/x"), ("no such home folder",)),
    Case(_INDEX, "an absolute path", _row(image="/etc/a.png"), ("line 2: image", "leads out of")),
    Case(_INDEX, "a path with ..", _row(lung_mask="x/../../a.png"), ("lung_mask", "leads out of")),
    Case(_INDEX, "a file that is not there", _row(image="b.png"), ("line 2: image: no file",)),
    Case(
        _INDEX,
        "one image twice",
        _index(f"{HEADER}\n{ROW}\n./{ROW}\n"),
        ("line 3: image: 'a.png' stands in line 2 already",),
    ),
    Case(_INDEX, "an unknown label", _row(label="ill"), ("expected sick, well, found 'ill'",)),
    Case(_INDEX, "NaN for a label", _row(label="NaN"), ("found 'NaN'",)),
    Case(_INDEX, "a huge number for a split", _row(split="9" * 40), ("expected Train, Val, Test",)),
    Case(_INDEX, "infinity for a path", _row(infection_mask="inf"), ("no file 'inf'",)),
    Case(
        _INDEX,
        "a name with a line break",
        _index(f'{HEADER}\n"a\nb.png",sick,Test,,\n'),
        ("control characters", r"'a\nb.png'"),
    ),
    Case(
        _INDEX,
        "a name with a zero byte",
        _index(f"{HEADER}\na\0.png,sick,Test,,\n"),
        ("control characters", r"'a\x00.png'"),
    ),
    Case(
        _INDEX,
        "a byte order mark",
        _index(f"\ufeff{HEADER}\n{ROW}\n"),
        (USED,),
        "the mark is left out",
    ),
    Case(
        _INDEX,
        "semicolons",
        _index(f"{HEADER}\n{ROW}\n".replace(",", ";")),
        ("missing image, label", "semicolons", "by commas"),
    ),
    Case(
        _INDEX,
        "UTF-16",
        _index(f"{HEADER}\n{ROW}\n".encode("utf-16")),
        ("found UTF-16: save it as UTF-8",),
    ),
    Case(
        _INDEX,
        "Latin-1",
        _index(f"{HEADER}\nä.png,sick,Test,,\n".encode("latin-1")),
        ("in UTF-8", "byte 44"),
    ),
    Case(
        _INDEX,
        "no header line",
        _index("a.png,p0001,63,F\n"),
        ("missing image, label", "a first line of 4 cells"),
    ),
    Case(_INDEX, "a line too short", _index(f"{HEADER}\na.png,sick\n"), ("line 2: 2 cells",)),
    Case(
        _INDEX,
        "a cell of a megabyte",
        _index(f"{HEADER}\n{'a' * 1_000_000},sick,Test,,\n"),
        ("CSV file", "field limit"),
    ),
    Case(_INDEX, "no bytes", _index(""), ("no header line",)),
    Case(_CONFIG, "a tag of Python's", _sweep("name: !!python/name:os.abort\n"), ("tag",)),
    Case(_CONFIG, "an alias bomb", _sweep(_ALIASES), ("aliases write out to more than",)),
    Case(_CONFIG, "an alias of itself", _sweep("a: &a [*a]\n"), ("itself part of",)),
    Case(
        _CONFIG,
        "ten thousand brackets",
        _sweep("a: " + "[" * 10_000),
        ("nested more than 50 deep",),
    ),
    Case(
        _CONFIG,
        "a key twice",
        _sweep("name: a\nname: b\n"),
        ("line 2", "'name' stands here for the second time"),
    ),
    Case(_CONFIG, "a list as a key", _sweep("? [a, b]\n: c\n"), ("sweep.yaml", "line 1")),
    Case(_CONFIG, "a number as a key", _sweep("1: c\n"), ("expected names as keys, found 1",)),
    Case(_CONFIG, "a 13th month", _sweep("name: 2020-13-01\n"), ("a value cannot be read",)),
    Case(_CONFIG, "no UTF-8", _sweep(b"name: \xff\n"), ("sweep.yaml", "expected a YAML file")),
    Case(_CONFIG, "two megabytes", _sweep("#" * 2_000_000), ("longer than 1,000,000 bytes",)),
    Case(_CONFIG, "a folder", _sweep_at(Path.mkdir), ("it cannot be read (Is a directory)",)),
    Case(_CONFIG, "a named pipe", _sweep_at(os.mkfifo), ("no regular file",)),
    Case(_CONFIG, "an unknown key", _key("sed", "1"), ("sed: not a setting; did you mean seed?",)),
    Case(
        _CONFIG,
        "NaN for a number",
        _key("backbones.0.phases.0.lr", ".nan"),
        ("backbones.0.phases.0.lr: expected a finite number, found nan",),
    ),
    Case(
        _CONFIG,
        "infinity for a number",
        _key("backbones.0.phases.0.lr", ".inf"),
        ("expected a finite number, found inf",),
    ),
    Case(
        _CONFIG,
        "an interval that ends at infinity",
        _key("backbones.0.phases.0.lr", "{low: 1.0e-3, high: .inf}"),
        ("high: expected a finite number, found inf",),
    ),
    Case(_CONFIG, "a huge number", _key("seed", "9" * 400), ("seed: expected a",)),
    Case(_CONFIG, "a name that leaves the folder", _key("name", "../x"), ("name: expected",)),
    Case(
        _CONFIG,
        "a password in a wrong place",
        _key("tracking", "postgresql://me:hunter2@host/db"),
        ("tracking: expected keys and values", "me:***@host"),
    ),
    Case(_WEIGHTS, "no bytes", _checkpoint(b""), ("t0000.safetensors", "not a checkpoint")),
    Case(_WEIGHTS, "noise", _checkpoint(b"\xff" * 99), ("t0000.safetensors", "not a checkpoint")),
    Case(
        _WEIGHTS,
        "a length beyond the file",
        _checkpoint(struct.pack("<Q", 2**63) + b"{}"),
        ("t0000.safetensors", "no checkpoint"),
    ),
    Case(
        _WEIGHTS,
        "safetensors of something else",
        _checkpoint(safetensors.torch.save({"x": torch.zeros(2)})),
        ("it carries no card",),
    ),
    Case(
        _WEIGHTS,
        "a card with other tensors",
        _checkpoint(_UNFIT),
        ("not a checkpoint that fits test_resnet",),
    ),
    Case(
        _WEIGHTS,
        "a pickle as a checkpoint",
        _checkpoint(pickle.dumps(_Evil())),
        ("not a checkpoint",),
    ),
    Case(
        _WEIGHTS,
        "a pickle that runs code, as weights",
        _weights("w.pth", pickle.dumps(_Evil())),
        ("w.pth does not fit",),
    ),
    Case(
        _WEIGHTS,
        "safetensors cut short, as weights",
        _weights("w.safetensors", _UNFIT[:-4]),
        ("w.safetensors does not fit",),
    ),
]


def said(case: Case, folder: Path) -> str:
    """What raybench says of a case, made in a folder of its own; places are called `DATA`."""
    root = folder / "data"
    text = case.says(root)
    return text.replace(str(root), "DATA").replace(str(folder), "HERE")


def page() -> str:
    """`docs/bad-inputs.md`."""
    lines = [
        "# Bad inputs",
        "",
        "What raybench says of each, made by `make bad-inputs` from `tests/bad_inputs_table.py`,",
        "which the tests run. `DATA` stands for the folder. Of images and masks these are the",
        "lines that `on_bad_image: stop` lists in one error; `skip` records them and goes on.",
    ]
    group = ""
    for case in CASES:
        if case.group != group:
            group = case.group
            lines += ["", f"## {group}", "", "| input | what happens |", "|---|---|"]
        with tempfile.TemporaryDirectory() as folder:
            text = said(case, Path(folder))
        told = f"used: {case.note}" if text == USED else f"`{_cell(text)}`"
        lines.append(f"| {case.title} | {told} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    one = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return one if len(one) <= 300 else f"{one[:300]}..."


if __name__ == "__main__":
    if sys.argv[1:] == ["--show"]:
        print(page())
    else:
        DOCS.write_text(page(), encoding="utf-8")
