"""Stores that are not there, servers that do not answer, and names that MLflow would refuse."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from raybench.errors import RunFolderError, TrackingError
from raybench.tracking import tracking_uri
from raybench.tracking.metrics import metric_name
from raybench.tracking.mlflow_projection import check_uri, project
from raybench.tracking.run_folder import RunFolder
from tests.tracking.small_sweep import closed_port


def test_names_that_mlflow_would_refuse() -> None:
    from mlflow.utils.validation import _validate_metric_name

    names = [
        metric_name(*parts)
        for parts in (("iou/..", ".."), ("", "a"), ("Größe (px)", "a\nb"), ("x" * 300,), ("y:z",))
    ]
    assert names[0] == "iou_../__"
    assert metric_name("x" * 300) != metric_name("x" * 301)
    for name in names:
        _validate_metric_name(name)


@pytest.mark.parametrize("uri", ["gopher://x", "./mlruns", "file:///tmp/mlruns", "sqlite://", ""])
def test_unknown_schemes(uri: str) -> None:
    with pytest.raises(TrackingError, match="expected"):
        check_uri(uri)


def test_stores_that_are_not_there(tmp_path: Path) -> None:
    check_uri(f"sqlite:///{tmp_path}/new.db")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TrackingError, match="no folder"):
        check_uri(f"sqlite:///{tmp_path}/missing/new.db")
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(TrackingError, match="not a sqlite database"):
        check_uri(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(RunFolderError, match="not a run folder"):
        project(RunFolder(str(tmp_path)))


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql"])
def test_a_dead_server_is_told_at_once(scheme: str) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1.*answers") as caught:
        check_uri(f"{scheme}://someone:hidden@127.0.0.1:{closed_port()}")
    assert time.monotonic() - start < 10
    assert "hidden" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_uri, "_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TrackingError):
            check_uri(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 3
