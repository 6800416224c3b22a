"""What a sweep says at its end, and again whenever its finished folder is asked for."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.table import Table

from raybench.tracking.run_folder import RunFolder


def show(run: RunFolder, console: Console) -> None:
    """Print the trials, the leaderboard and where everything lies."""
    trials, board = run.read_csv("trials.csv"), run.read_csv("leaderboard.csv")
    console.print(_trials(trials))
    console.print(_board(board))
    warnings = [e["message"] for e in run.events.read() if e["kind"] == "warning"]
    for message in dict.fromkeys(warnings):
        console.print(f"Note: {message}", highlight=False, markup=False)
    console.print(f"\nEverything lies in {run.path}/", highlight=False, soft_wrap=True)
    for name, meaning in (
        ("leaderboard.csv", "the table above"),
        ("scores.parquet", "a row a trial, image, explainer and threshold rule"),
        ("figures/", "infection maps, curves, ROC, confusion matrices, bars"),
        (
            "mlflow.db",
            f"compare the runs: mlflow ui --backend-store-uri sqlite:///{run.path}/mlflow.db",
        ),
    ):
        if run.storage.exists(name.rstrip("/")):
            console.print(f"  {name:<16} {meaning}", highlight=False, soft_wrap=True)


def _number(value: object, digits: int = 3) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}"


def _trials(frame: pd.DataFrame) -> Table:
    table = Table(title="Trials (* best of its backbone, chosen on Val)", title_justify="left")
    for name in ("trial", "backbone", "status", "epochs"):
        table.add_column(name, no_wrap=True)
    for name in ("Val accuracy", "Val AUC", "Test accuracy", "Test AUC"):
        table.add_column(name, justify="right")
    for row in frame.to_dict("records"):
        table.add_row(
            f"{row['trial_id']}{' *' if row['best'] else ''}",
            str(row["backbone"]),
            str(row["status"]),
            str(row["n_epochs"]),
            *(
                _number(row.get(key))
                for key in ("val_accuracy", "val_macro_auc", "test_accuracy", "test_macro_auc")
            ),
        )
    return table


def _board(frame: pd.DataFrame) -> Table:
    table = Table(title="Localisation on Test, means over images", title_justify="left")
    for name in ("backbone", "explainer", "threshold"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "IoU", "Dice", "Hausdorff", "passes"):
        table.add_column(name, justify="right")
    ordered = (
        frame.sort_values(["backbone", "iou"], ascending=[True, False]) if len(frame) else frame
    )
    before = None
    for row in ordered.to_dict("records"):
        if before not in (None, row["backbone"]):
            table.add_section()
        before = row["backbone"]
        table.add_row(
            str(row["backbone"]),
            str(row["explainer"]),
            f"{row['threshold_rule']} {_number(row['threshold'], 2)}",
            str(row["n"]),
            _number(row["iou"]),
            _number(row["dice"]),
            _number(row["hausdorff"], 1),
            _number(row["n_forward"], 0),
        )
    return table
