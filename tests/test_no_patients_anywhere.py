"""What is planted of patients in a data set is in nothing that a sweep writes or says."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybench.data import Phantom
from raybench.data.phantom import write_phantoms
from raybench.storage import Storage

ROOT = Path(__file__).resolve().parents[1]
PLANTED = ("MRN-774411", "93yrs7", "femme-x", "19530417", "Roe^Jane", "St-Elsewhere")
CLASSES = ("COVID-19", "Non-COVID", "Normal")


def _chunk(kind: bytes, body: bytes) -> bytes:
    sum_ = zlib.crc32(kind + body).to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + kind + body + sum_


def _with_metadata(png: bytes) -> bytes:
    """The PNG with a text, a compressed text and EXIF that name a patient, behind its header."""
    told = " ".join(PLANTED).encode()
    more = _chunk(b"tEXt", b"Comment\0" + told)
    more += _chunk(b"zTXt", b"Patient\0\0" + zlib.compress(told))
    more += _chunk(b"eXIf", b"MM\0*\0\0\0\x08" + told)
    return png[:33] + more + png[33:]


def _plant(root: Path) -> None:
    """Phantoms as a `folder` whose index knows patients, ages, sexes and dates; two are broken."""
    write_phantoms(
        Phantom(name="phantom", n_train=4, n_val=2, n_test=2, size=64), Storage(str(root))
    )
    lines = ["image,label,split,lung_mask,infection_mask,patient,age,sex,date,name,place"]
    base = next(root.glob("*/*"))
    mrn, age, sex, date, name, place = PLANTED
    for n, image in enumerate(sorted(base.glob("*/*/images/*.png"))):
        image.write_bytes(_with_metadata(image.read_bytes()))
        split, cls = image.relative_to(base).parts[:2]
        paths = [
            str((image.parents[1] / kind / image.name).relative_to(root))
            for kind in ("images", "lung masks", "infection masks")
        ]
        lines.append(
            ",".join([paths[0], cls, split, *paths[1:], f"{mrn}-{n}", age, sex, date, name, place])
        )
    (root / "index.csv").write_text("\n".join(lines))
    for image in sorted(base.glob("Train/Normal/images/*.png"))[:2]:
        image.write_bytes(image.read_bytes()[:-20])


def _decoded(path: Path) -> bytes:
    """A file's bytes, and what they hold where they are compressed."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        data += pd.read_parquet(io.BytesIO(data)).to_csv().encode()
    if path.suffix == ".npz" or path.suffix == ".gz":
        raise AssertionError(f"{path}: say here how to look into it")
    return data


def _held(data: bytes) -> list[str]:
    return [word for word in PLANTED if word.encode() in data or word.encode("utf-16-le") in data]


def _seen_on_the_way(sweeping: subprocess.Popen[bytes], output: Path) -> dict[str, list[str]]:
    """What files held while the sweep ran, Tune's own state among them, which goes at its end."""
    found: dict[str, set[str]] = {}
    end = time.monotonic() + 300
    while sweeping.poll() is None:
        assert time.monotonic() < end, "the sweep does not end"
        for path in output.rglob("*"):
            with contextlib.suppress(OSError):  # gone since it was listed, or a folder
                found.setdefault(path.name, set()).update(_held(path.read_bytes()))
        time.sleep(0.1)
    return {name: sorted(held) for name, held in found.items()}


@pytest.mark.slow  # half a minute, most of it Ray's start
@pytest.mark.usefixtures("ray_cluster")
def test_nothing_of_a_patient_leaves_the_data_set(tmp_path: Path) -> None:
    import ray

    root, output = tmp_path / "data", tmp_path / "runs"
    _plant(root)
    config = {
        "name": "small",
        "output": str(output),
        "on_bad_image": "skip",
        "data": {"name": "folder", "root": str(root), "infection_class": "COVID-19"},
        "backbones": [
            {
                "name": "test_efficientnet",
                "weights": "none",
                "input_size": 64,
                "batch_size": 4,
                "phases": [{"unfreeze": "full", "epochs": 1, "lr": 1e-3}],
            }
        ],
        "search": {"trials_per_backbone": 1, "max_concurrent": 1},
        "explain": {
            "n_val": 1,
            "n_test": 2,
            "explainers": [{"name": "grad_cam"}, {"name": "whole_lung"}],
        },
        "execution": {"workers": 1},
    }
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_AUTH_MODE": "token",
    }
    talk = tmp_path / "said.txt"
    with talk.open("wb") as out:
        command = [sys.executable, "-m", "raybench.sweep", str(sweep)]
        sweeping = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        on_the_way = _seen_on_the_way(sweeping, output)
    said = talk.read_bytes()
    assert sweeping.returncode == 0, said.decode()[-3000:]
    assert any(name.endswith(".pkl") for name in on_the_way), "Tune's pickles were never seen"
    assert {name: held for name, held in on_the_way.items() if held} == {}
    assert b"cut short" in (output / "small" / "events.jsonl").read_bytes()
    files = [path for path in output.rglob("*") if path.is_file()]
    assert {"scores.parquet", "mlflow.db", "events.jsonl"} <= {path.name for path in files}
    found = {str(path.relative_to(output)): _held(_decoded(path)) for path in files}
    names = "\n".join(str(path) for path in output.rglob("*")).encode()
    assert {name: held for name, held in found.items() if held} == {}
    assert _held(said) == []
    assert _held(names) == []
    assert all(_held(path.read_bytes()) for path in root.rglob("Test/Normal/images/*.png"))
