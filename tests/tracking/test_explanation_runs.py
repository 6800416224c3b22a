"""The leaderboard in MLflow: a run a row, below its trial, with plain names; and the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from raybench.tracking.mlflow_projection import Projector, project
from raybench.tracking.mlflow_reading import read_mlflow
from raybench.tracking.run_folder import RunFolder
from tests.tracking.small_sweep import CONFIG, TRIALS, begin, client, dump, end, files

_SETTINGS = {
    **CONFIG,
    "explain": {"explainers": [{"name": "lime", "n_samples": 100, "label": None}]},
}


def _board(run: RunFolder) -> pd.DataFrame:
    """A leaderboard as a sweep writes it: trials named, intervals, words, and a figure missing."""
    board = run.read_csv("leaderboard.csv")
    board["trial_id"] = board.backbone.map({"vgg16": "t1", "densenet121": "t10"})
    board["iou_low"], board["iou_high"] = board.iou - 0.1, board.iou + 0.1
    board["hausdorff"] = [float("nan"), *range(1, len(board))]
    board["above_whole_lung"] = "no"
    return board


def _sweep(root: Path) -> RunFolder:
    run = begin(root)
    end(run)
    run.write_csv("leaderboard.csv", _board(run))
    run.write_file("report.html", b"<html>what it says</html>")
    run.write_file("report/map.png", b"a picture")
    text = (root / "config.yaml").read_text().replace("nothing: []", "")
    explain = json.dumps(_SETTINGS["explain"])
    (root / "config.yaml").write_text(f"{text}\nexplain: {explain}\n")
    return run


def _runs(root: Path, where: str) -> list[Any]:
    api = client(root)
    experiment = api.get_experiment_by_name(CONFIG["name"])
    return list(api.search_runs([experiment.experiment_id], where))


def test_a_run_a_row_of_the_leaderboard(tmp_path: Path) -> None:
    run = _sweep(tmp_path / "run")
    report = project(run)
    board = _board(run).set_index(["backbone", "explainer", "threshold_rule"])
    assert (report.n_trials, report.n_explanations) == (len(TRIALS), len(board))
    assert {r.data.tags["kind"] for r in _runs(run.path, "")} == {"sweep", "trial", "explanation"}
    above = {r.data.tags["raybench.trial_id"]: r for r in _runs(run.path, "tags.kind = 'trial'")}
    rows = _runs(run.path, "tags.kind = 'explanation'")
    assert len(rows) == len(board)
    for row in rows:
        key = tuple(row.data.tags[k] for k in board.index.names)
        own = board.loc[key]
        assert row.data.tags["mlflow.parentRunId"] == above[own.trial_id].info.run_id
        assert row.info.run_name == f"{key[1]} {key[2]}, {key[0]}"
        assert row.info.status == "FINISHED"
        assert row.data.tags["above_whole_lung"] == "no"
        assert (row.data.metrics["iou"], row.data.metrics["interval/iou_low"]) == (
            own.iou,
            own.iou_low,
        )
        assert ("hausdorff" in row.data.metrics) == bool(pd.notna(own.hausdorff))
        assert {row.data.params[k] for k in board.index.names} == {*key}
        assert row.data.params["head.lr"] == above[own.trial_id].data.params["head.lr"]
        assert row.data.params.get("setting.n_samples") == ("100" if key[1] == "lime" else None)
        assert "train_loss" not in row.data.metrics
    chosen = _runs(run.path, "tags.backbone = 'vgg16' and tags.explainer = 'lime'")
    assert {r.data.tags["threshold_rule"] for r in chosen} == {"fixed", "val"}
    assert len(read_mlflow(str(run.path))) == 1 + len(TRIALS), "sweep and trials alone"


def test_the_sweep_run_has_the_tables_and_the_page(tmp_path: Path) -> None:
    run = _sweep(tmp_path / "run")
    parent = project(run).parent_run_id
    below = run.path / "mlflow-artifacts" / parent / "artifacts"
    for name in ("leaderboard.csv", "trials.csv", "report.html", "report/map.png"):
        assert (below / name).read_bytes() == (run.path / name).read_bytes()
    assert (below / "figures" / "leaderboard.png").is_file()
    table = json.loads((below / "leaderboard.json").read_text())
    board = _board(run)
    assert len(table["data"]) == len(board)
    best = dict(zip(table["columns"], table["data"][0], strict=True))
    assert best["iou"] == round(board.iou.max(), 4)
    logged = _runs(run.path, "tags.kind = 'sweep'")[0].data.tags["mlflow.loggedArtifacts"]
    assert json.loads(logged) == [{"path": "leaderboard.json", "type": "table"}]


def test_again_adds_nothing_and_a_new_figure_is_added_alone(tmp_path: Path) -> None:
    run = _sweep(tmp_path / "run")
    projector = Projector(run)
    projector.project()
    rows, sent = dump(run.path), files(run.path)
    again = project(run)
    assert (again.n_metrics, again.n_files) == (0, 0)
    assert (dump(run.path), files(run.path)) == (rows, sent)
    board = _board(run)
    board.loc[0, "iou"] = 0.987
    run.write_csv("leaderboard.csv", board)
    # Once on the explanation's run and once on the sweep's; the CSV and the table beside them.
    changed = projector.project()
    assert (changed.n_metrics, changed.n_files) == (2, 2)
    assert files(run.path) == sent
    assert len(dump(run.path)["runs"]) == len(rows["runs"])
