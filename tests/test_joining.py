"""Asking a cluster's autoscaler for GPUs, and letting go of them."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import ray.autoscaler.sdk

from raybench.cli import cluster
from raybench.errors import ExecutionError
from raybench.executor import Execution


@pytest.fixture
def autoscaler(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for a cluster: each look finds one GPU more, up to `most`."""
    seen: dict[str, Any] = {"asked": [], "gpus": 0, "most": 3, "left": 0}

    def look() -> dict[str, float]:
        seen["gpus"] = min(seen["gpus"] + 1, seen["most"])
        return {"CPU": 4.0 * seen["gpus"], "GPU": float(seen["gpus"])}

    def leave() -> None:
        seen["left"] += 1

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", leave)
    monkeypatch.setattr(ray, "cluster_resources", look)
    monkeypatch.setattr(
        ray.autoscaler.sdk, "request_resources", lambda bundles: seen["asked"].append(bundles)
    )
    monkeypatch.setattr(cluster, "POLL_S", 0.0)
    return seen


def test_it_waits_for_the_gpus_it_asked_for_and_lets_go_of_them(autoscaler: dict[str, Any]) -> None:
    said = cluster.start_ray(Execution(cluster_gpus=3))
    assert said == "joined a Ray cluster: 12 cores, 3 GPUs"
    assert autoscaler["asked"] == [[{"GPU": 1}] * 3]
    cluster.stop_ray()
    assert autoscaler["asked"][1:] == [[]]
    assert autoscaler["left"] == 1


def test_without_the_setting_the_autoscaler_is_left_alone(autoscaler: dict[str, Any]) -> None:
    cluster.start_ray(Execution())
    cluster.stop_ray()
    assert autoscaler["asked"] == []


def test_gpus_that_do_not_come_are_an_error_and_are_let_go_of(
    autoscaler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "WAIT_S", 0.2)
    with pytest.raises(ExecutionError, match="4 asked for, 3 came") as caught:
        cluster.start_ray(Execution(cluster_gpus=4))
    assert "execution.cluster_gpus" in str(caught.value)
    assert autoscaler["asked"][-1] == []
    assert autoscaler["left"] == 1
