"""The search over explainers' settings: what is drawn, what is asked, who wins. About 10 s."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from raybench.config import SweepConfig, load_config
from raybench.errors import ConfigError, RunFolderError
from raybench.executor.jobs import Answer, Task, run_jobs
from raybench.executor.local import LocalPool
from raybench.executor.remembering import RememberingPool
from raybench.explain import GradCam, Lime, WholeLung
from raybench.explain.fills import Neighbour
from raybench.explain.spaces import ExplainerSearch, Space
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.scoring.binarise import CANDIDATES, binarise, choose_threshold, oriented
from raybench.scoring.overlap import iou
from raybench.scoring.selection import left_out_score, on_front, winner
from raybench.settings import Choice, Range, Settings
from raybench.studies.context import Context, Winners, explained_images
from raybench.studies.explain_stage import Item, job_of
from raybench.studies.judging_settings import Judge
from raybench.studies.material import Material
from raybench.studies.plan import make_plan, plan_lines
from raybench.studies.search_stage import search
from raybench.studies.tried import Tried
from raybench.studies.truths import load_truths
from raybench.tracking.run_folder import RunFolder
from raybench.types import Arrays, Question, Unit

SIZES = {"t0": (64, 64)}
LIME = {
    "n_samples": {"choices": [20, 33, 50]},
    "surrogate.kernel_width": {"low": 0.05, "high": 5.0, "log": True},
    "surrogate.alpha": {"low": 0.001, "high": 100, "log": True},
    "clip_to_lungs": {"choices": [False, True]},
    "median_filter": {"choices": [0, 5]},
    "threshold_rule": {"choices": ["val", "fixed"]},
    "threshold": {"low": 0.05, "high": 0.95},
}
FINE = {"kernel_size": 1.0, "max_dist": 10.0}
CONFIG: dict[str, Any] = {
    "name": "search",
    "data": {"name": "phantom", "n_train": 1, "n_val": 3, "n_test": 2, "size": 96},
    "backbones": [
        {"name": "test_resnet", "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]}
    ],
    "explain": {
        "explainers": [
            {"name": "lime", "n_samples": 50, "chunk": 16, "superpixels": FINE},
            {"name": "grad_cam"},
            {"name": "centre_prior"},
        ]
    },
    "explainer_search": {"n_trials": 13, "explainers": {"lime": LIME}},
}


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch.manual_seed(0)
    net = build("test_resnet", 3)
    with torch.no_grad():
        net.get_classifier().weight.mul_(40)
    return save_checkpoint(net, Card("test_resnet", ("a", "b", "c"), (64, 64)))


class Counted(LocalPool):
    """Counts the units and forward passes that reach it, Grad-CAM's apart."""

    def __init__(self, checkpoint: bytes, store: Path | None = None) -> None:
        super().__init__(lambda key: checkpoint, 1, store=None if store is None else str(store))
        self.n_units = self.n_forward = 0

    def submit(self, ticket: int, task: Task, unit: Unit, model: str | None) -> None:
        self.n_units += 1
        super().submit(ticket, task, unit, model)

    def next(self) -> Answer:
        unit = self._queue[0][2]
        answer = super().next()
        self.n_forward += answer.n_forward if unit.question else 0
        return answer


def context_at(folder: Path) -> Context:
    config = SweepConfig.model_validate(CONFIG)
    records = tuple(config.data.records())
    explained = explained_images(records, config.data.infection_class, {"Val": None, "Test": None})
    return Context(config, RunFolder(str(folder)), config.data, records, explained)


def search_at(folder: Path, pool: Counted) -> tuple[pd.DataFrame, Winners]:
    context = context_at(folder)
    found = search(context, pool, SIZES, {"t0": "test_resnet"})
    return context.run.read_csv("explainer_search.csv").drop(columns="seconds"), found


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


class Fine(Settings):
    name: Literal["fine"] = "fine"
    side: int = 4
    search_space: ClassVar[dict[str, Any]] = {"side": Choice(choices=(2, 4))}


class Coarse(Settings):
    name: Literal["coarse"] = "coarse"
    n: int = 10
    wild: bool = False
    search_space: ClassVar[dict[str, Any]] = {"n": Range(low=5, high=20)}


class Toy(WholeLung):
    parts: Fine | Coarse = Fine()
    steps: int = 3
    search_space: ClassVar[dict[str, Any]] = {
        "parts": Choice(choices=("fine", "coarse")),
        "steps": Range(low=1, high=9),
    }

    def n_forward_planned(self) -> int:
        return self.steps * (self.parts.n if isinstance(self.parts, Coarse) else 1)


def test_what_only_one_kind_has_is_drawn_only_for_it() -> None:
    space = Space.of(Toy(parts=Fine(side=3)), with_lungs=False)
    kinds = ["parts.fine.side", "parts.coarse.n"]
    assert list(space.domains)[:3] == ["sign", "median_filter", "threshold_rule"]
    assert list(space.domains)[3:] == ["parts", "steps", "threshold", *kinds]
    values = {
        "sign": "for",
        "median_filter": 0,
        "threshold_rule": "val",
        "steps": 2,
        "threshold": 0.7,
    }
    values |= {"parts.coarse.n": 7, "parts.fine.side": 2}
    coarse = space.resolve(values | {"parts": "coarse"})
    assert coarse.explainer == Toy(parts=Coarse(n=7), steps=2, sign="for")
    assert set(coarse.parameters) == {*values, "parts"} - {"threshold", "parts.fine.side"}
    fixed = space.resolve(values | {"parts": "fine", "threshold_rule": "fixed"})
    assert fixed.explainer == Toy(parts=Fine(side=2), steps=2, threshold=0.7, sign="for")
    assert space.own().explainer == Toy(parts=Fine(side=3))  # the file's, not the kind's default
    assert space.holds_own()
    assert not Space.of(Toy(steps=12)).holds_own()
    assert space.most_passes() == 9 * 20
    named = Space.of(Toy(), {"threshold": Range(low=0.1, high=0.2)})
    assert named.own().rule == "fixed"  # a threshold that is searched is used


class Inner:
    """Answers with the numbers of the rows asked for; keeps what was asked."""

    slots, free_slots, device = 3, 1, "cpu"

    def __init__(self) -> None:
        self.asked: list[Unit] = []
        self.queue: list[tuple[int, Unit]] = []

    def submit(self, ticket: int, task: Any, unit: Unit, model: str | None) -> None:
        self.asked.append(unit)
        self.queue.append((ticket, unit))

    def next(self) -> Answer:
        ticket, unit = self.queue.pop(0)
        if unit.name == "fails":
            return Answer(ticket, None, "planted", 0.1)
        rows: Arrays = {"rows": np.asarray(unit.payload["numbers"], float)[:, None]}
        return Answer(ticket, rows, None, 0.1, unit.n_forward)

    def close(self) -> None:
        raise AssertionError("it is not this pool's to close")


def test_a_pool_remembers_by_model_question_and_rows() -> None:
    inner = Inner()
    pool = RememberingPool(inner, max_bytes=8 * 30)

    def ask(
        start: int, stop: int, key: str = "a", model: str | None = "t0", **more: Any
    ) -> tuple[list[float], int]:
        numbers = {"numbers": np.arange(start, stop)}
        unit = Unit("u", numbers, True, stop - start, Question(key, start, stop))
        pool.submit(7, None, Unit(**{f: getattr(unit, f) for f in Unit.__slots__} | more), model)  # type: ignore[arg-type]
        answer = pool.next()
        assert answer.ticket == 7
        return [] if answer.arrays is None else answer.arrays["rows"][
            :, 0
        ].tolist(), answer.n_forward

    assert ask(0, 5) == ([0, 1, 2, 3, 4], 5)
    assert ask(1, 4) == ([1, 2, 3], 0)
    assert ask(3, 8, rows=("numbers",)) == ([3, 4, 5, 6, 7], 3)
    assert inner.asked[-1].question == Question("a", 5, 8)
    assert ask(0, 8) == (list(range(8)), 0)
    assert ask(6, 10) == ([6, 7, 8, 9], 4)  # a unit that cannot be cut is asked whole
    assert ask(0, 5, model="t1")[1] == 5
    assert ask(0, 5, key="b", name="fails") == ([], 0)
    assert ask(0, 5, key="b")[1] == 5
    assert ask(0, 5, question=None)[1] == 5
    assert ask(0, 5, question=None)[1] == 5
    assert ask(0, 20, key="c")[1] == 20  # room for thirty rows: those not asked for longest go
    assert ask(0, 8)[1] == 8
    assert (pool.slots, pool.free_slots, pool.device) == (3, 1, "cpu")
    pool.close()


def _curves(*rows: list[float]) -> np.ndarray:
    """Settings with a fixed threshold, an IoU an image."""
    return np.repeat(np.array(rows)[:, :, None], len(CANDIDATES), axis=2)


def test_who_wins_and_what_the_choice_is_worth_by_hand() -> None:
    assert winner(np.array([0.3, 0.5, 0.5 + 1e-10, 0.5]), np.array([1, 9, 2, 2])) == 2
    assert winner(np.array([0.5, 0.5 + 1e-8]), np.array([1, 9])) == 1
    # The lucky setting (0.8, 0.8, 0.2) wins with 0.6 on all. Without the first image it has 0.5,
    # and so without the second; the steady one has 0.55 and is scored there: 0.55. Without the
    # third the lucky one wins, and gets 0.2 there.
    curves, passes = _curves([0.8, 0.8, 0.2], [0.55, 0.55, 0.55]), np.array([1.0, 1.0])
    assert winner(curves[:, :, 0].mean(axis=1), passes) == 0
    assert left_out_score(curves, passes, ["a", "b", "c"]) == pytest.approx((0.55 + 0.55 + 0.2) / 3)
    # Two images of one patient are left out together: without (a, a) the steady one wins.
    assert left_out_score(curves, passes, ["a", "a", "c"]) == pytest.approx((1.1 + 0.2) / 3)
    assert np.isnan(left_out_score(curves, passes, ["a", "a", "a"]))
    # A threshold chosen on Val is chosen anew without the image.
    rule = np.zeros((1, 3, len(CANDIDATES)))
    rule[0, :, 3], rule[0, :, 9] = [0.9, 0.9, 0.0], [0.5, 0.5, 0.5]
    assert left_out_score(rule, np.array([1.0]), [0, 1, 2]) == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    front = on_front(np.array([0.5, 0.4, 0.6, 0.5, np.nan]), np.array([4.0, 2.0, 8.0, 5.0, 0.0]))
    assert front.tolist() == [True, True, True, False, False]


def test_settings_that_fail_where_the_own_ones_do_not_have_failed() -> None:
    def row(ious: list[float], n_forward: float) -> dict[str, Any]:
        curves = _curves(ious)[0].astype("<f8").tobytes() if ious else b""
        return {"curves": curves, "n_forward": n_forward, "seconds": 0.0, "error": None}

    nan = float("nan")
    tried = Tried([row([0.2, 0.4, nan], 5), row([0.9, nan, 0.9], 5), row([], nan)])
    tried.add(row([0.3, 0.5, 0.1], 7))
    np.testing.assert_allclose(tried.scores, [0.3, nan, nan, 0.4])
    assert (tried.winner, tried.values(1), tried.values(3)) == (3, None, (pytest.approx(0.4), 7.0))
    assert tried.left_out(["a", "b", "c"]) == pytest.approx(0.4)
    nothing = Tried([row([nan, nan], nan), row([0.5, 0.5], 1)])
    assert nothing.winner is None
    assert np.isnan(nothing.left_out(["a", "b"]))


AT = "explainer_search.explainers"
WRONG = [
    ("explainer_search.n_trial", "3", "explainer_search.n_trial: not a setting; did you mean n_tr"),
    ("explainer_search.n_trials", "0", "explainer_search.n_trials: expected a number of at least"),
    (f"{AT}.lim.alpha", "{low: 1, high: 2}", f"{AT}.lim: no such explainer; did you mean lime?"),
    (f"{AT}.lime.surrogate.kernel_with", "{low: 1, high: 2}", "mean surrogate.kernel_width?"),
    (f"{AT}.lime.superpixels.rato", "{choices: [0.1]}", "did you mean superpixels.ratio?"),
    (f"{AT}.lime.name", "{choices: [a]}", f"{AT}.lime.name: not a setting of lime; choose"),
    (f"{AT}.lime.n_samples", "{low: 5, high: 20}", "n_samples: expected a number of at least 10,"),
    (f"{AT}.lime.n_samples", "{low: 50.5, high: 99}", "expected a whole number, found 50.5"),
    (f"{AT}.lime.n_samples", "{low: 99, high: 20}", "low (99.0) must be below high (20.0)"),
    (f"{AT}.lime.n_samples", "{low: x, high: 20}", f"{AT}.lime.n_samples.low: expected a number,"),
    (
        f"{AT}.lime.n_samples",
        "100",
        "expected {low: ..., high: ...} or {choices: [...]}, found 100",
    ),
    (f"{AT}.lime", "100", f"{AT}.lime: expected keys and values, each {{low:"),
    (f"{AT}.lime.median_filter", "{low: 0, high: 9}", "median_filter: must be odd or 0, found 2"),
    (f"{AT}.lime.design", "{low: 0, high: 4}", "design: expected {choices: [...]}, found a range"),
    (f"{AT}.lime.design", "{choices: [paired, pared]}", "found 'pared'"),
    (f"{AT}.lime.superpixels.ratio", "{low: 0.5, high: 2}", f"{AT}.lime.superpixels.ratio: expe"),
    (
        f"{AT}.lime.threshold_rule",
        "{choices: [fixed, best]}",
        "expected fixed or val, found 'best'",
    ),
    (f"{AT}.grad_cam.threshold", "{low: 0.2, high: 1.4}", "threshold: expected a number less than"),
    ("explain.explainers.1.label", "lime_tuned", "the winner of lime would be called lime_tuned"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG, ids=[f"{k} {v}" for k, v, _ in WRONG])
def test_a_mistake_gets_its_path_and_what_is_valid(
    tmp_path: Path, key: str, value: str, said: str
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"explainer_search": {}}))
    with pytest.raises(ConfigError) as error:
        load_config(path, [(key, value)])
    (problem,) = error.value.problems
    assert problem.startswith("explainer_search")
    assert said in problem


def test_dotted_keys_and_nested_ones_name_the_same_setting() -> None:
    domain = {"low": 0.1, "high": 0.4}
    dotted = ExplainerSearch.model_validate({"explainers": {"lime": {"superpixels.ratio": domain}}})
    nested = {"explainers": {"lime": {"superpixels": {"ratio": domain}}}}
    assert ExplainerSearch.model_validate(nested) == dotted


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


def test_conditions_are_drawn_after_what_they_hang_on_in_any_order() -> None:
    domains: dict[str, Any] = {
        "completions": Choice(choices=(2, 8)),
        "design": Choice(choices=("paired", "completed")),
        "surrogate": Choice(choices=("ridge", "bayesian_ridge")),
    }
    space = Space.of(Lime(design="paired"), domains)
    assert list(space.domains) == ["surrogate", "design", "completions"]
    drawn = space.resolve({"surrogate": "ridge", "design": "completed", "completions": 2})
    assert drawn.explainer.completions == 2
