"""The report's page: what is in it, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench.report.page import Chart, Part, Picture, Row, Tile, board_of, embedded, render
from raybench.report.page.tables import cell, number, table_of
from raybench.report.tiles import outline, photo

EVIL = '<script>alert("x")</script>&.png'
EXPLAINERS = ("lime", "grad_cam", "whole_lung")


def board(rules: tuple[str, ...] = ("fixed", "val")) -> pd.DataFrame:
    rows = []
    for b, backbone in enumerate(("net_a", "net_b")):
        for rule in rules:
            for i, name in enumerate((*EXPLAINERS, "supervised")):
                iou = (0.2, 0.3, 0.1, 0.6)[i] + 0.01 * b
                rows.append(
                    {"backbone": backbone, "trial_id": f"t{b}", "explainer": name}
                    | {"threshold_rule": rule, "threshold": 0.5, "n": 4}
                    | {"iou": iou, "iou_low": iou - 0.05, "iou_high": iou + 0.05}
                    | {"dice": iou + 0.1, "hausdorff": 90.0 if i else np.nan, "seconds": 1.0}
                    | {"iou_rank": 4 - i, "iou_rank_low": 1, "iou_rank_high": 4}
                    | {"above_whole_lung": "no", "road": 0.5, "road_low": 0.4, "road_high": 0.6}
                )
    return pd.DataFrame(rows)


def rows(n: int, sweep: str = "one") -> list[Row]:
    rng = np.random.default_rng(0)
    source = embedded(photo(rng.integers(0, 255, (64, 64), np.uint8), 48), "image/jpeg")
    mask = np.zeros((64, 64), np.bool_)
    mask[10:30, 20:40] = True
    found = []
    for i in range(n):
        tiles = tuple(
            Tile(t, source, source if t == "lime" else "", {"val": {"iou": (7 * i % n) / n + k}})
            for k, t in enumerate(EXPLAINERS)
        )
        xray = Picture(source, 1.0, outline(mask), outline(mask))
        said = ("COVID-19", "Normal")[i % 2]
        name = EVIL if i == 0 else f"image_{i}.png"
        apart = None if i == 1 else i / n
        found.append(Row(sweep, "net_a", name, "COVID-19", said, 0.9, xray, apart, tiles))
    return found


def part(n: int = 12, name: str = "one") -> Part:
    table = table_of("Trials", "All.", pd.DataFrame({"a": [1.0, None, 3.5]}), {"a": "A"})
    return Part(
        name=name,
        sentences=["lime above grad_cam by 0.10 IoU [0.05, 0.15]; a <b> in it."],
        board=board_of(board(), ["whole_lung"], "supervised"),
        tables=[table],
        charts=[Chart("ROC", "Test.", photo(np.zeros((8, 8), np.uint8)))],
        facts={"Seed": "0"},
        warnings=[EVIL],
        words=[("net_a", "val", "lime above grad_cam", True), ("net_b", "val", "other", False)],
        config="name: one\n",
        rows=rows(n, name),
    )


def test_figures_in_words() -> None:
    words = [number(v) for v in (None, float("nan"), 0.12345, 12.345, 1234.5, float("inf"))]
    assert words == ["–", "–", "0.123", "12.3", "1,234", "∞"]
    assert cell(0.25, 0.2, 0.3, most=0.5).bar == (50.0, 40.0, 60.0)
    assert cell(None).sort == "", "what is not defined is sorted last"


def test_an_outline_is_that_of_the_mask() -> None:
    mask = np.zeros((100, 200), np.bool_)
    mask[20:40, 50:100] = True
    numbers = [float(v) for v in re.findall(r"[\d.]+", outline(mask))]
    x, y = numbers[::2], numbers[1::2]
    assert (min(x), max(x)) == pytest.approx((25, 50), abs=0.5)
    assert (min(y), max(y)) == pytest.approx((20, 40), abs=1)
    assert (outline(None), outline(np.zeros((4, 4), np.bool_))) == ("", "")


def test_the_board_has_the_best_first_and_only_columns_that_are_there() -> None:
    found = board_of(board().drop(columns="dice"), ["whole_lung"], "supervised")
    titles = [column.title for column in found.columns]
    assert "Dice" not in titles
    assert ("road", "More") in [(c.title, c.group) for c in found.columns]
    kinds = [line.kind for line in found.lines if line.rule == "val" and line.backbone == "net_a"]
    assert kinds == ["supervised", "explainer", "explainer", "reference"]


def test_nothing_in_a_name_becomes_part_of_the_page() -> None:
    page = render([part()], EVIL)
    assert "<script>alert" not in page
    assert page.count("<script") == 2, "the data and the page's own"
    data = page.split('id="rows">', 1)[1].split("</script>", 1)[0]
    assert json.loads(data)[0]["name"] == EVIL
    assert not re.search(r'(src|href)="(?!#|data:)', page), "it needs no other file"
    with pytest.raises(ValueError, match="at least one sweep"):
        render([], "none")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium of this machine."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Callable[..., Any]:
    """A page in the browser; what it complains of fails the test."""

    def look(parts: list[Part], width: int = 1366, height: int = 900) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render(parts, "a sweep"), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else 0)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        return page

    complaints: list[str] = []
    look.complaints = complaints  # type: ignore[attr-defined]
    return look


def shown(page: Any, selector: str) -> list[Any]:
    return [node for node in page.query_selector_all(selector) if node.is_visible()]


def test_it_sorts_filters_and_shows_an_image(opened: Callable[..., Any]) -> None:
    page = opened([part()])
    names = [r.query_selector_all("td")[1].inner_text() for r in shown(page, ".board tbody tr")]
    assert names[:2] == ["supervised", "supervised"]
    assert len(names) == 8, "one threshold rule at first"
    page.select_option("#board-controls [name=backbone]", "net_b")
    assert len(shown(page, ".board tbody tr")) == 4 + 1, "the U-Net stands beside every backbone"
    page.select_option("#board-controls [name=backbone]", "")
    assert not shown(page, "th[data-group=Outline]")
    page.check("#board-controls [value=Outline]")
    assert shown(page, "th[data-group=Outline]")
    heading = page.query_selector("th[data-group=Outline] button")
    heading.focus()
    page.keyboard.press("Enter")
    cells = [n.get_attribute("data-sort") for n in shown(page, "td[data-group=Outline]")]
    assert cells == ["90.0"] * 6 + [""] * 2, "what has no figure stays last"
    page.keyboard.press("Enter")
    cells = [n.get_attribute("data-sort") for n in shown(page, "td[data-group=Outline]")]
    assert cells[-2:] == ["", ""]

    assert page.inner_text("#count") == "12 of 12 images"
    page.select_option("#image-controls [name=sort]", "iou:lime")
    page.wait_for_selector("#browser .row[data-filled]")
    expected = sorted(rows(12), key=lambda r: -r.tiles[0].scores["val"]["iou"])
    assert page.inner_text("#browser .row header b") == expected[0].name
    page.select_option("#image-controls [name=order]", "up")
    page.wait_for_selector("#browser .row[data-filled]")
    assert page.inner_text("#browser .row header b") == EVIL, "shown as it is"
    page.select_option("#image-controls [name=right]", "no")
    assert page.inner_text("#count") == "6 of 12 images"
    page.uncheck("#explainers [value=grad_cam]")
    page.wait_for_selector("#browser .row[data-filled]")
    row = page.query_selector("#browser .row")
    titles = [t.inner_text() for t in row.query_selector_all("figcaption strong")]
    assert titles == ["X-ray", "lime", "lime regions", "whole_lung"]
    assert row.query_selector("svg path.infection")
    row.query_selector_all(".tile button")[1].click()
    assert page.is_visible("#large .tiles")
    page.keyboard.press("Escape")
    assert not page.is_visible("#large .tiles")
    assert opened.complaints == []  # type: ignore[attr-defined]


def test_a_long_table_shows_the_rows_that_are_chosen(opened: Callable[..., Any]) -> None:
    names = {"threshold_rule": "Threshold rule", "explainer": "Explainer", "n": "n", "flag": "Flag"}
    frame = pd.DataFrame(
        [
            {"threshold_rule": rule, "explainer": name, "n": i, "flag": (None, False, True)[i % 3]}
            for i in range(5)
            for rule in ("fixed", "val")
            for name in EXPLAINERS
        ]
    )
    short, long = (table_of(t, "", f, names) for t, f in (("S", frame[:20]), ("L", frame)))
    assert short.filters == ()
    assert [(f.title, f.chosen) for f in long.filters] == [
        ("Threshold rule", "val"),
        ("Explainer", ""),
        ("Flag", ""),
    ]
    assert long.filters[2].values == ("–", "no", "yes")
    page = opened([replace(part(), tables=[short, long])])
    assert len(shown(page, "#tables .scroll:not(.tall) tbody tr")) == 20
    assert len(shown(page, "#tables .tall tbody tr")) == 15
    assert page.inner_text(".filters output") == "15 of 30 rows"
    page.select_option(".filters select >> nth=1", "lime")
    page.select_option(".filters select >> nth=2", "–")
    assert page.inner_text(".filters output") == "2 of 30 rows"
    page.select_option(".filters select >> nth=2", "yes")
    assert page.inner_text(".filters output") == "1 of 30 rows"
    page.select_option(".filters select >> nth=0", "")
    assert len(shown(page, "#tables .tall tbody tr")) == 2
    page.click("#tables .tall th:nth-child(3) button")
    assert len(shown(page, "#tables .tall tbody tr")) == 2, "sorting keeps the choice"
    assert opened.complaints == []  # type: ignore[attr-defined]


def test_it_fits_a_phone_and_several_sweeps(opened: Callable[..., Any]) -> None:
    page = opened([part(name="one"), part(3, "two")], 390, 844)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.inner_text("#count") == "15 of 15 images"
    page.select_option("#image-controls [name=sweep]", "two")
    assert page.inner_text("#count") == "3 of 15 images"
    assert opened.complaints == []  # type: ignore[attr-defined]


def test_hundreds_of_images_are_drawn_as_they_are_looked_at(opened: Callable[..., Any]) -> None:
    page = opened([part(583)])
    page.wait_for_selector("#browser .row[data-filled]")
    assert page.inner_text("#count") == "583 of 583 images"
    assert page.evaluate("document.querySelectorAll('[data-filled]').length") < 60
    page.evaluate("document.querySelector('#browser .row:last-child').scrollIntoView()")
    page.wait_for_selector("#browser .row:last-child[data-filled]")
    assert opened.complaints == []  # type: ignore[attr-defined]
