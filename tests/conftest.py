"""What several rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests of a session: starting it takes longer than most of them."""
    import ray

    from raybench.cli.cluster import start_ray
    from raybench.executor import Execution

    start_ray(Execution(cpus=2, object_store_mb=256))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def cxr() -> Path:
    """Real X-rays with radiologists' masks."""
    root = SHARED / "data" / "cxr"
    if not root.exists():
        pytest.skip("the real X-rays (../shared/data/cxr) are not on this machine")
    return root


@pytest.fixture(scope="session")
def imagenet_weights() -> Path:
    """ImageNet weights of tf_efficientnet_lite0."""
    path = SHARED / "weights" / "tf_efficientnet_lite0.in1k.safetensors"
    if not path.exists():
        pytest.skip("the ImageNet weights (../shared/weights) are not on this machine")
    return path


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A bucket on this machine: a real S3 server on loopback. The bucket's URL."""
    import logging

    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    given = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    fsspec.filesystem("s3").mkdir("raybench")
    yield "s3://raybench"
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep file for two tiny backbones and few phantoms, its data beside it."""
    from tests.small_study import write_study

    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def small_sweep(
    small_study: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> Path:
    """The run folder of that sweep, finished and projected. Read it; copy it to change it."""
    from tests.small_study import finish, start

    output = tmp_path_factory.mktemp("whole")
    said = finish(start(small_study, output))
    assert "Everything lies in" in said
    assert "joined a Ray cluster" in said
    return output / "tiny"
