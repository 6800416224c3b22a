"""The summary in a terminal of 80 columns. Under a second."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from raybench.studies import summary

NAME = "tf_efficientnetv2_small_of_somebody.in21k"
TITLE = "perturbed_neighbours_of_lungs"


def shown(width: int, **more: Any) -> str:
    trial = {"trial_id": "ensemble", "backbone": NAME, "status": "ensemble", "n_epochs": 25}
    figures = {"val_accuracy": 0.981, "val_macro_auc": 0.982, "test_accuracy": 0.983}
    ends = {"test_accuracy_low": 0.911, "test_accuracy_high": 0.994, "test_macro_auc": 0.985}
    trials = pd.DataFrame([trial | {"best": True} | figures | ends | more])
    row = {"backbone": NAME, "explainer": TITLE, "threshold_rule": "fixed", "threshold": 0.25}
    row |= {"n": 1234, "iou": 0.311, "dice": 0.412, "hausdorff": 123.4, "n_forward": 12345.0}
    board = pd.DataFrame([row | {"severity_mae": 0.123}])
    tables = {"trials.csv": trials, "leaderboard.csv": board, "published.csv": pd.DataFrame()}
    run: Any = SimpleNamespace(
        read_csv=tables.__getitem__,
        events=SimpleNamespace(read=list),
        path=Path("none-such"),
        where="",
        storage=SimpleNamespace(exists=lambda _: False),
    )
    text = io.StringIO()
    summary.show(run, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("more", [{}, {"val_localisation": 0.456}], ids=["plain", "judged"])
def test_nothing_is_cut_at_80_columns(more: dict[str, float]) -> None:
    text = shown(80, **more)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    figures = ("0.981", "0.982", "0.983", "0.985", "0.911", "0.994", *map(str, more.values()))
    for figure in (*figures, "ensemble *", "1234", "0.311", "0.412", "123.4", "0.123", "12345"):
        assert figure in text, figure
    assert "…" not in shown(110, **more)
    wide = shown(160, **more)
    assert re.search(rf"ensemble \* +{NAME} ", wide)
    assert "0.911 to 0.994" in wide
    assert TITLE in wide
