"""One image over all workers: the map is the explainer's own, and everybody is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raybench.errors import ExplainError, StorageError
from raybench.executor import Execution
from raybench.explain import Explainer, GradCam, Grid, Lime, Rise, WholeLung
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.studies.practice import practice_xray
from raybench.studies.spread import Spread, _cut


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    data = save_checkpoint(build("test_resnet", 3), Card("test_resnet", ("a", "b", "c"), (64, 64)))
    found = tmp_path_factory.mktemp("spread") / "t0000.safetensors"
    found.write_bytes(data)
    return str(found)


def test_a_map_from_all_workers(ray_cluster: None, path: str) -> None:
    xray = practice_xray(1)
    local = Classifier.from_checkpoint(Path(path).read_bytes(), where=path)
    explainers: list[Explainer] = [
        Lime(n_samples=100, superpixels=Grid(cells=4), design="independent"),
        Rise(n_masks=50),
        GradCam(),
        WholeLung(),
    ]
    with Spread(path) as crew:
        for explainer in explainers:
            found = crew.attribute(explainer, xray.image, 1, xray.lung_mask)
            own = explainer.attribute(local, xray.image, 1, xray.lung_mask)
            np.testing.assert_allclose(found.values, own.values, rtol=1e-4, atol=1e-5)
            assert found.n_forward == own.n_forward
            assert float(found.extras["seconds"]) > 0
        with pytest.raises(ExplainError, match="uint8"):
            crew.attribute(GradCam(), xray.image.astype(np.float32))  # type: ignore[arg-type]
        with pytest.raises(ExplainError, match=r"lime: .*classes 0 to 2"):
            crew.attribute(explainers[0], xray.image, 7)
    with pytest.raises(StorageError):
        Spread("nowhere/t.safetensors", Execution(mode="local"))


@pytest.mark.parametrize(
    ("explainer", "n_units", "chunk"),
    [
        (Lime(n_samples=448), 4, 64),
        (Lime(n_samples=448), 16, 28),
        (Lime(n_samples=448), 1000, 8),
        (Lime(n_samples=448, adaptive=0.1), 16, 64),
        (Lime(n_samples=448, chunk=4), 16, 4),
    ],
)
def test_units_are_no_larger_than_asked_and_not_too_small(
    explainer: Lime, n_units: int, chunk: int
) -> None:
    cut = _cut(explainer, n_units)
    assert isinstance(cut, Lime)
    assert cut.chunk == chunk
    assert cut.model_dump(exclude={"chunk"}) == explainer.model_dump(exclude={"chunk"})
