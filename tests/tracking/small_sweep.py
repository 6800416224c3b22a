"""A small run folder, and what MLflow's sqlite store holds of it."""

from __future__ import annotations

import math
import socket
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raybench.tracking import tracking_uri
from raybench.tracking.run_folder import RunFolder

CONFIG: dict[str, Any] = {
    "name": "fake sweep (it's small)",
    "data": {"name": "phantom", "size": 64},
    "explainers": [{"name": "lime", "n_samples": 100}, {"name": "grad_cam"}, {"name": "lung"}],
    "note": "x" * 7000,
    "nothing": [],
}
TRIALS = {"t1": "vgg16", "t2": "vgg16", "t3": "densenet121", "t10": "densenet121"}
STATUS = {"t1": "finished", "t2": "stopped", "t3": "failed", "t10": "finished"}
N_EPOCHS = 3
START = 1_700_000_000.0
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def write_epoch(run: RunFolder, trial_id: str, epoch: int, when: float, loss: float) -> None:
    run.events.append(
        "epoch",
        time=when,
        trial_id=trial_id,
        backbone=TRIALS[trial_id],
        epoch=epoch,
        phase="head",
        lr=1e-3,
        train_loss=loss,
        train_accuracy=0.5 + epoch / 10,
        val_loss=math.nan if (trial_id, epoch) == ("t3", 1) else loss * 2,
        val_accuracy=0.4 + epoch / 10,
        seconds=1.25,
    )


def scores() -> pd.DataFrame:
    random = np.random.default_rng(0)
    found = [
        {
            "trial_id": trial_id,
            "backbone": TRIALS[trial_id],
            "image_id": f"phantom_{image}",
            "split": split,
            "label": "COVID-19",
            "predicted": "COVID-19",
            "explainer": explainer,
            "threshold_rule": rule,
            "threshold": 0.5,
            "iou": random.random(),
            "dice": random.random(),
            "hausdorff": math.nan if image == 2 else random.random() * 100,
            "seconds": 2.0 + image,
            "n_forward": 100 if explainer == "lime" else 1,
            "error": "too dark" if image == 3 else None,
        }
        for trial_id in ("t1", "t10")
        for split in ("Val", "Test")
        for explainer in ("lime", "grad_cam", "lung")
        for image in range(5)
        for rule in ("fixed", "val")
        if (image, rule) != (0, "val")  # not every rule has a threshold for every image
    ]
    return pd.DataFrame(found)


def begin(root: Path) -> RunFolder:
    """A sweep on its way: all trials have begun, one has ended."""
    run = RunFolder(str(root))
    run.open(CONFIG, "d1gest", overwrite=True)
    run.events.append("sweep_started", time=START, version="0.1.0", config_digest="d1gest")
    for i, (trial_id, backbone) in enumerate(TRIALS.items()):
        run.events.append(
            "trial_started",
            time=START + 10 * i,
            trial_id=trial_id,
            backbone=backbone,
            hyperparameters={"head.lr": 1e-3 * (i + 1), "optimiser": "adam"},
        )
        for epoch in range(N_EPOCHS):
            write_epoch(run, trial_id, epoch, START + 10 * i + epoch, 1.0 / (epoch + 1))
    run.events.append("trial_finished", time=START + 50, trial_id="t1", status="finished")
    return run


def end(run: RunFolder) -> None:
    """The rest of the sweep. `t2` was resumed: its last epoch occurs a second time."""
    write_epoch(run, "t2", N_EPOCHS - 1, START + 60, 0.125)
    for trial_id, status in list(STATUS.items())[1:]:
        error = "out of memory" if status == "failed" else None
        run.events.append(
            "trial_finished", time=START + 70, trial_id=trial_id, status=status, error=error
        )
    run.events.append("stage_finished", time=START + 80, stage="explain", seconds=12.5, images=5)
    run.write_csv(
        "trials.csv",
        pd.DataFrame(
            {
                "trial_id": list(TRIALS),
                "backbone": list(TRIALS.values()),
                "best": [True, False, False, True],
                "val_accuracy": [0.6, 0.5, math.nan, 0.7],
                "test_accuracy": [0.55, math.nan, math.nan, 0.65],
                "test_accuracy_low": [0.5, math.nan, math.nan, 0.6],
                "test_n": [12, 12, 12, 12],
                "test_note": ["a", "b", "c", "d"],
            }
        ),
    )
    table = scores()
    run.write_parquet("scores.parquet", table)
    means = table[table["split"] == "Test"].groupby(["backbone", "explainer", "threshold_rule"])
    run.write_csv("leaderboard.csv", means[["iou", "dice"]].mean().reset_index())
    for name in ("leaderboard.png", "curves_t1.png", "curves_t10.png"):
        run.write_figure(name, PNG)
    run.events.append("sweep_finished", time=START + 90)


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri.default(root))


def dump(root: Path) -> dict[str, list[Any]]:
    """Every row that a projection writes."""
    with sqlite3.connect(root / "mlflow.db") as database:
        tables = ("experiments", "runs", "tags", "params", "metrics", "latest_metrics")
        found = {t: sorted(map(str, database.execute(f"SELECT * FROM {t}"))) for t in tables}
    database.close()
    return found


def files(root: Path) -> list[str]:
    below = root / "mlflow-artifacts"
    return sorted(str(p.relative_to(below)) for p in below.rglob("*") if p.is_file())


def by_trial(root: Path) -> dict[str | None, Any]:
    api = client(root)
    experiment = api.get_experiment_by_name(CONFIG["name"])
    runs = api.search_runs([experiment.experiment_id])
    found = {run.data.tags.get("raybench.trial_id"): run for run in runs}
    assert len(found) == len(runs) == 5
    return found


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return int(port)
