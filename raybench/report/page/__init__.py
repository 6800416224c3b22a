"""The report: one page of HTML, its template, style and script as files beside this one."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, FunctionLoader, StrictUndefined

from raybench.report.page.tables import Board, Table, board_of

__all__ = ["Board", "Chart", "Part", "Picture", "Row", "Table", "Tile", "board_of", "render"]


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure: its heading, a sentence below it, and the PNG file."""

    title: str
    text: str
    png: bytes

    @property
    def source(self) -> str:
        """As an address that holds the file itself."""
        return embedded(self.png, "image/png")


@dataclass(frozen=True, slots=True)
class Tile:
    """What one explainer makes of an image.

    Attributes:
        title: the explainer's.
        map: address of the infection map; empty where there is none.
        regions: address of LIME's regions for and against; empty where there are none.
        scores: by threshold rule, then by score; what is not defined is left out.
    """

    title: str
    map: str
    regions: str
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Picture:
    """An X-ray as it is shown: address, and outlines as SVG paths in a square of 100 by 100."""

    source: str
    ratio: float
    lungs: str
    infection: str


@dataclass(frozen=True, slots=True)
class Row:
    """One explained image of Test under one classifier.

    Attributes:
        disagreement: 1 minus the mean IoU of the explainers' salient masks, two at a time; None
            with fewer than two.
    """

    sweep: str
    backbone: str
    name: str
    label: str
    predicted: str
    confidence: float | None
    xray: Picture
    disagreement: float | None
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """All that is shown of one sweep.

    Attributes:
        sentences: its conclusions.
        facts: how it was made: what, and the text.
        words: every comparison: backbone, threshold rule, sentence, and whether significant.
        no_images: why there is no browser of images; empty where there is one.
        main_rule: the threshold rule that is shown at first.
    """

    name: str
    sentences: Sequence[str]
    board: Board
    tables: Sequence[Table]
    charts: Sequence[Chart]
    facts: Mapping[str, str]
    warnings: Sequence[str]
    words: Sequence[tuple[str, str, str, bool]]
    config: str
    rows: Sequence[Row] = field(default=())
    no_images: str = ""
    main_rule: str = "val"


def embedded(data: bytes, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def render(parts: Sequence[Part], title: str) -> str:
    """The whole page, which needs no other file but those that tiles name.

    Args:
        parts: a sweep each.
        title: of the page.

    Raises:
        ValueError: there is no sweep.
    """
    if not parts:
        raise ValueError("expected at least one sweep to report on, but got none")
    environment = Environment(
        loader=FunctionLoader(_file),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [asdict(row) for part in parts for row in part.rows]
    boards = [part.board for part in parts]
    rules = _all(board.rules for board in boards)
    return environment.get_template("report.html").render(
        parts=parts,
        title=title,
        rows=rows,
        backbones=_all(board.backbones for board in boards),
        rules=rules,
        rule=next((r for r in (parts[0].main_rule, *rules) if r in rules), ""),
        groups=_all(board.groups for board in boards),
        style=_file("report.css"),
        script=_file("report.js"),
        many=len(parts) > 1,
    )


def _all(names: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for of in names for name in of))


def _file(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def plain(value: Any) -> float | None:
    """A number that JSON can say; None for what is not defined."""
    if value is None or pd.isna(value) or math.isinf(float(value)):
        return None
    return round(float(value), 4)
