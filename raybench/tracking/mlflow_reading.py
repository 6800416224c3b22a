"""What MLflow holds of finished sweeps, read back as one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from raybench.errors import TrackingError
from raybench.tracking import tracking_uri
from raybench.tracking.mlflow_calls import EXPLANATION, SWEEP_KEY
from raybench.tracking.mlflow_projection import client_of, told


def read_mlflow(uri: str, experiment: str | None = None) -> pd.DataFrame:
    """The sweeps and trials of an MLflow store that raybench wrote, a row each, the oldest first.

    The runs of single explainers are left out: a trial's row has their figures.

    Args:
        uri: MLflow's tracking URI, or the path of a run folder, which holds a store of its own.
        experiment: the experiment's name; None for all of them.

    Returns:
        `experiment`, `run` (MLflow's name of it), `trial_id` (empty for the sweep itself),
        `backbone`, `best` and `status`, then a column a metric, by its own name, and `param.<name>`
        a parameter. NaN where a run has none of that name.

    Raises:
        TrackingError: there is no such store or experiment, or MLflow cannot be reached.
    """
    if "://" not in uri and uri != "databricks":
        store = Path(uri) / "mlflow.db"
        if not store.is_file():
            raise TrackingError(
                f"{uri}: expected a run folder with mlflow.db, found none; project it with "
                f"`python -m raybench.track {uri}`, or give the tracking URI that it went to"
            )
        uri = tracking_uri.default(Path(uri).absolute())
    tracking_uri.reach(uri)
    with told(uri):
        client = client_of(uri)
        names = {e.experiment_id: e.name for e in client.search_experiments()}
        chosen = [i for i, name in names.items() if experiment in (None, name)]
        if not chosen:
            raise TrackingError(
                f"{tracking_uri.shown(uri)}: expected an experiment {experiment!r}, found "
                f"{', '.join(map(repr, sorted(names.values())))}"
            )
        runs = _all_runs(client, chosen)
    return pd.DataFrame([_row(run, names) for run in runs if _is_shown(run.data.tags)])


def _is_shown(tags: dict[str, str]) -> bool:
    return SWEEP_KEY in tags and EXPLANATION not in tags


def _all_runs(client: Any, experiments: list[str]) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(
            experiments,
            order_by=["attributes.start_time ASC"],
            max_results=1000,
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def _row(run: Any, names: dict[str, str]) -> dict[str, Any]:
    tags = run.data.tags
    row: dict[str, Any] = {
        "experiment": names[run.info.experiment_id],
        "run": run.info.run_name,
        "trial_id": tags.get("raybench.trial_id", ""),
        "backbone": tags.get("backbone", ""),
        "best": tags.get("best") == "true",
        "status": tags.get("status", ""),
    }
    row |= dict(sorted(run.data.metrics.items()))
    return row | {f"param.{key}": text for key, text in sorted(run.data.params.items())}
