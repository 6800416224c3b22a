"""The search over explainers' settings: what is asked, who wins, what a kill costs. About 10 s."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raybench.errors import DataError, RunFolderError
from raybench.executor.jobs import Answer, run_jobs
from raybench.executor.remembering import RememberingPool
from raybench.explain import GradCam, Lime
from raybench.explain.fills import Neighbour
from raybench.explain.spaces import ExplainerSearch, Space
from raybench.scoring.binarise import CANDIDATES, binarise, choose_threshold, oriented
from raybench.scoring.overlap import iou
from raybench.studies.context import Context, Winners
from raybench.studies.explain_stage import Item, job_of
from raybench.studies.judging_settings import Judge
from raybench.studies.material import Material
from raybench.studies.plan import make_plan, plan_lines
from raybench.studies.search_stage import found_before, search
from raybench.studies.truths import load_truths
from raybench.tracking.maps import table_name, to_row
from raybench.tracking.run_folder import RunFolder
from tests.studies.searching import SIZES, Counted, context_at, search_at


@pytest.fixture(scope="module")
def whole(
    checkpoint: bytes, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pd.DataFrame, Winners, Counted]:
    folder = tmp_path_factory.mktemp("whole")
    pool = Counted(checkpoint, folder / "answers")
    return *search_at(folder / "run", pool), pool


def test_every_explainer_has_its_trials_and_a_winner_under_its_own_title(
    whole: tuple[pd.DataFrame, Winners, Counted],
) -> None:
    table, winners, _ = whole
    assert table.groupby(["trial_id", "explainer"]).number.apply(list).to_dict() == {
        ("shared", "centre_prior"): list(range(13)),
        ("t0", "lime"): list(range(13)),
        ("t0", "grad_cam"): list(range(13)),
    }
    own = json.loads(table[(table.explainer == "lime") & (table.number == 0)].parameters.iloc[0])
    assert (own["n_samples"], own["surrogate.kernel_width"], own["threshold_rule"]) == (
        50,
        0.25,
        "val",
    )
    assert [w.explainer.title for w in winners["t0"]] == ["lime_tuned", "grad_cam_tuned"]
    won = table[table.winner].set_index("explainer")
    assert len(won) == 3
    best = table.groupby("explainer").val_iou.max()
    pd.testing.assert_series_equal(won.val_iou.sort_index(), best, check_names=False, rtol=1e-9)
    assert won.val_iou_cv.notna().all()
    assert table.val_iou_cv.notna().sum() == 3
    lime = winners["t0"][0].explainer
    assert isinstance(lime, Lime)
    assert (
        lime.surrogate.kernel_width == json.loads(won.parameters["lime"])["surrogate.kernel_width"]
    )
    assert (lime.chunk, lime.name) == (16, "lime")


def test_winners_are_read_back_as_they_were_found(
    whole: tuple[pd.DataFrame, Winners, Counted], tmp_path: Path
) -> None:
    table, winners, _ = whole
    context = context_at(tmp_path)
    assert found_before(context) == {}
    context.run.write_csv("explainer_search.csv", table)
    again = found_before(context)
    assert {t: [w.explainer for w in ws] for t, ws in again.items()} == {
        t: [w.explainer for w in ws] for t, ws in winners.items()
    }
    assert again["t0"][0].explainer != Lime(label="lime_tuned"), "not the settings as set"


@pytest.mark.parametrize("n_rows", [1, 19, 35])
def test_killed_and_resumed_it_proposes_and_finds_the_same_and_asks_nothing_twice(
    whole: tuple[pd.DataFrame, Winners, Counted],
    checkpoint: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_rows: int,
) -> None:
    pools = [Counted(checkpoint, tmp_path / "answers") for _ in range(2)]
    written = []

    def append(run: RunFolder, table: str, frame: pd.DataFrame) -> None:
        if len(written) == n_rows:
            raise KeyboardInterrupt
        written.append(table)
        run._table(table).append(frame)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", append)
        with pytest.raises(KeyboardInterrupt):
            search_at(tmp_path / "run", pools[0])
    table, winners = search_at(tmp_path / "run", pools[1])
    pd.testing.assert_frame_equal(table, whole[0], check_exact=True)
    assert winners == whole[1]
    assert sum(pool.n_forward for pool in pools) == whole[2].n_forward
    again = Counted(checkpoint)
    pd.testing.assert_frame_equal(search_at(tmp_path / "run", again)[0], table)
    assert again.n_units == 0


class LastFirst(Counted):
    """Ends the youngest of its units first, as some of many workers may."""

    slots = 4

    def next(self) -> Answer:
        self._queue.rotate(1)
        return super().next()


def test_many_workers_find_what_one_finds(
    whole: tuple[pd.DataFrame, Winners, Counted], checkpoint: bytes, tmp_path: Path
) -> None:
    table, winners = search_at(tmp_path, LastFirst(checkpoint))
    pd.testing.assert_frame_equal(table, whole[0], check_exact=True)
    assert winners == whole[1]


def test_other_proposals_than_those_of_before_are_an_error(
    checkpoint: bytes, tmp_path: Path
) -> None:
    row = {
        "number": 0,
        "parameters": '{"sigma": 0.3}',
        "n_forward": 0.0,
        "seconds": 0.0,
        "curves": np.zeros((3, 19)).tobytes(),
        "error": None,
    }
    context_at(tmp_path).run.append("search_shared_centre_prior", pd.DataFrame([row]))
    with pytest.raises(RunFolderError, match=r"trial 0 of centre_prior .* was \{.sigma.: 0.3\}"):
        search_at(tmp_path, Counted(checkpoint))


def test_settings_that_need_no_new_answer_cost_no_pass_and_score_as_the_sweep_scores(
    checkpoint: bytes, tmp_path: Path
) -> None:
    context, pool = context_at(tmp_path), Counted(checkpoint)
    truths = load_truths(context, ["Val"])
    judge = Judge(context, RememberingPool(pool), "t0", truths, Material(context, SIZES), None)
    search_settings = context.config.explainer_search
    assert search_settings is not None
    space = Space.of(context.config.explain.explainers[0], search_settings.explainers["lime"])
    first = judge.judge(space.resolve(space.own().parameters | {"n_samples": 20}))
    again = judge.judge(space.own())
    asked = pool.n_forward
    assert asked == judge.n_asked == round(3 * again.n_forward)  # the first 20 were not asked again
    assert first.n_forward < again.n_forward <= 50
    n_units = pool.n_units
    rng = np.random.default_rng(0)
    for rule in ("val", "fixed"):
        drawn = {"n_samples": 33, "median_filter": 5, "threshold_rule": rule}
        drawn |= {"surrogate.kernel_width": rng.uniform(0.1, 2), "surrogate.alpha": 0.3}
        drawn |= {"clip_to_lungs": rule == "val", "threshold": rng.uniform(0.1, 0.5)}
        candidate = space.resolve(drawn)
        judged = judge.judge(candidate)
        assert (pool.n_units, judge.n_asked) == (n_units, asked)
        _expect_scores(context, Counted(checkpoint), candidate, judged.curves)
    cam = Judge(context, RememberingPool(pool), "t0", truths, Material(context, SIZES), None)
    cams = Space.of(GradCam())
    cam.judge(cams.own())
    n_units = pool.n_units
    cam.judge(
        cams.resolve(
            {"sign": "against", "clip_to_lungs": True, "median_filter": 3, "threshold_rule": "val"}
        )
    )
    assert pool.n_units == n_units


def _expect_scores(context: Context, pool: Counted, candidate: Any, curves: np.ndarray) -> None:
    """The curves against maps made as the explain stage does, and the score stage's functions."""
    explainer, val = candidate.explainer, context.explained["Val"]
    jobs = [job_of(Material(context, SIZES), Item("t0", explainer, record)) for record in val]
    maps = [oriented(outcome.result.values, explainer.sign) for outcome in run_jobs(jobs, pool)]
    xrays = [context.dataset.load(record) for record in val]
    truths = [xray.infection_mask for xray in xrays]
    clips = [xray.lung_mask if explainer.clip_to_lungs else None for xray in xrays]
    if candidate.rule == "val":
        at, best = choose_threshold(maps, truths, clips, explainer.median_filter)
        assert curves.mean(axis=0)[CANDIDATES.index(at)] == pytest.approx(best, abs=1e-12)
        assert curves.mean(axis=0).max() == pytest.approx(best, abs=1e-12)
        return
    for found, values, truth, clip in zip(curves, maps, truths, clips, strict=True):
        mask = binarise(values, explainer.threshold, clip, explainer.median_filter)
        assert (found == iou(mask, truth)).all()
    assert 0 < curves.mean() < 1


def test_the_plan_says_how_many_settings_and_at_most_how_many_passes(tmp_path: Path) -> None:
    context = context_at(tmp_path)
    plan = make_plan(context.config, context.records)
    assert (plan.n_settings, plan.n_forward_search) == (39, (13 * 3 + 2) * (50 + 1))
    text = "\n".join(plan_lines(plan))
    assert "13 of each on 3 Val images, 39 in all" in text
    assert "lime (at most 50 forward passes an image): n_samples, clip_to_lungs" in text
    assert "at most 2,091 more forward passes" in text


def test_what_cannot_even_be_begun_is_a_failed_setting_and_not_the_end(
    checkpoint: bytes, tmp_path: Path
) -> None:
    """Train has three images, so ten neighbours are not to be had; the message names no image."""
    context, pool = context_at(tmp_path), Counted(checkpoint)
    truths = load_truths(context, ["Val"])
    material = Material(context, SIZES)
    judge = Judge(context, RememberingPool(pool), "t0", truths, material, None)
    own = context.config.explain.explainers[0]
    many = own.model_copy(update={"fill": Neighbour(n=10, embedding="pixels")})
    judged = judge.judge(Space.of(many, {}).own())
    assert judged.error == "3 of 3 images: ExplainError"
    assert np.isnan(judged.curves).all()
    few = own.model_copy(update={"fill": Neighbour(n=2, embedding="pixels")})
    assert judge.judge(Space.of(few, {}).own()).error is None


def plant(patch: pytest.MonkeyPatch, fails: Callable[[Any, int], bool]) -> None:
    """Let explainers fail on images."""
    job = Judge._job

    def planted(judge: Judge, explainer: Any, number: int) -> Any:
        if fails(explainer, number):
            raise DataError("planted")
        return job(judge, explainer, number)

    patch.setattr(Judge, "_job", planted)


def of_lime(folder: Path) -> pd.DataFrame:
    table = context_at(folder).run.read_csv("explainer_search.csv")
    return table[table.explainer == "lime"].drop(columns="seconds").reset_index(drop=True)


def some_settings(explainer: Any, number: int) -> bool:
    return getattr(explainer, "n_samples", 0) == 33


def every_lime_on_the_second_image(explainer: Any, number: int) -> bool:
    return isinstance(explainer, Lime) and number == 1


@pytest.mark.parametrize("fails", [some_settings, every_lime_on_the_second_image])
def test_resumed_what_failed_is_tried_again_and_all_else_stays(
    fails: Callable[[Any, int], bool],
    checkpoint: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    val = [r.image_id for r in context_at(tmp_path / "run").explained["Val"]]
    with monkeypatch.context() as patch:
        plant(patch, fails)
        _, winners = search_at(tmp_path / "run", Counted(checkpoint))
    failed = of_lime(tmp_path / "run")
    assert failed.error.notna().any()
    judged_on = val if fails is some_settings else [val[0], val[2]]
    assert winners["t0"][0].images == tuple(judged_on)
    pool = Counted(checkpoint)
    _, again = search_at(tmp_path / "run", pool)
    healed = of_lime(tmp_path / "run")
    assert healed.error.isna().all()
    assert healed.parameters.tolist() == failed.parameters.tolist()
    assert again["t0"][0].images == tuple(val)
    known = failed.error.isna()
    assert (healed[known].val_iou == failed[known].val_iou).all()
    assert pool.n_forward > 0
    # Scored as if it had never failed.
    context = context_at(tmp_path / "other")
    truths = load_truths(context, ["Val"])
    judge = Judge(context, RememberingPool(pool), "t0", truths, Material(context, SIZES), None)
    settings = context.config.explainer_search
    assert settings is not None
    space = Space.of(context.config.explain.explainers[0], settings.explainers["lime"])
    row = healed[~known].iloc[0]
    curves = judge.judge(space.resolve(json.loads(row.parameters))).curves
    assert row.val_iou == pytest.approx(curves.mean(axis=0).max())
    last = Counted(checkpoint)
    search_at(tmp_path / "run", last)
    assert last.n_units == 0
    pd.testing.assert_frame_equal(of_lime(tmp_path / "run"), healed)


def test_a_winner_that_has_explained_stays_the_winner(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        plant(patch, some_settings)
        _, winners = search_at(tmp_path / "run", Counted(checkpoint))
    before, run = of_lime(tmp_path / "run"), context_at(tmp_path / "run").run
    row = to_row(winners["t0"][0].images[0], "Val", None, "planted", 0.0)
    run.append(table_name("t0", "lime_tuned"), pd.DataFrame([row]))
    pool = Counted(checkpoint)
    assert search_at(tmp_path / "run", pool)[1] == winners
    assert pool.n_units == 0
    pd.testing.assert_frame_equal(of_lime(tmp_path / "run"), before)


def test_what_only_one_models_search_needs_is_dropped_when_it_has_ended(
    checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Material, "release", lambda _, trial_id: told.append(trial_id))
    context = context_at(tmp_path)
    short = context.config.model_copy(update={"explainer_search": ExplainerSearch(n_trials=1)})
    best = dict.fromkeys(("t0", "t1"), "test_resnet")
    sizes = dict.fromkeys(best, SIZES["t0"])
    search(replace(context, config=short), Counted(checkpoint), sizes, best)
    assert [trial_id for trial_id in told if trial_id in best] == ["t0"]
