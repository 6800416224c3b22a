"""Passwords and keys of addresses are in nothing that is said or stored."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from raybench.cli import cluster
from raybench.errors import ConfigError, TrackingError
from raybench.executor import Execution
from raybench.masking import masked, masked_deep
from raybench.storage import Storage
from raybench.tracking.stored_config import CONFIG_NAME, StoredConfig


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("postgresql://me:pw:1@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("at http://:pw@host, twice http://a:b@c", "at http://:***@host, twice http://a:***@c"),
        ("https://host/x?user=me&password=pw&n=1", "https://host/x?user=me&password=***&n=1"),
        ("https://host/x?X-Amz-Signature=pw", "https://host/x?X-Amz-Signature=***"),
        ("http://127.0.0.1:5000/#/x", "http://127.0.0.1:5000/#/x"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
        ("line 3: x@y, a=b", "line 3: x@y, a=b"),
    ],
)
def test_what_is_masked(text: str, said: str) -> None:
    assert masked(text) == said
    assert masked(said) == said
    assert masked_deep({"a": [text, 1, None]}) == {"a": [said, 1, None]}


def test_errors_and_stored_configurations_hold_none(tmp_path: Path) -> None:
    uri = "mysql://me:hunter2@host/db"
    assert "hunter2" not in str(TrackingError(f"{uri}: away"))
    error = ConfigError([f"tracking.uri: {uri}"])
    assert "hunter2" not in str(error) + str(error.problems)
    stored = StoredConfig(Storage(str(tmp_path)))
    config = {"tracking": {"uri": uri}, "seed": 1}
    stored.write(config, "digest")
    assert b"hunter2" not in (tmp_path / CONFIG_NAME).read_bytes()
    assert "tracking" not in stored.differences(config | {"seed": 2})


def test_ray_without_a_token_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(cluster.ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 1.0})
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with caplog.at_level(logging.WARNING):
        cluster.start_ray(Execution())
        assert caplog.text == ""
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        cluster.start_ray(Execution())
    assert "can run code" in caplog.text
    assert given["include_dashboard"] is False
