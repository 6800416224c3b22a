"""Sanity in a sweep: who is flagged, what a kill costs, and what stands in the tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import torch
from torch import nn

from raybench.config import SweepConfig
from raybench.errors import ConfigError
from raybench.explain import Edges, Explainer, Lime, Rise, Saliency
from raybench.models.classifier import Classifier
from raybench.models.randomise import depth_of
from raybench.studies.context import Context
from raybench.studies.explain_stage import explain
from raybench.studies.sanity_stage import plan_lines, sanity
from raybench.studies.sanity_table import COLUMNS, with_sanity
from raybench.tracking.run_folder import RunFolder
from raybench.types import Arrays, AttributionMap, Subject, Unit
from tests.studies.searching import CONFIG, FINE, SIZES, Counted, Dying, context_at

BEST = {"t0": "test_resnet"}
ASKED = {"n_images": 2, "depths": ["head", "full"], "draws": 1}
EXPLAINERS = [
    {"name": "lime", "n_samples": 30, "superpixels": FINE},
    {"name": "saliency"},
    {"name": "whole_lung"},
]


class _Redrawn(Explainer):
    """Edges of the image, under a pretence of looking at the model."""

    name: Literal["redrawn"] = "redrawn"

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        return [] if done else [Unit("edges", {"subject": subject}, n_forward=1)]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        assert classifier is not None
        return {"map": Edges().draw(unit.payload["subject"])}

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        return AttributionMap(done["edges"]["map"], 0, 1)

    def n_forward_planned(self) -> int:
        return 1


class _Linear(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn((3, 64, 64), generator=drawn) / 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,khw->nk", x, self.weights)


class _Given:
    """Stands for what keeps classifiers: gives hand-made ones by key."""

    def __init__(self, seed_of: Callable[[str], int]) -> None:
        self._seed_of = seed_of

    def get(self, key: str, read: object) -> Classifier:
        net = _Linear(self._seed_of(key))
        return Classifier(net, (64, 64), (0, 0, 0), (1, 1, 1), ("a", "b", "c"))


def _pool_of(seed_of: Callable[[str], int]) -> Counted:
    pool = Counted(b"")
    pool._resident = _Given(seed_of)  # type: ignore[assignment]
    return pool


def _context(folder: Path, explainers: list[Explainer] | None = None, **more: object) -> Context:
    config = SweepConfig.model_validate(
        CONFIG
        | {"sanity": ASKED | more, "explainer_search": None, "explain": {"explainers": EXPLAINERS}}
    )
    if explainers is not None:
        explain_ = config.explain.model_copy(update={"explainers": tuple(explainers)})
        config = config.model_copy(update={"explain": explain_})
    return replace(context_at(folder), config=config)


def test_edges_are_unmoved_and_a_linear_models_gradient_is_moved(tmp_path: Path) -> None:
    context = _context(tmp_path, [_Redrawn(), Saliency()])
    pool = _pool_of(lambda key: 0 if depth_of(key) is None else depth_of(key)[1] % 1000)
    explain(context, pool, SIZES, ["t0"], {})
    found = sanity(context, pool, SIZES, BEST, {}, {})
    full = found[found.depth == "full"].set_index("explainer")
    assert full.loc["redrawn", ["rank", "rank_low", "ssim"]].tolist() == [1.0, 1.0, 1.0]
    assert full.unmoved.tolist() == [True, False]
    assert abs(full.loc["saliency", "rank"]) < 0.1, "two independent draws of weights"


def test_an_unchanged_model_gives_exactly_the_same_maps(tmp_path: Path) -> None:
    stochastic: list[Explainer] = [Lime(n_samples=30), Rise(n_masks=20), Saliency()]
    context = _context(tmp_path, stochastic)
    pool = _pool_of(lambda key: 0)
    explain(context, pool, SIZES, ["t0"], {})
    found = sanity(context, pool, SIZES, BEST, {}, {})
    assert len(found) == 6
    assert (found[["rank", "rank_of_sizes", "ssim"]] == 1.0).all(axis=None)


def test_killed_and_resumed_in_a_bucket_it_is_the_uninterrupted_one(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    whole, killed = (_context(tmp_path / name) for name in ("whole", "killed"))
    killed = replace(killed, run=RunFolder(f"memory://{tmp_path.name}/sanity"))
    for context in (whole, killed):
        explain(context, Counted(checkpoint), SIZES, ["t0"], {})
    pool, second, third = (Counted(checkpoint) for _ in range(3))
    dying = Dying(checkpoint, after=9)
    expected = sanity(whole, pool, SIZES, BEST, {}, {})
    with pytest.raises(KeyboardInterrupt):
        sanity(killed, dying, SIZES, BEST, {}, {})
    n_kept = sum(len(killed.run.read(f"sanity_t0_{name}")) for name in ("lime", "saliency"))
    assert 1 <= n_kept < 8
    found = sanity(killed, second, SIZES, BEST, {}, {})
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert second.n_units < pool.n_units, "what was written is not asked again"
    sanity(killed, third, SIZES, BEST, {}, {})
    assert third.n_units == 0


def test_tables_hold_figures_flags_and_what_is_so_by_construction(
    checkpoint: bytes, tmp_path: Path
) -> None:
    context = _context(tmp_path)
    explain(context, Counted(checkpoint), SIZES, ["t0"], {})
    found = sanity(context, Counted(checkpoint), SIZES, BEST, {}, {})
    assert tuple(found.columns) == COLUMNS
    keys = list(zip(found.explainer, found.depth, strict=True))
    names = ("lime", "saliency", "whole_lung")
    assert sorted(keys) == sorted((n, d) for n in names for d in ("head", "full"))
    each = context.run.read_parquet("sanity.parquet")
    assert len(each) == 2 * 2 * 2
    mean = each[(each.explainer == "lime") & (each.depth == "full")]["rank"].mean()
    lime = found[(found.explainer == "lime") & (found.depth == "full")].iloc[0]
    assert lime["rank"] == pytest.approx(mean)
    assert lime.rank_low <= lime["rank"] <= lime.rank_high
    lung = found[found.explainer == "whole_lung"]
    assert lung.by_construction.all()
    assert lung.unmoved.tolist() == [None, True]
    assert context.run.storage.exists("figures/sanity.png")
    board = pd.DataFrame(
        [("test_resnet", "t0", e, rule) for e in ("lime", "unet") for rule in ("fixed", "val")],
        columns=["backbone", "trial_id", "explainer", "threshold_rule"],
    )
    joined = with_sanity(board, found)
    assert joined.sanity_rank.tolist()[:2] == [lime["rank"]] * 2
    assert joined.unmoved.isna().tolist() == [False, False, True, True]


def test_the_plan_counts_and_bad_settings_are_named(tmp_path: Path) -> None:
    context = _context(tmp_path)
    assert "8 maps" in next(plan_lines(context.config, 2))
    for depths, said in (
        (["head"], "expected full"),
        (["full", 1, "partial"], "each depth once"),
        ([9, "full"], "1 to"),
        ([0, "full"], "from 1 on"),
    ):
        with pytest.raises((ConfigError, ValueError), match=said):
            _context(tmp_path, depths=depths)
    found = _context(tmp_path, depths=["full", 2, "head"]).config.sanity
    assert found is not None
    assert found.depths == ("head", 2, "full")
    assert sanity(context_at(tmp_path), Counted(b""), {}, {}, {}, {}).empty
