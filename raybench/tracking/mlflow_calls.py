"""What the projection asks of MLflow's client: runs found again, states, files by digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from raybench.tracking.shown import RunView, SweepView

SWEEP_KEY = "raybench.sweep_key"
STARTED = "raybench.started"
TRIAL_ID = "raybench.trial_id"
EXPLANATION = "raybench.explanation"

Named = tuple[str | None, str]
"""Trial and explanation of a run: (None, "") for the sweep's, (trial, "") for a trial's."""


def known_runs(client: Any, experiment_id: str, sweep: SweepView) -> dict[Named, Any]:
    """The sweep's runs by trial and explanation; the oldest where there are two."""
    found: dict[Named, Any] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{SWEEP_KEY}` = '{sweep.key}'",
            order_by=["attributes.start_time ASC"],
            max_results=1000,
            page_token=token,
        )
        for run in page:
            if run.data.tags.get(STARTED) == sweep.started:
                tags = run.data.tags
                found.setdefault((tags.get(TRIAL_ID), tags.get(EXPLANATION, "")), run)
        token = page.token
        if not token:
            return found


def set_status(client: Any, info: Any, shown: RunView) -> None:
    if shown.status == "RUNNING":
        if info.status != "RUNNING":
            client.update_run(info.run_id, status="RUNNING")
    elif info.status != shown.status or info.end_time != shown.end_ms:
        client.set_terminated(info.run_id, status=shown.status, end_time=shown.end_ms)


def digests_of(shown: RunView) -> dict[str, str]:
    """Digests of the contents of a run's files by their names in MLflow."""
    found = {}
    for path, folder in shown.files:
        try:
            found[f"{folder}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
        except FileNotFoundError:  # removed since it was listed: there is nothing to send
            continue
    for name, text in shown.texts:
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
