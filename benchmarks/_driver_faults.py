"""A sweep whose driver is killed or interrupted, and resumed: what is lost, and when it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml

from raybench.tracking.run_folder import RunFolder

_ROOT = Path(__file__).resolve().parents[1]
_LIMIT = 600.0

DRIVER: Mapping[str, tuple[str, signal.Signals]] = {
    "driver killed while training, resumed": ("epochs", signal.SIGKILL),
    "driver killed while explaining, resumed": ("maps", signal.SIGKILL),
    "Ctrl-C while explaining, resumed": ("maps", signal.SIGINT),
}
"""What is waited for, and the signal that ends the driver."""


def resumed(fault: str) -> dict[str, Any]:
    """Strike one small phantom sweep, go on with it, and count.

    Returns:
        `units` (epochs and maps of the whole sweep), `lost`, `failed`, `twice` (epochs trained and
        maps made that were there before), `ends` (seconds until the driver was gone) and `replaced`
        (seconds from the start of `--resume` until the first new epoch or map).

    Raises:
        RuntimeError: the sweep ended before it could be struck, or not at all.
    """
    what, how = DRIVER[fault]
    with TemporaryDirectory() as folder:
        study = _study(Path(folder))
        run = RunFolder(f"{folder}/runs/faults")
        process = _start(study)
        _wait(process, lambda: len(_done(run)[what]) >= 4)
        struck = time.monotonic()
        process.send_signal(how)
        process.wait(_LIMIT)
        ends, before = time.monotonic() - struck, _done(run)
        began = time.monotonic()
        process = _start(study, "--resume")
        n_before = sum(map(len, before.values()))
        _wait(process, lambda: sum(map(len, _done(run).values())) > n_before)
        goes_on = time.monotonic() - began
        if process.wait(_LIMIT) != 0:
            raise RuntimeError(f"{fault}: the resumed sweep ended with {process.returncode}")
        return _counted(run, before) | {"ends": round(ends, 1), "replaced": round(goes_on, 1)}


def _counted(run: RunFolder, before: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    after, twice, lost = _done(run), 0, 0
    for what, keys in (("epochs", ["trial_id", "epoch"]), ("maps", ["table", "image_id"])):
        new, old = after[what], before[what]
        if not len(old):
            continue
        twice += int(new.duplicated(keys).sum())
        # One that was made anew took another time.
        kept = old.merge(new, on=[*keys, "seconds"])
        twice += len(old.merge(new, on=keys)) - len(kept)
        lost += len(old) - len(old.merge(new, on=keys).drop_duplicates(keys))
    units = sum(len(frame) for frame in after.values())
    return {"units": units, "lost": lost, "failed": 0, "twice": twice}


def _done(run: RunFolder) -> dict[str, pd.DataFrame]:
    """Epochs by the event log, and maps by their tables, as far as they are written."""
    empty = {"epochs": pd.DataFrame(), "maps": pd.DataFrame()}
    if not run.storage.exists("events.jsonl"):
        return empty
    epochs = [e for e in run.events.read() if e["kind"] == "epoch"]
    columns = ["trial_id", "epoch", "seconds"]
    maps = [
        frame[frame.error.isna()][["image_id", "seconds"]].assign(table=table)
        for table in run.storage.names("parts")
        if table.startswith("maps_")
        for frame in run.iterate(table, ["image_id", "seconds", "error"])
    ]
    found = pd.concat(maps, ignore_index=True) if maps else empty["maps"]
    return {"epochs": pd.DataFrame(epochs, columns=columns), "maps": found}


def _study(folder: Path) -> Path:
    """The quickstart with one backbone, one trial and few images."""
    raw = yaml.safe_load((_ROOT / "sweeps" / "quickstart.yaml").read_text())
    raw["backbones"] = raw["backbones"][1:]
    raw["data"] |= {"n_train": 60}
    raw |= {"name": "faults", "search": {"trials_per_backbone": 1}, "tracking": {"live": False}}
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def _start(study: Path, *more: str) -> subprocess.Popen[bytes]:
    output = str(study.parent / "runs")
    command = [sys.executable, "-m", "raybench.sweep", str(study), "--output", output, *more]
    quiet = subprocess.DEVNULL
    environment = os.environ | {"RAY_ADDRESS": "local"}
    return subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=quiet, stderr=quiet)


def _wait(process: subprocess.Popen[bytes], ready: Any) -> None:
    end = time.monotonic() + _LIMIT
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("the sweep ended before the moment came, or it never came")
        time.sleep(0.05)
