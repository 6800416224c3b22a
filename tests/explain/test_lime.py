"""LIME against the lime library: same superpixels, same coins, same answers, same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lime.lime_image import LimeImageExplainer

from raybench.data.covid_qu_ex import CovidQuEx
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ExplainError
from raybench.explain import Lime
from raybench.explain.perturbation import (
    active_superpixels,
    coin_flips,
    distinct,
    render,
)
from raybench.explain.surrogate import cosine_distance, kernel, ridge
from raybench.models.classifier import Classifier
from raybench.types import Arrays, ChestXray, Gray, Subject

N_SAMPLES = 200
MakeClassifier = Callable[..., Classifier]


def by_library(
    classifier: Classifier, image: Gray, seed: int, hide_color: int | None, target: int | None
) -> SimpleNamespace:
    """The library's explanation, with the keep-vectors, answers and fill it drew on the way."""
    explainer = LimeImageExplainer(random_state=seed)
    sample = explainer.data_labels
    seen: dict[str, Any] = {}

    def spy(image: Any, fudged: Any, *args: Any, **kwargs: Any) -> Any:
        seen["keep"], seen["answers"] = sample(image, fudged, *args, **kwargs)
        seen["fill"] = fudged
        return seen["keep"], seen["answers"]

    explainer.data_labels = spy
    found = explainer.explain_instance(
        np.repeat(image[:, :, None], 3, axis=2),
        classifier.predict,
        labels=(target,),
        hide_color=hide_color,
        top_labels=1 if target is None else None,
        num_samples=N_SAMPLES,
    )
    (label,) = found.local_exp
    weights = np.zeros(found.segments.max() + 1)
    for superpixel, weight in found.local_exp[label]:
        weights[superpixel] = weight
    return SimpleNamespace(
        label=label,
        superpixels=found.segments,
        weights=weights,
        intercept=found.intercept[label],
        score=found.score,
        **seen,
    )


def finish(lime: Lime, subject: Subject, classifier: Classifier) -> dict[str, Arrays]:
    done: dict[str, Arrays] = {}
    while units := lime.plan(subject, done):
        done |= {unit.name: lime.run(unit, classifier) for unit in units}
    return done


def subject_of(image: Gray, target: int | None = None) -> Subject:
    return Subject("a", image, None, (image.shape[0], image.shape[1]), target)


def assert_parity(
    classifier: Classifier, image: Gray, seed: int, fill: str, target: int | None = None
) -> None:
    theirs = by_library(classifier, image, seed, {"black": 0, "mean": None}[fill], target)
    settings = {"n_samples": N_SAMPLES, "seed": seed, "fill": fill, "chunk": 70}
    lime = Lime.model_validate(settings | {"design": "independent"})
    subject = subject_of(image, target)
    done = finish(lime, subject, classifier)
    ours = lime.merge(subject, done)

    np.testing.assert_array_equal(ours.extras["superpixels"], theirs.superpixels)
    keep = coin_flips(N_SAMPLES, len(theirs.weights), seed)
    np.testing.assert_array_equal(keep, theirs.keep)
    filled = lime.fill.draw(subject, theirs.superpixels)
    np.testing.assert_array_equal(filled[0], theirs.fill[:, :, 0])
    assert ours.target == theirs.label
    assert np.abs(theirs.weights).max() > 5e-3, "weights too small for a test to mean anything"
    np.testing.assert_allclose(ours.extras["weights"], theirs.weights, atol=1e-5)
    np.testing.assert_allclose(ours.values, theirs.weights[theirs.superpixels], atol=1e-5)
    assert ours.extras["r2"] == pytest.approx(theirs.score, abs=1e-5)

    _, same_as = distinct(keep, active_superpixels(image, filled, theirs.superpixels))
    answers = np.concatenate(
        [done[f"samples:{i:07d}"]["answers"] for i in range(0, ours.n_forward, 70)]
    )
    answers = answers[same_as]
    np.testing.assert_allclose(answers, theirs.answers, atol=1e-6)
    fit = ridge(keep, answers[:, theirs.label], kernel(cosine_distance(keep), 0.25), 1.0)
    assert fit.intercept == pytest.approx(theirs.intercept, abs=1e-5)
    assert fit.r2 == pytest.approx(theirs.score, abs=1e-5)
    np.testing.assert_allclose(fit.weights, theirs.weights, atol=1e-5)


@pytest.mark.parametrize(
    ("seed", "fill", "target"), [(0, "black", None), (7, "mean", None), (2**32 - 1, "black", 0)]
)
def test_parity_with_lime_on_a_phantom(
    make_classifier: MakeClassifier, xray: ChestXray, seed: int, fill: str, target: int | None
) -> None:
    image = resize_gray(xray.image, (128, 128))
    assert_parity(make_classifier(size=(64, 64)), image, seed, fill, target)


def test_parity_with_lime_on_the_models_own_grid(
    make_classifier: MakeClassifier, masked: Gray
) -> None:
    classifier = make_classifier("test_resnet", size=(96, 80))
    assert_parity(classifier, resize_gray(masked, (96, 80)), 1, "mean")


@pytest.mark.parametrize("fill", ["black", "mean"])
def test_parity_with_lime_on_a_real_xray(
    make_classifier: MakeClassifier, cxr: Path, fill: str
) -> None:
    data = CovidQuEx.model_validate({"name": "covid_qu_ex", "root": str(cxr)})
    record = next(r for r in data.records() if r.split == "Test")
    image = resize_gray(Preprocess().apply(data.load(record)), (160, 160))
    assert_parity(make_classifier(size=(96, 96)), image, 0, fill)


def test_equal_images_are_asked_once_without_effect(
    make_classifier: MakeClassifier, masked: Gray
) -> None:
    classifier = make_classifier()
    once = Lime(n_samples=N_SAMPLES, design="independent").attribute(classifier, masked)
    each = Lime(n_samples=N_SAMPLES, design="independent", deduplicate=False).attribute(
        classifier, masked
    )
    np.testing.assert_allclose(once.extras["weights"], each.extras["weights"], atol=1e-6)
    assert once.extras["r2"] == pytest.approx(each.extras["r2"], abs=1e-6)

    grid = resize_gray(masked, classifier.input_size)
    superpixels = once.extras["superpixels"]
    keep = coin_flips(N_SAMPLES, int(superpixels.max()) + 1, 0)
    shown = render(grid, np.zeros_like(grid), superpixels, keep)
    assert once.n_forward == len({picture.tobytes() for picture in shown})
    assert each.n_forward == N_SAMPLES > once.n_forward


def test_chunks_and_their_order_do_not_matter(
    make_classifier: MakeClassifier, masked: Gray
) -> None:
    classifier, subject = make_classifier(), subject_of(masked)
    whole = Lime(n_samples=N_SAMPLES, chunk=1000)
    parts = Lime(n_samples=N_SAMPLES, chunk=7)
    one = whole.merge(subject, finish(whole, subject, classifier))
    done = finish(parts, subject, classifier)
    backwards = dict(reversed(done.items()))
    many = parts.merge(subject, backwards)
    assert len(done) == 1 + -(-many.n_forward // 7)
    np.testing.assert_allclose(one.values, many.values, atol=1e-6)

    lost = {name: arrays for name, arrays in done.items() if name != "samples:0000007"}
    with pytest.raises(ExplainError, match=r"a: \d+ answers for \d+ perturbed images"):
        parts.merge(subject, lost)


def test_a_black_image_costs_one_forward_pass(make_classifier: MakeClassifier) -> None:
    found = Lime(n_samples=50).attribute(make_classifier(), np.zeros((64, 64), np.uint8))
    assert found.n_forward == 1
    np.testing.assert_allclose(found.values, 0, atol=1e-6)
