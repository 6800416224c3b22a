"""Whole sweeps in trouble: a bucket that refuses while one explains, and two on one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml

from raybench.tracking.run_folder import RunFolder
from tests.refusing import Refusing, until

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
TABLES = ("trials.csv", "leaderboard.csv", "comparisons.csv")
CHUNK = 20


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {
        "name": "test_efficientnet",
        "weights": "none",
        "input_size": 64,
        "batch_size": 8,
        "phases": [{"unfreeze": "full", "epochs": 2, "lr": {"low": 1e-3, "high": 1e-2}}],
    }
    config = {
        "name": "tiny",
        "data": {"name": "phantom", "n_train": 6, "n_val": 3, "n_test": 4, "size": 128},
        "backbones": [recipe],
        "search": {"trials_per_backbone": 1, "max_concurrent": 1},
        "explain": {
            "panels": 1,
            "explainers": [
                {"name": "lime", "n_samples": 600, "chunk": CHUNK},
                {"name": "grad_cam"},
                {"name": "whole_lung"},
            ],
        },
        "execution": {"workers": 1},
    }
    path = tmp_path_factory.mktemp("study") / "sweep.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(study: Path, output: str, *more: str) -> subprocess.Popen[str]:
    """A sweep with a Ray of its own, which knows where the bucket is."""
    return subprocess.Popen(
        [sys.executable, "-m", "raybench.sweep", str(study), "--output", output, *more],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": "local"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code, said[-4000:]
    assert "Traceback" not in said, said[-4000:]
    return said


@pytest.fixture(scope="module")
def near(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, int]:
    """A sweep left alone, and the forward passes that it made to explain."""
    output = tmp_path_factory.mktemp("near")
    said = finish(start(study, str(output)))
    return RunFolder(str(output / "tiny")), passes(said)


def passes(said: str) -> int:
    """Forward passes that explaining made, by its progress bar."""
    return max(int(n.replace(",", "")) for n in re.findall(r"([\d,]+) forward passes", said))


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("raybench: ")]
    assert len(lines) == 1, said[-4000:]
    return lines[0]


def same(run: RunFolder, near: RunFolder) -> None:
    """Every figure, and every map once."""
    assert run.is_finished
    for name in TABLES:
        a, b = (folder.read_csv(name) for folder in (near, run))
        assert len(a)
        skip = [c for c in ("seconds",) if c in a]
        pd.testing.assert_frame_equal(a.drop(columns=skip), b.drop(columns=skip), check_exact=True)
    for table in near.storage.names("parts"):
        if table.startswith("maps_"):
            found = run.read(table)
            assert not found.image_id.duplicated().any(), "no map is made twice"
            assert not found.error.notna().any(), "none failed"
            assert len(found) == len(near.read(table)), "none is lost"


def n_answers(run: RunFolder) -> int:
    return sum(1 for name in run.storage.walk("parts") if "maps_" in name)


@pytest.fixture
def proxy(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Refusing]:
    """What the sweeps take for the bucket; the test itself asks the server behind it."""
    found = Refusing(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield found
    found.close()


def explains(run: RunFolder, process: subprocess.Popen[str]) -> bool:
    assert process.poll() is None, process.communicate()[0][-4000:]
    begun = {e["stage"] for e in run.events.read() if e["kind"] == "stage_started"}
    return "explaining" in begun and n_answers(run) >= 2


@pytest.fixture
def far(s3: str, proxy: Refusing, tmp_path: Path) -> tuple[str, RunFolder]:
    import s3fs

    del proxy
    s3fs.S3FileSystem.clear_instance_cache()
    output = f"{s3}/{tmp_path.name}"
    return output, RunFolder(f"{output}/tiny")


def test_a_bucket_that_refuses_for_seconds_while_a_sweep_explains(
    study: Path, near: tuple[RunFolder, int], far: tuple[str, RunFolder], proxy: Refusing
) -> None:
    output, run = far
    process = start(study, output)
    until(lambda: explains(run, process), 200)
    before = n_answers(run)
    with proxy.refusing("close", 5.0):
        pass
    recovered = until(lambda: process.poll() is not None or n_answers(run) > before, 100)
    said = finish(process)
    same(run, near[0])
    twice = passes(said) - near[1]
    print(f"passes {passes(said)}, twice {twice}, {recovered:.1f} s to recover")
    assert proxy.n_refused > 0
    assert twice == 0


def test_a_bucket_that_refuses_for_long_while_a_sweep_explains(
    study: Path, near: tuple[RunFolder, int], far: tuple[str, RunFolder], proxy: Refusing
) -> None:
    output, run = far
    process = start(study, output)
    until(lambda: explains(run, process), 200)
    proxy.turn("503")
    begin = time.monotonic()
    said = finish(process, 2)
    ended = time.monotonic() - begin
    proxy.turn("serve")
    line = one_line(said)
    assert output in line
    assert "--resume" in line
    before = n_answers(run)
    begin = time.monotonic()
    process = start(study, output, "--resume")
    until(lambda: process.poll() is not None or n_answers(run) > before, 200)
    recovered = time.monotonic() - begin
    again = finish(process)
    same(run, near[0])
    made = passes(said) + passes(again)
    print(f"told after {ended:.1f} s; passes {made}, twice {made - near[1]}, {recovered:.1f} s")
    assert ended < 120
    assert 0 <= made - near[1] <= 2 * CHUNK, "two units in flight"


def second_is_refused(study: Path, output: str, where: str, *more: str) -> float:
    begin = time.monotonic()
    line = one_line(finish(start(study, output, *more), 2))
    assert f"{where}: another sweep is working in this folder (process " in line
    assert "wait until it ends, stop it, or choose another output folder" in line
    return time.monotonic() - begin


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_second_sweep_on_one_folder_is_refused_and_the_first_is_as_if_alone(
    study: Path, near: tuple[RunFolder, int], tmp_path: Path, more: list[str]
) -> None:
    process, run = start(study, str(tmp_path)), RunFolder(str(tmp_path / "tiny"))
    until(lambda: process.poll() is not None or bool(run.events.read()), 100)
    seconds = second_is_refused(study, str(tmp_path), str(tmp_path / "tiny"), *more)
    assert process.poll() is None, "the first still works"
    said = finish(process)
    same(run, near[0])
    print(f"refused after {seconds:.1f} s; passes {passes(said)}, twice {passes(said) - near[1]}")
    assert passes(said) == near[1]


def test_a_second_sweep_in_a_bucket_is_refused_and_the_first_is_as_if_alone(
    study: Path, near: tuple[RunFolder, int], far: tuple[str, RunFolder]
) -> None:
    output, run = far
    process = start(study, output)
    until(lambda: process.poll() is not None or bool(run.events.read()), 100)
    seconds = second_is_refused(study, output, f"{output}/tiny", "--overwrite")
    assert process.poll() is None, "the first still works"
    said = finish(process)
    same(run, near[0])
    print(f"refused after {seconds:.1f} s; passes {passes(said)}, twice {passes(said) - near[1]}")
    assert passes(said) == near[1]
