"""Classifiers of which it is certain what they look at: lesions alone, or a marker alone.

Both are built by hand and see the same phantom X-rays, which differ in nothing but a marker in a
corner. Lung masking is off, so that the marker is in sight. Explainers, thresholds chosen on Val,
scores and paired tests are raybench's own; only the classifiers' gaze is known beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from raybench.data.phantom import Phantom, marker_mask
from raybench.explain import (
    CentrePrior,
    Explainer,
    GradCam,
    InputXGradient,
    KernelShap,
    Lime,
    Occlusion,
    RandomSuperpixels,
    Rise,
    Slic,
    WholeLung,
)
from raybench.models.classifier import Classifier
from raybench.scoring.binarise import binarise, choose_threshold, oriented
from raybench.scoring.metrics import localisation_scores
from raybench.scoring.paired import ALPHA, Paired, holm, paired
from raybench.scoring.ranking import map_scores
from raybench.types import ChestXray, Gray, Mask, Split, Subject, Values

SIZE, N_TRAIN, N_VAL, N_TEST = 96, 20, 4, 12
PLAIN = Phantom.model_validate(
    {
        "name": "phantom",
        "classes": ("COVID-19", "Normal"),
        "n_train": N_TRAIN,
        "n_val": N_VAL,
        "n_test": N_TEST,
        "size": SIZE,
    }
)
MARKED = PLAIN.model_copy(update={"marker": True})
BRIGHTEST = np.full((SIZE, SIZE), 253, np.uint8)
"""Only markers are brighter than that, in all phantoms (`marker_mask`)."""

REGIONS = Slic(n_segments=60)
EXPLAINERS: Mapping[str, Explainer] = {
    "lime": Lime(n_samples=200, superpixels=REGIONS),
    "kernel_shap": KernelShap(n_samples=400, superpixels=REGIONS),
    "occlusion": Occlusion(cells=16, window=2),
    "rise": Rise(n_masks=400, cells=10, coverage="observed"),
    "grad_cam": GradCam(layer="parts"),
    "input_x_gradient": InputXGradient(blur=0.03),
}
REFERENCES: Mapping[str, Explainer] = {
    "whole_lung": WholeLung(),
    "centre_prior": CentrePrior(),
    "random_superpixels": RandomSuperpixels(superpixels=REGIONS),
}
Rows = list[dict[str, float]]


class Reader(nn.Module):
    """Sees how far an image is brighter than `before`, and nothing else of it.

    The sum over all pixels speaks for the first of two classes: 95% for `image`, 5% for an image
    that is nowhere brighter than `before`, as a black one is.
    """

    before: torch.Tensor

    def __init__(self, before: Gray, image: Gray) -> None:
        super().__init__()
        self.register_buffer("before", torch.from_numpy(before / 255.0).float())
        self.parts, self.scale = nn.AvgPool2d(4), nn.Parameter(torch.ones(()))
        with torch.no_grad():
            self.scale *= 3.0 / self._evidence(torch.from_numpy(image / 255.0)[None, None])[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        evidence = self._evidence(x)
        return torch.stack([evidence - 1.5, 1.5 - evidence], dim=1)

    def _evidence(self, x: torch.Tensor) -> torch.Tensor:
        # Half a grey level, so that rounding is no evidence.
        excess = torch.relu(x[:, :1].float() - self.before - 0.5 / 255)
        return self.scale * self.parts(excess).sum(dim=(1, 2, 3))


def classifier(before: Gray, image: Gray) -> Classifier:
    net = Reader(before, image).eval()
    return Classifier(net, (SIZE, SIZE), (0, 0, 0), (1, 1, 1), PLAIN.classes, cam_layer="parts")


def phantoms(data: Phantom, split: Split, label: str = "COVID-19") -> list[ChestXray]:
    return [data.load(r) for r in data.records() if (r.split, r.label) == (split, label)]


def reads_lesions(split: Split) -> list[tuple[Classifier, ChestXray]]:
    """It has the X-ray of the same body before it fell ill."""
    both = zip(phantoms(PLAIN, split), phantoms(PLAIN, split, "Normal"), strict=True)
    return [(classifier(well.image, ill.image), ill) for ill, well in both]


def reads_marker(split: Split) -> list[tuple[Classifier, ChestXray]]:
    """One and the same for all images."""
    xrays = phantoms(MARKED, split)
    return [(classifier(BRIGHTEST, xrays[0].image), xray) for xray in xrays]


def scored(
    explainer: Explainer, val: list[tuple[Values, ChestXray]], test: list[tuple[Values, ChestXray]]
) -> Rows:
    """Scores of the Test maps, cut at the threshold that is best on Val."""
    cut, _ = choose_threshold((v for v, _ in val), (_truth(x) for _, x in val))
    rows = []
    for values, xray in test:
        assert xray.lung_mask is not None
        row = localisation_scores(binarise(values, cut), _truth(xray))
        rows.append(row | map_scores(values, _truth(xray), xray.lung_mask))
    return rows


def _truth(xray: ChestXray) -> Mask:
    assert xray.infection_mask is not None
    return xray.infection_mask


def _maps(explainer: Explainer, readers: list[tuple[Classifier, ChestXray]]) -> list[Values]:
    values = [explainer.attribute(model, x.image, 0, x.lung_mask).values for model, x in readers]
    return [oriented(v, explainer.sign) for v in values]


def _both(maps: list[Values], xrays: list[ChestXray]) -> list[tuple[Values, ChestXray]]:
    return list(zip(maps, xrays, strict=True))


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], Rows]:
    """By what is read (`lesions`, `marker`, or `nothing`) and explainer: a row a Test image."""
    found: dict[tuple[str, str], Rows] = {}
    for gaze, reader in (("lesions", reads_lesions), ("marker", reads_marker)):
        val, test = reader("Val"), reader("Test")
        for name, explainer in EXPLAINERS.items():
            parts = (_both(_maps(explainer, of), [x for _, x in of]) for of in (val, test))
            found[gaze, name] = scored(explainer, *parts)
    prior = np.mean([_truth(x) for x in phantoms(PLAIN, "Train")], axis=0, dtype=np.float32)
    for name, explainer in REFERENCES.items():
        parts = (
            _both([_drawn(explainer, x, prior) for x in of], of)
            for of in (phantoms(PLAIN, "Val"), phantoms(PLAIN, "Test"))
        )
        found["nothing", name] = scored(explainer, *parts)
    return found


def _drawn(explainer: Explainer, xray: ChestXray, prior: Values) -> Values:
    subject = Subject(xray.record.image_id, xray.image, xray.lung_mask, (SIZE, SIZE), prior=prior)
    done = {unit.name: explainer.run(unit, None) for unit in explainer.plan(subject, {})}
    return explainer.merge(subject, done).values


def compared(a: Rows, b: Rows, metric: str) -> Paired:
    """a against b, every phantom a patient."""
    of: list[NDArray[np.float64]] = [np.array([row[metric] for row in rows]) for rows in (a, b)]
    return paired(of[0], of[1], np.arange(N_TEST))


def mean(rows: Rows, metric: str) -> float:
    return float(np.nanmean([row[metric] for row in rows]))


def test_the_classifiers_read_what_they_are_said_to_read() -> None:
    """By the gradient, by what may be done to all other pixels, and by being right and wrong."""
    noise = np.random.default_rng(0)
    for gaze in (reads_lesions, reads_marker):
        for model, xray in gaze("Test"):
            marker = marker_mask(MARKED, xray.record)
            seen = _truth(xray) if gaze is reads_lesions else marker
            x = torch.from_numpy(xray.image / 255.0).float().expand(1, 3, -1, -1)
            x = x.clone().requires_grad_()
            model.net(x)[0, 0].backward()  # type: ignore[no-untyped-call]
            assert x.grad is not None
            np.testing.assert_array_equal(x.grad[0].abs().sum(dim=0).numpy() > 0, seen)
            darker = (xray.image * noise.random(xray.image.shape)).astype(np.uint8)
            answers = model.predict(
                np.stack([xray.image, np.where(seen, xray.image, darker), np.where(seen, 0, 99)])
            )
            assert answers[0, 0] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-6)
            assert answers[1] == pytest.approx(answers[0], abs=1e-6)
    (model, ill), *_ = reads_marker("Test")
    (well, *_) = phantoms(PLAIN, "Test", "Normal")
    glyph = np.where(marker_mask(MARKED, ill.record), 255, well.image).astype(np.uint8)
    unmarked = phantoms(PLAIN, "Test")[0].image
    ill_by_marker, ill_by_lesions = model.predict(np.stack([glyph, unmarked]))[:, 0]
    assert ill_by_marker > 0.95 > 0.05 > ill_by_lesions


def test_where_lesions_are_read_every_explainer_finds_them(
    table: dict[tuple[str, str], Rows],
) -> None:
    pairs = [(e, r) for e in EXPLAINERS for r in REFERENCES]
    found = [compared(table["lesions", e], table["nothing", r], "iou") for e, r in pairs]
    assert all(one.difference > 0.05 for one in found)
    assert (holm([one.p for one in found]) < ALPHA).all()
    best = max(mean(table["nothing", r], "hit_rate") for r in REFERENCES)
    for name in EXPLAINERS:
        assert mean(table["lesions", name], "hit_rate") > max(0.9, 1.5 * best), name
        assert mean(table["lesions", name], "pixel_auroc") > 0.9, name


def test_where_a_marker_is_read_localisation_collapses(
    table: dict[tuple[str, str], Rows],
) -> None:
    signs = {"iou": 1, "hit_rate": 1, "mass_accuracy": 1, "outside_lungs": -1}
    keys = [
        (name, metric)
        for name in EXPLAINERS
        for metric in signs
        if name != "rise" or metric in ("iou", "hit_rate")
    ]
    found = [compared(table["lesions", e], table["marker", e], metric) for e, metric in keys]
    for (name, metric), p, one in zip(keys, holm([one.p for one in found]), found, strict=True):
        assert p < ALPHA, (name, metric)
        assert one.difference * signs[metric] > 0.2, (name, metric)
    for name in EXPLAINERS:
        assert mean(table["marker", name], "hit_rate") == 0, name
        # No better than superpixels by lot, and far below what looks at no model at all.
        assert mean(table["marker", name], "iou") < 0.1, name
        if name != "rise":
            assert mean(table["marker", name], "outside_lungs") > 0.9, name
    # What RISE's map has everywhere (the mean answer) is most of its mass: shares of it say little.
    rise = [mean(table[gaze, "rise"], "outside_lungs") for gaze in ("lesions", "marker")]
    assert rise == pytest.approx([0.75, 0.75], abs=0.03)
