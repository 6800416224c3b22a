"""Trials as Tune runs them: judged once, told as failed once, stopped by a budget. About 20 s.

Most call the trial's own function with Tune's `report` replaced; one is a sweep over Ray.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raybench.data import Phantom
from raybench.explain import Saliency
from raybench.storage import Storage
from raybench.studies.goal import LocalisationJudge
from raybench.training import tune as room
from raybench.training.budget import Budget
from raybench.training.recipe import Recipe
from raybench.training.relay import GAVE_UP, N_LEFT, SpentStopper, listening
from raybench.training.settings import Search
from raybench.training.state import newest
from raybench.training.task import Classify
from raybench.training.trial import SECOND, TrialJob

PHANTOM = Phantom(name="phantom", n_train=4, n_val=2, n_test=1, size=64)
LRS = {"choices": [1e-3, 1e30], "first": 1e-3}
DRAWN = {"backbone": "test_resnet", "trial_number": 0}


def recipe(lr: Any, epochs: int = 3) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test_resnet",
            "weights": "none",
            "input_size": 64,
            "batch_size": 8,
            "phases": [{"epochs": epochs, "lr": lr}],
        }
    )


def job_of(one: Recipe, judge: Any = None) -> TrialJob:
    records = PHANTOM.records()
    train, val = (tuple(r for r in records if r.split == s) for s in ("Train", "Val"))
    return TrialJob(PHANTOM, train, val, (one,), Classify(PHANTOM.classes), 0, 1, judge=judge)


class Killed(BaseException):
    pass


@dataclass
class Reports:
    """Stands for Tune: notes figures and keeps checkpoints where Tune would."""

    folder: Path
    kill_at: int | None = None
    told: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, figures: dict[str, Any], checkpoint: Any = None) -> None:
        if len(self.told) == self.kill_at:
            raise Killed
        self.told.append(figures)
        if checkpoint is not None:
            at = self.folder / "t0000" / f"checkpoint_{len(list(self.folder.glob('t0000/*'))):06d}"
            shutil.copytree(checkpoint.path, at)


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reports:
    found = Reports(tmp_path / "tune")
    monkeypatch.setattr(room.tune, "report", found)
    monkeypatch.setattr(room.ray, "get_gpu_ids", list)
    return found


def run(one: Recipe, reports: Reports, judge: Any = None) -> None:
    files = Storage(str(reports.folder.parent))
    room._trial(DRAWN, job_of(one, judge), files, reports.folder.name)


def test_a_trial_killed_before_it_was_judged_is_judged_and_not_trained_again(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bytes, str]] = []

    def judge(checkpoint: bytes, of: Recipe, device: str) -> float:
        asked.append((checkpoint, device))
        return 0.25

    one = recipe(1e-3)
    reports.kill_at = 3
    with pytest.raises(Killed):
        run(one, reports, judge)
    assert [(f["n_epochs"], f[N_LEFT]) for f in reports.told] == [(1, 2), (2, 1), (3, 0)]
    assert all(math.isnan(f[SECOND]) for f in reports.told)
    reports.kill_at = None
    reports.told.clear()
    monkeypatch.setattr(room, "train_one", None)  # would raise if it were called
    run(one, reports, judge)
    assert [f["n_epochs"] for f in reports.told] == [3, 3]
    assert reports.told[-1][SECOND] == 0.25
    kept = newest(Storage(str(reports.folder)), "t0000", one)
    assert kept is not None
    assert asked == [(kept.best, "cpu")] * 2


def test_without_a_judge_each_epoch_is_reported_once(reports: Reports) -> None:
    run(recipe(1e-3), reports)
    assert [f["epoch"] for f in reports.told] == [0, 1, 2]


def test_a_trial_that_diverges_reports_why_instead_of_raising(reports: Reports) -> None:
    run(recipe(1e30), reports, lambda *_: pytest.fail("it has no checkpoint to judge"))
    (told,) = reports.told
    assert told[GAVE_UP].startswith("the loss became nan in epoch 1")
    assert (told["n_epochs"], told[N_LEFT]) == (0, 0)
    assert math.isnan(told[room.SCORE])


def test_what_the_budget_came_before_is_not_begun_and_what_was_begun_is_kept(
    reports: Reports,
) -> None:
    one, spent = recipe(1e-3, 4), (Storage(str(reports.folder.parent)), "tune_spent.json")
    Budget(1e-9, None, 0.0, *spent, iter([0.0, 9.0]).__next__, begun=True).tick(0)
    run(one, reports)
    assert [f["n_epochs"] for f in reports.told] == [0]
    assert "epoch" not in reports.told[0]
    spent[0].remove(spent[1])
    reports.told.clear()
    reports.kill_at = 2
    with pytest.raises(Killed):
        run(one, reports)
    Budget(1e-9, None, 0.0, *spent, iter([0.0, 9.0]).__next__, begun=True).tick(0)
    reports.kill_at = 3  # Tune stops it at the first thing it says
    with pytest.raises(Killed):
        run(one, reports)
    assert [f["n_epochs"] for f in reports.told] == [1, 2, 2]


def test_a_used_up_budget_stops_a_trial_at_its_epoch_but_not_before_it_is_judged(
    tmp_path: Path,
) -> None:
    stopper = SpentStopper()
    ticks = iter([0.0, 1800.0, 5400.0])
    budget = Budget(1.0, None, 0.0, Storage(str(tmp_path)), "spent.json", lambda: next(ticks))
    with listening(Listener(), budget):
        budget.tick(1)
        assert not stopper("t", {N_LEFT: 2, "n_epochs": 1})
        budget.tick(1)
        assert stopper("t", {N_LEFT: 3})
        assert not stopper("t", {N_LEFT: 0}), "it has yet to be judged, and ends by itself"
        assert not stopper.stop_all(), "epochs under way are not thrown away"
    assert not stopper("t", {N_LEFT: 3}), "another search of this process has its own"


@dataclass
class Listener:
    """Notes what a driver hears."""

    started: list[str] = field(default_factory=list)
    epochs: list[tuple[str, int]] = field(default_factory=list)
    ended: dict[str, bool] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def trial_started(self, trial_id: str, recipe: Recipe) -> None:
        self.started.append(trial_id)

    def epoch_finished(self, trial_id: str, recipe: Recipe, epoch: Mapping[str, Any]) -> None:
        self.epochs.append((trial_id, epoch["epoch"]))

    def trial_ended(self, trial_id: str, recipe: Recipe, failed: bool) -> None:
        self.ended[trial_id] = failed

    def budget_spent(self, said: str) -> None:
        self.said.append(said)


def test_over_ray_a_trial_diverges_once_and_the_others_are_trained_and_judged(
    ray_cluster: None, tmp_path: Path
) -> None:
    images = tuple((r, None) for r in PHANTOM.records() if r.split == "Val" and r.infection_mask)
    judge = LocalisationJudge(PHANTOM, images[:2], Saliency(threshold=0.05), "iou")
    job, heard = job_of(recipe(LRS, 2), judge), Listener()
    files = Storage(str(tmp_path))
    settings = Search(trials_per_backbone=5, max_concurrent=1, n_startup=5)
    found = room.search(job, settings, 0.0, files, "tune", heard, resume=False)
    rates = [r.recipe.phases[0].lr for r in found]
    assert rates[0] == 1e-3
    assert set(rates) == {1e-3, 1e30}
    for number, (result, rate) in enumerate(zip(found, rates, strict=True)):
        assert result.trial_id == f"t{number:04d}"
        assert heard.ended[result.trial_id] == (rate > 1)
        if rate > 1:
            assert (result.status, result.n_epochs, result.checkpoint) == ("failed", 0, None)
            assert "the loss became nan in epoch 1" in str(result.error)
            assert result.localisation is None
        else:
            assert (result.status, result.n_epochs, result.error) == ("finished", 2, None)
            assert result.checkpoint is not None
            data = files.read(result.checkpoint)
            assert result.localisation == judge(data, result.recipe, "cpu")
    assert heard.started == [r.trial_id for r in found], "none was begun twice"
    again = room.search(job, settings, 0.0, files, "tune", Listener(), resume=True)
    assert again == found


def test_over_ray_a_budget_used_up_before_the_first_epoch_still_leaves_one(
    ray_cluster: None, tmp_path: Path
) -> None:
    files, ticks = Storage(str(tmp_path)), iter([0.0, 3600.0])
    Budget(1e-6, None, 0.0, files, room.spent_name("tune"), ticks.__next__).tick(
        0
    )  # the driver was killed here
    settings = Search(trials_per_backbone=4, max_concurrent=1, hours=1e-6)
    job, heard = job_of(recipe(1e-3, 3)), Listener()
    found = room.search(job, settings, 0.0, files, "tune", heard, resume=True)
    assert [(r.status, r.n_epochs) for r in found if r.checkpoint is not None] == [("stopped", 1)]
    assert len(found) < 4, "nothing is proposed once there is an epoch"
    assert heard.epochs == [("t0000", 0)]
    assert heard.said == ["the budget of 1e-06 hours (search.hours) is used up"]


@pytest.mark.parametrize("torn", ["experiment_state", "searcher"])
def test_over_ray_a_torn_record_of_tunes_costs_no_epoch(
    ray_cluster: None, tmp_path: Path, torn: str
) -> None:
    files, settings = Storage(str(tmp_path)), Search(trials_per_backbone=2, max_concurrent=1)
    job = job_of(recipe({"choices": [1e-3, 2e-3]}, 2))
    whole = room.search(job, settings, 0.0, files, "tune", Listener(), resume=False)
    damaged = [p for p in (tmp_path / "tune").iterdir() if p.is_file() and torn in p.name]
    assert damaged
    for path in damaged:  # as a full disk leaves them
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    heard = Listener()
    again = room.search(job, settings, 0.0, files, "tune", heard, resume=True)
    assert {epoch for _, epoch in heard.epochs} <= {1}, "the last one is told again, none trained"
    told = [(r.trial_id, r.status, r.n_epochs, r.recipe) for r in whole]
    assert [(r.trial_id, r.status, r.n_epochs, r.recipe) for r in again] == told
    for a, b in zip(whole, again, strict=True):
        assert a.checkpoint is not None
        assert b.checkpoint is not None
        assert files.exists(b.checkpoint)
