"""Tables as the page shows them: cells with a text, an interval, and what they are sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raybench.scoring.cuts import digits_of


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        sort: what it is sorted by: a number, or text; an empty text comes last.
        low, high: ends of the interval, in words; empty: none.
        bar: value and ends as shares of the row's width, 0 to 100; None: no bar.
    """

    text: str
    sort: str
    interval: str = ""
    bar: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, the group it is shown with, whether a higher value is better, and what it is."""

    title: str
    group: str
    is_number: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A row: its kind (explainer, reference, supervised), what it is filtered by, its cells."""

    kind: str
    backbone: str
    rule: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A leaderboard."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    groups: tuple[str, ...]
    backbones: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice of the rows to show: those with one text in one column.

    Attributes:
        column: its place.
        chosen: what is shown at first; empty: everything.
    """

    column: int
    title: str
    values: tuple[str, ...]
    chosen: str


@dataclass(frozen=True, slots=True)
class Table:
    """A plain table with a heading and a sentence; `main_rule` is what it shows at first."""

    title: str
    text: str
    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    main_rule: str = "val"

    @property
    def filters(self) -> tuple[Filter, ...]:
        """Of a table too long to look through, a choice for each column of a few words.

        Of threshold rules the main one is chosen at first, as on the leaderboard.
        """
        if len(self.lines) <= LONG:
            return ()
        found = []
        for column, title in enumerate(self.columns):
            cells = [line[column] for line in self.lines]
            values = tuple(dict.fromkeys(c.text for c in cells))
            if 1 < len(values) <= MOST_VALUES and not any(_is_figure(c) for c in cells):
                is_main = title == heading("threshold_rule") and self.main_rule in values
                found.append(Filter(column, title, values, self.main_rule if is_main else ""))
        return tuple(found)


def _is_figure(cell: Cell) -> bool:
    try:
        float(cell.sort)
    except ValueError:
        return False
    return True


LONG = 20
"""Rows that a table shows without being asked which."""

MOST_VALUES = 40
"""Texts of a column that a person can still choose from."""

GROUPS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Overlap": (
        ("iou", "IoU", "intersection by union with the infection mask, 0 to 1"),
        ("dice", "Dice", "twice the intersection by the sum of both, 0 to 1"),
        ("precision", "Precision", "share of the salient mask that is infected"),
        ("recall", "Recall", "share of the infection that is salient"),
        ("specificity", "Specificity", "share of what is not infected that is not salient"),
    ),
    "Outline": (
        ("hausdorff", "Hausdorff", "pixels; over all mask pixels, as the study has it"),
        ("hausdorff_outline", "Hausdorff (outline)", "pixels, between outlines"),
        ("hd95", "HD95", "pixels, 95th percentile between outlines"),
        ("assd", "ASSD", "pixels, mean between outlines"),
        ("nsd", "NSD", "share of the outlines within the tolerance"),
    ),
    "Map": (
        ("hit_rate", "Hit rate", "share of the map's maximum inside the infection"),
        ("mass_accuracy", "Mass", "share of positive attribution inside the infection"),
        ("rank_accuracy", "Rank", "share of the strongest pixels inside, as many as infected"),
        ("pixel_auroc", "Pixel AUROC", "infected pixels ranked above others"),
        ("pixel_ap", "Pixel AP", "average precision over pixels"),
        ("outside_lungs", "Outside lungs", "share of the attribution outside the lungs"),
    ),
    "Severity": (("severity_mae", "Severity error", "mean error of the share of lungs infected"),),
    "Cost": (
        ("seconds", "Seconds", "of work an image"),
        ("n_forward", "Passes", "forward passes an image"),
    ),
}


def number(value: Any, digits: int = 3) -> str:
    """A figure in words; a dash where it is not defined."""
    if value is None or pd.isna(value):
        return "–"
    value = float(value)
    if math.isinf(value):
        return "∞"
    if digits == 3 and abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{min(digits, 1) if abs(value) >= 10 else digits}f}"


def cell(value: Any, low: Any = None, high: Any = None, most: float | None = None) -> Cell:
    """A figure with its interval; `most` is the figure that fills the bar, None: no bar."""
    if value is None or pd.isna(value):
        return Cell("–", "")
    has = low is not None and high is not None and not (pd.isna(low) or pd.isna(high))
    interval = f"{number(low)} to {number(high)}" if has else ""
    bar = None
    if most:
        ends = (float(low), float(high)) if has else (float(value), float(value))
        share, left, right = (
            round(100 * min(1.0, max(0.0, v / most)), 1) for v in (float(value), *ends)
        )
        bar = (share, left, right)
    return Cell(number(value), repr(float(value)), interval, bar)


def board_of(
    board: pd.DataFrame, references: Sequence[str], supervised: str = "", sweep: str = ""
) -> Board:
    """The leaderboard, the best IoU first.

    Columns that the table lacks, or that are empty throughout, are left out.

    Args:
        board: as `leaderboard.csv` has it.
        references: explainers that look at no model.
        supervised: the network that learned from masks.
        sweep: shown as the first column; empty: it is not.
    """
    board = board.sort_values("iou", ascending=False, kind="stable")
    known = {name for group in GROUPS.values() for name, _, _ in group}
    extra = [
        name[: -len("_low")]
        for name in board.columns
        if name.endswith("_low") and name[: -len("_low")] not in {*known, "iou_rank"}
    ]
    more = tuple((name, name.replace("_", " "), "") for name in extra)
    groups = {**GROUPS, **({"More": more} if more else {})}
    shown = {
        title: [(n, t, note) for n, t, note in group if n in board and board[n].notna().any()]
        for title, group in groups.items()
    }
    columns = [Column("Sweep", "", False)] if sweep else []
    columns += [Column(t, "", False) for t in ("Backbone", "Explainer", "Threshold")]
    columns.append(Column("n", "", True, "images"))
    flags = [("iou_rank", "Rank", "by IoU, 1 the best, with its interval")]
    flags += [("above_whole_lung", "Above whole lung", "significantly better than no model at all")]
    flags += [("unmoved", "Unmoved", "the map stays when the model's weights are randomised")]
    flags = [flag for flag in flags if flag[0] in board]
    columns += [Column(title, "", name == "iou_rank", note) for name, title, note in flags]
    for group, members in shown.items():
        columns += [Column(title, group, True, note) for _, title, note in members]
    lines = []
    most = float(board[[c for c in ("iou", "iou_high") if c in board]].max().max())
    for row in board.to_dict("records"):
        name = str(row["explainer"])
        kind = "reference" if name in references else "explainer"
        kind = "supervised" if supervised and name == supervised else kind
        backbone, rule = str(row["backbone"]), str(row["threshold_rule"])
        cut = f"{rule} {number(row.get('threshold'), digits_of(rule))}"
        cells = [Cell(t, t) for t in ((sweep,) if sweep else ())]
        cells += [Cell(t, t) for t in (backbone, name, cut)]
        cells.append(Cell(str(row["n"]), str(row["n"])))
        cells += [_flag(row, flag) for flag, _, _ in flags]
        for members in shown.values():
            cells += [
                cell(
                    row[n], row.get(f"{n}_low"), row.get(f"{n}_high"), most if n == "iou" else None
                )
                for n, _, _ in members
            ]
        lines.append(Line(kind, backbone, rule, tuple(cells)))
    return Board(
        tuple(columns),
        tuple(lines),
        tuple(title for title, members in shown.items() if members),
        tuple(dict.fromkeys(line.backbone for line in lines)),
        tuple(dict.fromkeys(line.rule for line in lines)),
    )


def _flag(row: dict[Any, Any], name: str) -> Cell:
    value = row[name]
    if name == "iou_rank":
        low, high = row.get("iou_rank_low"), row.get("iou_rank_high")
        has = low is not None and not pd.isna(low)
        interval = f"{float(low):g} to {float(high):g}" if has else ""  # type: ignore[arg-type]
        return Cell("–", "") if pd.isna(value) else Cell(f"{value:g}", str(value), interval)
    return Cell("–", "") if pd.isna(value) else _words(value)


def _words(value: Any) -> Cell:
    """A text; what is true or false as people say it. Tables that were read have them as texts."""
    text = {"True": "yes", "False": "no"}.get(str(value), str(value))
    return Cell(text, text)


_HEADINGS = {
    **{name: title for group in GROUPS.values() for name, title, _ in group},
    "f1": "F1",
    "macro_auc": "Macro AUC",
    "ece": "Calibration error",
    "n": "n",
}


def heading(column: str) -> str:
    """A column's name as people write it."""
    return _HEADINGS.get(column, column.replace("_", " ").capitalize())


def table_of(title: str, text: str, frame: pd.DataFrame, names: dict[str, str]) -> Table:
    """A plain table of some columns of a frame.

    Args:
        names: column and its heading; one that ends in `~` is shown with its interval (`_low`,
            `_high`).
    """
    kept = {c: t for c, t in names.items() if c.rstrip("~") in frame}
    lines = []
    for row in frame.to_dict("records"):
        cells = []
        for column in kept:
            name = column.rstrip("~")
            value = row[name]
            if isinstance(value, str | bool):
                cells.append(_words(value))
            elif column.endswith("~"):
                cells.append(cell(value, row.get(f"{name}_low"), row.get(f"{name}_high")))
            else:
                whole = not pd.isna(value) and float(value).is_integer()
                text_of = f"{int(value):,}" if whole else number(value)
                cells.append(Cell(text_of, "" if pd.isna(value) else repr(float(value))))
        lines.append(tuple(cells))
    return Table(title, text, tuple(kept.values()), tuple(lines))
