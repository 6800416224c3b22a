"""Whether a search prefers classifiers that are right for the right reason. About 4 minutes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from raybench.config import load_config
from raybench.studies.sweep_study import Options, run_sweep

SWEEP = Path(__file__).resolve().parents[1] / "sweeps" / "phantom-shortcut.yaml"


@pytest.mark.slow
def test_a_trial_that_reads_the_marker_is_passed_over_for_one_that_looks_at_the_lesions(
    tmp_path: Path, ray_cluster: None
) -> None:
    config = load_config(SWEEP, [("output", str(tmp_path)), ("tracking.live", "false")])
    run_sweep(config, Options(), Console(quiet=True), lambda: None)
    folder = tmp_path / "phantom-shortcut"
    trials = pd.read_csv(folder / "trials.csv")
    sees = ~trials.lung_masking & (trials.erase_border == 0)
    assert sees.any()
    assert (trials.val_accuracy[sees] > 0.97).all()
    (best,) = trials[trials.best].to_dict("records")
    assert best["trial_id"] not in set(trials.trial_id[sees])
    assert best["val_accuracy"] >= trials.val_accuracy.max() - 0.05
    assert best["val_localisation"] > 2 * trials.val_localisation[sees].max()
    assert (folder / "figures" / "trials_front.png").exists()
