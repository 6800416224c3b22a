"""What a sweep says at its end, and again whenever its finished folder is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from raybench.report.published import N_EXPLAINED, NAME, THRESHOLDS
from raybench.scoring.cuts import digits_of
from raybench.tracking.run_folder import RunFolder
from raybench.training.segment import SUPERVISED
from raybench.training.trial import SECOND

PUBLISHED = "published"
"""What a row of the published study's figures is marked with."""

_BOTH = "trial,\nbackbone"

_LONG = (_BOTH, "explainer", "95% interval")
"""Columns that go over several lines in a narrow console."""


def show(run: RunFolder, console: Console) -> None:
    """Print the trials, the leaderboard and where everything lies."""
    trials, board = run.read_csv("trials.csv"), run.read_csv("leaderboard.csv")
    study = run.read_csv(NAME)
    _print(console, lambda narrow: [_trials(trials, study, narrow)])
    if len(board):
        _print(console, lambda narrow: list(_boards(board, study, narrow)))
    for line in (*_lungs(run), *_compared(run)):
        console.print(line, highlight=False)
    warnings = [e["message"] for e in run.events.read() if e["kind"] == "warning"]
    for message in dict.fromkeys(warnings):
        short = message if len(message) < 600 else f"{message[:600]}... (all in events.jsonl)"
        console.print(f"Note: {short}", highlight=False, markup=False)
    console.print(f"\nEverything lies in {run.where}/", highlight=False, soft_wrap=True)
    for name, meaning in (
        ("report.html", "the page to read: open it in a browser"),
        ("leaderboard.csv", "the table above"),
        ("comparisons.csv", "a row a pair of explainers: by how much, how sure, in words"),
        ("strata.csv", "the same means by size and number of lesions, confidence, right or wrong"),
        (NAME, "the published study's figures, the italic rows above"),
        ("trials_supervised.csv", "a row a trial of the supervised U-Net"),
        ("trials_lungs.csv", "a row a trial of the U-Net that finds lungs"),
        ("scores.parquet", "a row a trial, image, explainer and threshold rule"),
        ("explainer_search.csv", "a row a setting of an explainer that was tried"),
        ("figures/", "infection maps, curves, ROC, calibration, confusion matrices, bars"),
        (
            "mlflow.db",
            f"compare the runs: mlflow ui --backend-store-uri sqlite:///{run.path}/mlflow.db",
        ),
    ):
        if run.storage.exists(name.rstrip("/")) or (run.path / name).exists():
            console.print(f"  {name:<22} {meaning}", highlight=False, soft_wrap=True)


def _print(console: Console, tables: Callable[[bool], list[Table]]) -> None:
    """Print tables, narrow ones where a wide one would be cut: a terminal begins with 80 columns.

    Args:
        tables: makes them; told whether they are to be narrow.
    """
    anywhere = console.options.update(width=10_000)
    wide = tables(False)
    fit = all(console.measure(t, options=anywhere).minimum <= console.width for t in wide)
    for table in wide if fit else tables(True):
        console.print(table)


def _lungs(run: RunFolder) -> Iterator[str]:
    """What is said of predicted lung masks."""
    found = [e for e in run.events.read() if e["kind"] == "lungs"][-1:]
    for event in found:
        yield (
            f"Lung masks of {event['predicted']:,} images are predicted by a U-Net (Dice "
            f"{event['val_dice']:.3f} on Val), not the data set's own."
        )


def _compared(run: RunFolder) -> Iterator[str]:
    """What is said of the best explainer, and of LIME and Grad-CAM."""
    found = [e for e in run.events.read() if e["kind"] == "compared"][-1:]
    for event in found:
        yield from event["sentences"]


def _number(value: object, digits: int = 3) -> str:
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    return f"{value:.{digits}f}"


def _interval(low: object, high: object) -> str:
    ends = (_number(low), _number(high))
    return "-" if "-" in ends else " to ".join(ends)


def _table(title: str, text: Sequence[str], numbers: Sequence[str], narrow: bool) -> Table:
    """A table without rows; a narrow one breaks heads and what is long instead of cutting it."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    if narrow:
        table.padding = (0, 1, 0, 0)
    for name in text:
        long = narrow and name in _LONG
        table.add_column(name, no_wrap=not long, overflow="fold" if long else "ellipsis")
    for name in numbers:
        head = name.replace(" ", "\n") if narrow else name
        table.add_column(head, justify="right", no_wrap=not narrow or name not in _LONG)
    return table


def _trials(frame: pd.DataFrame, study: pd.DataFrame, narrow: bool) -> Table:
    numbers: tuple[str, ...] = ("Val acc.", "Val AUC", "Test acc.", "95% interval", "Test AUC")
    if SECOND in frame:
        numbers = (*numbers, "Val loc.")
    text = (_BOTH,) if narrow else ("trial", "backbone")
    table = _table(
        "Trials (* best of its backbone, chosen on Val)",
        (*text, "status", "epochs"),
        numbers,
        narrow,
    )
    for row in frame.to_dict("records"):
        table.add_row(
            *_named(
                f"{row['trial_id']}{' *' if row['best'] else ''}", str(row["backbone"]), narrow
            ),
            str(row["status"]),
            str(row["n_epochs"]),
            *(_number(row.get(key)) for key in ("val_accuracy", "val_macro_auc", "test_accuracy")),
            _interval(row.get("test_accuracy_low"), row.get("test_accuracy_high")),
            _number(row.get("test_macro_auc")),
            *([_number(row[SECOND])] if SECOND in row else ()),
        )
    for backbone in dict.fromkeys(frame.backbone):
        if told := _published(study, backbone, ""):
            figures = ("-", _number(told["accuracy"]), "-", _number(told["macro_auc"]))
            last = ["-"] if SECOND in frame else []
            cells = ("-", "-", "-", *figures, *last)
            table.add_row(*_named(PUBLISHED, str(backbone), narrow), *cells, style="italic")
    return table


def _named(trial: str, backbone: str, narrow: bool) -> tuple[str, ...]:
    """What names a row: two cells, or one of two lines."""
    return (f"{trial}\n{backbone}",) if narrow else (trial, backbone)


def _boards(frame: pd.DataFrame, study: pd.DataFrame, narrow: bool) -> Iterator[Table]:
    numbers = ("n", "IoU", "Dice", "Hausdorff", "severity err.", "passes")
    is_unet = frame.explainer == SUPERVISED
    unet = frame[is_unet]
    for backbone, own in frame[~is_unet].groupby("backbone", sort=True):
        part = pd.concat([own, unet, *_published_rows(study, str(backbone))])
        title = f"{backbone}: localisation on Test, means over images"
        table = _table(title, ("explainer", "threshold"), numbers, narrow)
        for row in part.sort_values("iou", ascending=False).to_dict("records"):
            rule = str(row["threshold_rule"])
            table.add_row(
                str(row["explainer"]),
                f"{rule} {_number(row['threshold'], digits_of(rule))}",
                str(row["n"]),
                _number(row["iou"]),
                _number(row["dice"]),
                _number(row["hausdorff"], 1),
                _number(row.get("severity_mae")),
                _number(row["n_forward"], 0),
                style="italic" if str(row["explainer"]).endswith(f"({PUBLISHED})") else None,
            )
        yield table


def _published(study: pd.DataFrame, backbone: str, explainer: str) -> dict[str, float]:
    """The study's figures by metric; empty where it has none, or the data are not the study's."""
    if study.empty:
        return {}
    hit = study[(study.backbone == backbone) & (study.explainer.fillna("") == explainer)]
    return dict(zip(hit.metric, hit.value, strict=True))


def _published_rows(study: pd.DataFrame, backbone: str) -> Iterator[pd.DataFrame]:
    """The study's localisation, each explainer's as one row of a leaderboard."""
    for explainer, threshold in THRESHOLDS.items():
        if means := _published(study, backbone, explainer):
            row = {"explainer": f"{explainer} ({PUBLISHED})", "threshold_rule": "fixed"}
            yield pd.DataFrame([row | {"threshold": threshold, "n": N_EXPLAINED} | means])
