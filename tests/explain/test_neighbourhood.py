"""Uncertainty, settling, and answers that are kept: one image, closed forms and many draws."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybench.answers import AnswerStore
from raybench.data.preprocess import resize_gray
from raybench.explain import (
    BayesianRidgeSurrogate,
    GlimeSurrogate,
    KernelShapSurrogate,
    Lime,
    RidgeSurrogate,
)
from raybench.explain.fills import Mean
from raybench.explain.neighbourhood import LocalFit, Neighbourhood, expected_iou
from raybench.explain.surrogate import cosine_distance, jackknife, kernel, ridge, standard_error
from raybench.models.classifier import Classifier
from raybench.types import Arrays, Gray, Subject

MakeClassifier = Callable[..., Classifier]
K = 14


class Answers:
    """A model of 14 superpixels with effects of single ones, pairs and triples."""

    def __init__(self, pairs: float, triples: float = 0.0) -> None:
        rng = np.random.default_rng(3)
        self.linear = rng.normal(size=K)
        self.pairs = pairs * rng.normal(size=(K, K))
        self.triples = triples * rng.normal(size=(K, K, K))

    def __call__(self, keep: np.ndarray) -> np.ndarray:
        x = keep * 1.0
        found = x @ self.linear + np.einsum("ni,ij,nj->n", x, self.pairs, x)
        return np.asarray(found + np.einsum("ni,nj,nk,ijk->n", x, x, x, self.triples))


def one_draw(model: Answers, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    keep = np.random.default_rng(seed).integers(0, 2, (n, K)) > 0
    keep[0] = True
    weights = kernel(cosine_distance(keep), 0.25)
    fit = ridge(keep, model(keep), weights, 1.0)
    deltas = jackknife(keep, model(keep), weights, 1.0, fit, 1)
    return fit.weights, standard_error(deltas)


def test_standard_errors_are_the_spread_over_draws() -> None:
    model = Answers(0.3)
    draws = [one_draw(model, 200, seed) for seed in range(150)]
    spread = np.std([weights for weights, _ in draws], axis=0)
    told = np.mean([errors for _, errors in draws], axis=0)
    np.testing.assert_allclose(told, spread, rtol=0.25)


def test_leaving_a_group_out_is_what_it_says() -> None:
    """Against refitting, the centre of the superpixels held where it was."""
    rng = np.random.default_rng(0)
    keep = rng.integers(0, 2, (90, 6)) > 0
    y, weights = rng.random(90), rng.random(90) + 0.5
    fit = ridge(keep, y, weights, 2.0)
    deltas = jackknife(keep, y, weights, 2.0, fit, 4)
    assert deltas.shape == (23, 6)  # the last group has two rows
    centre, mean = weights @ keep / weights.sum(), weights @ y / weights.sum()
    for group in (0, 7, 22):
        left = np.delete(np.arange(90), np.arange(90)[4 * group : 4 * group + 4])
        x, t, w = (keep - centre)[left], (y - mean)[left], weights[left]
        refitted = np.linalg.solve(x.T @ (x * w[:, None]) + 2 * np.eye(6), x.T @ (w * t))
        np.testing.assert_allclose(fit.weights - deltas[group], refitted, atol=1e-10)


def test_an_answer_that_is_linear_leaves_nothing_in_doubt() -> None:
    keep = np.random.default_rng(1).integers(0, 2, (60, K)) > 0
    weights = kernel(cosine_distance(keep), 0.25)
    y = Answers(0.0)(keep)
    deltas = jackknife(keep, y, weights, 0.0, ridge(keep, y, weights, 0.0), 1)
    assert standard_error(deltas).max() < 1e-9


def test_the_expected_iou_is_that_of_other_draws() -> None:
    model = Answers(0.35)
    areas = np.full(K, 100)
    told, seen = [], []
    for seed in range(40):
        keep = np.random.default_rng(seed).integers(0, 2, (150, K)) > 0
        weights = kernel(cosine_distance(keep), 0.25)
        fit = ridge(keep, model(keep), weights, 1.0)
        deltas = jackknife(keep, model(keep), weights, 1.0, fit, 1)
        told.append(expected_iou(LocalFit(fit.weights, fit.r2, deltas[0], deltas), areas, 0.5))
        other = LocalFit(one_draw(model, 150, 1000 + seed)[0], 0.0, deltas[0], deltas[:0])
        a, b = (w >= (w.min() + w.max()) / 2 for w in (fit.weights, other.weights))
        seen.append((a & b).sum() / (a | b).sum())
    # another draw of the same size differs from this one by both their errors: a little more
    assert np.mean(seen) - 0.05 < np.mean(told) < np.mean(seen) + 0.15
    assert expected_iou(other, areas, 0.5) == 0.0  # nothing known


def subject_of(image: Gray) -> Subject:
    return Subject("a", image, None, (image.shape[0], image.shape[1]), 1)


def ask(lime: Lime, subject: Subject, model: Answers) -> tuple[dict[str, Arrays], int]:
    """Plan and answer in rounds, as a pool would."""
    done: dict[str, Arrays] = {}
    rounds = 0
    while units := lime.plan(subject, done):
        rounds += 1
        for unit in units:
            if unit.name == "superpixels":
                done[unit.name] = {"labels": tiles()}
                continue
            keep = np.unpackbits(unit.payload["keep"], axis=1, count=K).astype(bool)
            y = model(keep)
            done[unit.name] = {"answers": np.stack([-y, y], axis=1).astype(np.float32)}
    return done, rounds


def tiles() -> np.ndarray:
    return np.repeat(np.arange(K, dtype=np.int32), 10)[None].repeat(10, axis=0)


@pytest.mark.parametrize("design", ["independent", "completed"])
def test_an_image_settles_the_sooner_the_simpler_its_answers_are(design: Any) -> None:
    image = np.full((10, 10 * K), 200, np.uint8)
    lime = Lime(n_samples=1500, design=design, adaptive=0.1, chunk=32, deduplicate=False)
    passes = []
    for model in (Answers(0.0), Answers(0.3), Answers(0.3, 0.15)):
        subject = subject_of(image)
        done, rounds = ask(lime, subject, model)
        found = lime.merge(subject, done)
        assert rounds == len(done)  # superpixels, then a chunk a round
        passes.append(found.n_forward)
        # what was asked is fitted as if it had been all
        whole = lime.model_copy(update={"adaptive": None, "n_samples": found.n_forward})
        if design == "independent":
            again = whole.merge(subject, ask(whole, subject, model)[0])
            np.testing.assert_array_equal(again.values, found.values)
    assert 32 <= passes[0] <= 96  # the ridge penalty alone keeps a few samples from settling it
    assert passes[0] <= passes[1] < passes[2] <= 1500


def test_a_tighter_tolerance_asks_more() -> None:
    subject = subject_of(np.full((10, 10 * K), 200, np.uint8))
    passes = []
    for tolerance in (0.3, 0.1, 0.02):
        lime = Lime(n_samples=3000, adaptive=tolerance, chunk=32, design="independent")
        done, _ = ask(lime, subject, Answers(0.4))
        passes.append(lime.merge(subject, done).n_forward)
    assert passes[0] < passes[1] < passes[2]


class Lopsided(Answers):
    """Strong effects for the class that are clear, weak ones against it that are in doubt."""

    def __init__(self) -> None:
        super().__init__(0.12, 0.02)
        self.linear = np.where(np.arange(K) < 4, 10.0, -0.3 - 0.05 * np.arange(K))


def test_an_image_settles_on_the_mask_of_its_own_sign() -> None:
    subject, passes, found = subject_of(np.full((10, 10 * K), 200, np.uint8)), {}, {}
    for sign in ("both", "for", "against"):
        lime = Lime(n_samples=1500, design="independent", adaptive=0.1, chunk=32, sign=sign)
        found[sign] = lime.merge(subject, ask(lime, subject, Lopsided())[0])
        passes[sign] = found[sign].n_forward
    assert passes["both"] <= passes["for"] < passes["against"] < 1500
    keys = {Lime(adaptive=0.1, sign=sign).map_key for sign in ("both", "against")}
    assert len(keys) == 2, "where an image settles the map hangs on the sign"
    assert Lime(sign="both").map_key == Lime(sign="against").map_key


def test_masks_that_mark_nothing_agree() -> None:
    sure = LocalFit(-np.arange(1.0, 5.0), 1.0, np.zeros(4), np.full((3, 4), 1e-3))
    areas = np.full(4, 10)
    assert expected_iou(sure, areas, 0.5, sign="for") == 1.0
    unsure = LocalFit(sure.weights, 1.0, np.ones(4), np.full((3, 4), 1.0))
    assert expected_iou(unsure, areas, 0.5, sign="for") < 0.9
    assert expected_iou(unsure, areas, 0.5, sign="both") == 1.0  # all move by the same


def named(classifier: Classifier) -> Classifier:
    """As if it had been loaded from a checkpoint."""
    classifier.identity = "f" * 64
    return classifier


def test_settings_downstream_of_the_answers_ask_nothing(
    make_classifier: MakeClassifier, masked: Gray, tmp_path: Path
) -> None:
    model, store = named(make_classifier()), AnswerStore(str(tmp_path))
    lime = Lime(n_samples=120, seed=3)
    first = lime.attribute(model, masked, store=store)
    assert first.extras["n_asked"] == first.n_forward > 2
    downstream: list[dict[str, Any]] = [
        {"surrogate": RidgeSurrogate(kernel_width=0.5, alpha=0.1)},
        {"surrogate": BayesianRidgeSurrogate()},
        {"surrogate": GlimeSurrogate()},  # 7 active superpixels: all patterns are there
        {"surrogate": KernelShapSurrogate()},
        {"n_samples": 70},
        {"threshold": 0.3},
        {"design": "orthogonal"},
        {"completions": 3},
        {"chunk": 16},
    ]
    for change in downstream:
        changed = lime.model_copy(update=change)
        free = changed.attribute(model, masked, store=AnswerStore(str(tmp_path)))
        assert free.extras["n_asked"] == 0, change
        np.testing.assert_array_equal(free.values, changed.attribute(model, masked).values)
    assert lime.attribute(model, masked, target=2, store=store).extras["n_asked"] == 0
    upstream: list[dict[str, Any]] = [{"seed": 4}, {"design": "paired"}, {"fill": Mean()}]
    for change in upstream:
        asked = lime.model_copy(update=change).attribute(model, masked, store=store)
        assert asked.extras["n_asked"] > 0, change
    half = resize_gray(masked // 2, masked.shape)
    assert lime.attribute(model, half, store=store).extras["n_asked"] > 0


def test_without_a_name_a_model_is_always_asked(
    make_classifier: MakeClassifier, masked: Gray, tmp_path: Path
) -> None:
    model, store = make_classifier(), AnswerStore(str(tmp_path))
    for _ in range(2):
        found = Lime(n_samples=40).attribute(model, masked, store=store)
        assert found.extras["n_asked"] == found.n_forward


def test_an_interrupted_image_goes_on_where_it_was(
    make_classifier: MakeClassifier, masked: Gray, tmp_path: Path
) -> None:
    classifier, store = named(make_classifier()), AnswerStore(str(tmp_path))
    lime = Lime(n_samples=120, design="independent", deduplicate=False, chunk=32)
    subject = replace(subject_of(resize_gray(masked, classifier.input_size)), target=None)
    done: dict[str, Arrays] = {}
    for unit in lime.plan(subject, done):
        done[unit.name] = lime.run(unit, classifier)
        store.answer(unit, classifier.identity, lambda made=done[unit.name]: made)
    for unit in lime.plan(subject, done)[:2]:  # two chunks of four, then the lights go out
        store.answer(unit, classifier.identity, lambda u=unit: lime.run(u, classifier))
    found = lime.attribute(classifier, masked, store=AnswerStore(str(tmp_path)))
    assert found.extras["n_asked"] == 120 - 64


def _large(seed: int) -> Neighbourhood:
    """9 MB: 16,384 samples of 576 superpixels."""
    image = np.full((24, 24), 9, np.uint8)
    labels = np.arange(576, dtype=np.int32).reshape(24, 24)
    settings = ("independent", 16_384, image, image[None] * 0, labels, seed, 1, False)
    return Neighbourhood.draw(*settings)  # type: ignore[arg-type]


def test_what_is_kept_of_large_neighbourhoods_is_bounded_by_bytes() -> None:
    kept = [weakref.ref(_large(seed).keep) for seed in range(9)]
    alive = [keep for ref in kept if (keep := ref()) is not None]
    assert 2 <= len(alive) <= 64 // 9
    assert _large(8).keep is alive[-1], "the last is not drawn again"
