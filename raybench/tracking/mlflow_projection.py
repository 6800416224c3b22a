"""A run folder shown in MLflow: one experiment and parent run a sweep, nested runs below it:
one a trial, and below the trials on the leaderboard one a row of it (`explanation_view`).

This is the only module that names MLflow. Importing it takes seconds, so that happens inside
functions. Projecting is repeatable at any time, while the sweep runs or years later, and adds only
what is missing:

- Runs are found again by their tags `raybench.sweep_key`, `raybench.started`,
  `raybench.trial_id` and `raybench.explanation`.
- Curves are sent from the epoch event on where the tag `raybench.epoch_events` says the last
  projection ended. Were it killed before it could write the tag, the points are sent again, with
  the same step, value and time, and the SQL stores behind MLflow keep one of each.
- Single figures are sent where they differ from what the run shows, files where their contents do.

What MLflow cannot forget stays: an epoch that was projected and then, after a resume, computed
again has two points at one step, of which the later counts; a projection made from scratch has one.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raybench.errors import TrackingError
from raybench.tracking import tracking_uri
from raybench.tracking.lock import one_at_a_time
from raybench.tracking.mlflow_calls import (
    EXPLANATION,
    STARTED,
    SWEEP_KEY,
    TRIAL_ID,
    chunks,
    digests_of,
    known_runs,
    set_status,
)
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.shown import RunView, SweepView
from raybench.tracking.view import view

_METRICS_A_CALL = 1000
_OTHERS_A_CALL = 100
_CURSOR = "raybench.epoch_events"
_FILES = "raybench.files"
_CHECK_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class ProjectionReport:
    """What one projection found and added.

    Attributes:
        uri: where it went, without a password.
        experiment: the MLflow experiment's name; `experiment_id`, `parent_run_id` are MLflow's.
        n_trials: trials' runs there are now; n_explanations: runs of rows of the leaderboard.
        n_metrics: metric values sent; n_files: files sent.
        seconds: how long it took.
    """

    uri: str
    experiment: str
    experiment_id: str
    parent_run_id: str
    n_trials: int
    n_metrics: int
    n_files: int
    seconds: float
    n_explanations: int = 0


def check_uri(uri: str) -> None:
    """See that an MLflow store answers, within some 6 s (beside the import of MLflow itself).

    Raises:
        TrackingError: the scheme is unknown, nobody answers, or who answers is not MLflow.
    """
    tracking_uri.reach(uri)
    if uri.startswith(("http://", "https://")):
        with told(uri):
            client = client_of(uri)
            tracking_uri.within(
                _CHECK_SECONDS, lambda: client.search_experiments(max_results=1), uri
            )


def project(
    run: RunFolder, uri: str | None = None, experiment: str | None = None
) -> ProjectionReport:
    """Bring MLflow up to date with a run folder.

    Args:
        run: the folder; the sweep may still be at work in it.
        uri: MLflow's tracking URI; None for `mlflow.db` in the run folder.
        experiment: the experiment's name; None for the sweep's.

    Raises:
        TrackingError: MLflow cannot be reached or refuses; the run folder is as it was.
        RunFolderError: this is not a run folder.
        StorageError: a file of it is damaged.
    """
    return Projector(run, uri, experiment).project()


class Projector:
    """Projects one run folder again and again; remembers which files it has sent.

    Args: those of `project`.
    """

    def __init__(
        self, run: RunFolder, uri: str | None = None, experiment: str | None = None
    ) -> None:
        self.run = run
        self.uri = uri or tracking_uri.default(run.path)
        self.experiment = experiment
        self._sent_files: dict[str, dict[str, str]] = {}
        self._n_metrics = 0
        self._n_files = 0

    def project(self) -> ProjectionReport:
        """Bring MLflow up to date; errors as `project`."""
        begin = time.monotonic()
        self.run.path.mkdir(parents=True, exist_ok=True)  # of a run in a bucket
        sweep = view(self.run)
        tracking_uri.reach(self.uri)
        self._n_metrics = self._n_files = 0
        name = self.experiment or sweep.name
        with one_at_a_time(tracking_uri.home(self.uri, self.run.path)), told(self.uri):
            client = client_of(self.uri)
            experiment_id = self._experiment(client, name)
            parent_id = self._runs(client, experiment_id, sweep)
        return ProjectionReport(
            uri=tracking_uri.shown(self.uri),
            experiment=name,
            experiment_id=experiment_id,
            parent_run_id=parent_id,
            n_trials=len(sweep.trials),
            n_explanations=len(sweep.explanations),
            n_metrics=self._n_metrics,
            n_files=self._n_files,
            seconds=time.monotonic() - begin,
        )

    def _experiment(self, client: Any, name: str) -> str:
        location = tracking_uri.artifacts(self.uri, self.run.path)
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"{tracking_uri.shown(self.uri)}: the experiment {name!r} was deleted there; "
                f"restore it (mlflow experiments restore -x {found.experiment_id}) or name another"
            )
        if self.uri == tracking_uri.default(self.run.path) and found.artifact_location != location:
            raise TrackingError(
                f"{self.run.path}: was moved since mlflow.db was made, which keeps its files at "
                f"{found.artifact_location}; remove mlflow.db and mlflow-artifacts from the run "
                f"folder (both are made again from it) and repeat"
            )
        return str(found.experiment_id)

    def _runs(self, client: Any, experiment_id: str, sweep: SweepView) -> str:
        known = known_runs(client, experiment_id, sweep)
        tags = {
            SWEEP_KEY: sweep.key,
            STARTED: sweep.started,
            "mlflow.source.name": "raybench",
            "mlflow.source.type": "LOCAL",
        }
        parent_id = self._update(client, experiment_id, sweep.parent, known.get((None, "")), tags)
        above: dict[str | None, str] = {}
        for shown in (*sweep.trials, *sweep.explanations):
            own = {**tags, TRIAL_ID: str(shown.trial_id)}
            own["mlflow.parentRunId"] = above.get(shown.trial_id, parent_id)
            if shown.explanation:
                own[EXPLANATION] = shown.explanation
            found = known.get((shown.trial_id, shown.explanation))
            run_id = self._update(client, experiment_id, shown, found, own)
            above.setdefault(shown.trial_id, run_id)
        return parent_id

    def _update(
        self, client: Any, experiment_id: str, shown: RunView, known: Any, tags: dict[str, str]
    ) -> str:
        """Make the run where it is missing, and send what it does not show yet."""
        if known is None:
            if shown.explanation:
                tags = {**tags, **shown.tags}  # a call less for each of many
            known = client.create_run(
                experiment_id, start_time=shown.start_ms, tags=tags, run_name=shown.name
            )
        run_id = str(known.info.run_id)
        self._log(client, run_id, shown, known.data)
        self._send_files(client, run_id, shown, known.data.tags.get(_FILES))
        set_status(client, known.info, shown)
        return run_id

    def _log(self, client: Any, run_id: str, shown: RunView, data: Any) -> None:
        from mlflow.entities import Metric, Param, RunTag

        cursor = int(data.tags.get(_CURSOR, 0))
        metrics = [
            Metric(p.key, p.value, p.time_ms, p.step) for p in shown.curve if p.number >= cursor
        ]
        metrics += [
            Metric(key, value, shown.metrics_ms, 0)
            for key, value in shown.metrics.items()
            if data.metrics.get(key) != value
        ]
        params = [Param(key, text) for key, text in shown.params.items() if key not in data.params]
        has_curve = shown.trial_id and not shown.explanation
        texts = {**shown.tags, _CURSOR: str(shown.n_epoch_events)} if has_curve else shown.tags
        tags = [RunTag(key, text) for key, text in texts.items() if data.tags.get(key) != text]
        if shown.explanation and len(params) <= _OTHERS_A_CALL and len(metrics) <= _OTHERS_A_CALL:
            if params or metrics or tags:
                client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
            self._n_metrics += len(metrics)
            return
        for chunk in chunks(params, _OTHERS_A_CALL):
            client.log_batch(run_id, params=chunk)
        for chunk in chunks(metrics, _METRICS_A_CALL):
            client.log_batch(run_id, metrics=chunk)
            self._n_metrics += len(chunk)
        # The cursor comes last: it vouches for the points.
        for chunk in chunks(tags, _OTHERS_A_CALL):
            client.log_batch(run_id, tags=chunk)

    def _send_files(self, client: Any, run_id: str, shown: RunView, vouched: str | None) -> None:
        """Send the files whose contents changed; one tag holds the digest of all of them."""
        digests = digests_of(shown)
        whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]
        if not digests or whole == vouched:
            return
        sent = self._sent_files.setdefault(run_id, {})
        for path, folder in shown.files:
            name = f"{folder}/{path.name}"
            if name in digests and sent.get(name) != digests[name]:
                client.log_artifact(run_id, str(path), folder or None)
                sent[name] = digests[name]
                self._n_files += 1
        for name, text in shown.texts:
            if sent.get(name) != digests[name]:
                client.log_text(run_id, text, name)
                sent[name] = digests[name]
                self._n_files += 1
        client.set_tag(run_id, _FILES, whole)


def client_of(uri: str) -> Any:
    """MLflow's client, with every call bounded: a dead server would else block it for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic"):  # they announce every table of a new store
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def told(uri: str) -> Iterator[None]:
    """Whatever MLflow, its database driver or the network raise becomes one readable line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise TrackingError(
            f"{tracking_uri.shown(uri)}: MLflow failed ({type(error).__name__}: "
            f"{tracking_uri.shown(reason)}); the run folder is as it was"
        ) from error
