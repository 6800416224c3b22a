"""Keeps benchmarks.scores alive, and its plain calls at one with ours, in seconds."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import scores


def test_a_small_run_agrees_with_plain_calls_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["scores", "--maps", "3", "--size", "64", "--peer", "2", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", [*command, "--json", str(tmp_path / "found.json")])
    scores.main()
    found = json.loads((tmp_path / "found.json").read_text())["models"]["scores"]
    assert [len(rates) for rates in found["rates"].values()] == [2, 2]
    seconds, ratio = found["ratios"]
    assert seconds["name"] == "seconds for 3 maps of 64 x 64"
    assert seconds["high"] is None, "the target is for the study's maps"
    assert ratio["value"] > 0


def test_a_difference_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "ours", lambda one: scores.plain(one) | {"assd": 1e6})
    with pytest.raises(SystemExit, match="assd"):
        scores.check([scores.case(0, 64)])
