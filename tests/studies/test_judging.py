"""Scores of trials and their intervals: whose they are, and that patients are drawn whole."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from raybench.data.patients import patient_groups
from raybench.scoring.classification import classification_intervals
from raybench.studies import summary
from raybench.studies.context import Context
from raybench.studies.judge_stage import predictions_of, scores_by_trial
from raybench.types import XrayRecord

CLASSES = ("sick", "well")


def records(patients: bool) -> tuple[XrayRecord, ...]:
    return tuple(
        XrayRecord(
            f"{split}/{i}",
            split,
            CLASSES[i % 2],
            "",
            patient=f"secret-{i // 4}" if patients else None,
        )
        for split in ("Val", "Test")
        for i in range(40)
    )


def predictions(of: tuple[XrayRecord, ...], trials: tuple[str, ...]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for trial_id in trials:
        for record in reversed(of):
            p = float(np.clip(0.3 + 0.4 * (record.label == "sick") + rng.normal(0, 0.25), 0, 1))
            row = {"trial_id": trial_id, "image_id": record.image_id, "split": record.split}
            rows.append(row | {"label": record.label, "p_sick": p, "p_well": 1 - p})
    return pd.DataFrame(rows)


def context_of(known: tuple[XrayRecord, ...], frame: pd.DataFrame) -> Context:
    config, run = SimpleNamespace(seed=4), SimpleNamespace(read=lambda _: frame)
    return Context(config, run, SimpleNamespace(classes=CLASSES), known, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("patients", [True, False])
def test_the_best_trials_get_intervals_by_patient(patients: bool) -> None:
    known = records(patients)
    frame = predictions(known, ("t1", "t2"))
    scores = scores_by_trial(context_of(known, frame), "Val", ["t2"]).set_index("trial_id")
    assert list(scores.columns[:3]) == ["val_accuracy", "val_accuracy_low", "val_accuracy_high"]
    ends = [c for c in scores.columns if c.endswith(("_low", "_high"))]
    assert len(ends) == 2 * len(scores.columns) / 3
    assert scores.loc["t1", ends].isna().all()
    part = frame[(frame.trial_id == "t2") & (frame.split == "Val")]
    # The table's rows run the other way than the records: groups belong to images, not to places.
    groups = np.arange(40)[::-1] // (4 if patients else 1)
    expected = classification_intervals(*predictions_of(part, CLASSES), CLASSES, groups, seed=4)
    swapped = {name: scores.loc["t2", [f"val_{name}_low", f"val_{name}_high"]] for name in expected}
    for name, found in swapped.items():
        width = expected[name][1] - expected[name][0]
        assert found.tolist() == pytest.approx(expected[name], abs=0.12 * width), name
    assert "secret" not in scores.to_csv()


def test_groups_are_of_patients() -> None:
    known = records(True)
    assert patient_groups(known[:12]).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert patient_groups(records(False)[:3]).tolist() == [0, 1, 2]
    mixed = (*records(False)[:2], *known[:2], XrayRecord("secret-0", "Val", "sick", ""))
    assert patient_groups(mixed).tolist() == [0, 1, 2, 2, 3], "an image's name is no patient"


def test_the_summary_shows_the_interval(tmp_path: Path) -> None:
    known = records(False)
    scores = scores_by_trial(context_of(known, predictions(known, ("a", "b"))), "Test", ["a"])
    trials = scores.assign(backbone="net", status="finished", n_epochs=3, best=[True, False])
    empty = pd.DataFrame()
    tables = {"trials.csv": trials, "leaderboard.csv": empty, "published.csv": empty}
    run = SimpleNamespace(
        read_csv=tables.__getitem__,
        events=SimpleNamespace(read=list),
        path=tmp_path,
        where=str(tmp_path),
        storage=SimpleNamespace(exists=lambda _: False),
    )
    said = io.StringIO()
    summary.show(run, Console(file=said, width=120))  # type: ignore[arg-type]
    low, high = scores.test_accuracy_low[0], scores.test_accuracy_high[0]
    lines = said.getvalue().splitlines()
    first, second = (
        next(line for line in lines if line.strip().startswith(t)) for t in ("a *", "b ")
    )
    assert f"{scores.test_accuracy[0]:.3f}   {low:.3f} to {high:.3f}" in first
    assert second.split()[-2] == "-"
