"""Ensembles against the mean of their members' answers. About 6 seconds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from runtime_nets import Tiny
from torch import nn
from torch.nn import functional

from raybench.data.phantom import Phantom
from raybench.errors import ModelError
from raybench.explain import GradCam, Lime, Rise
from raybench.explain.neighbours import distances
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, card_of, join, load_checkpoint, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.models.ensemble import Ensemble, Member
from raybench.models.runtime import Runtime

CLASSES = ("COVID-19", "Non-COVID", "Normal")
ALIKE = {"lung_masking": True, "clahe": False}


def checkpoint(name: str, size: int, seed: int, **changes: object) -> bytes:
    """A network whose answers move."""
    torch.manual_seed(seed)
    net = build(name, 3).train()
    with torch.no_grad():
        net(torch.randn(8, 3, size, size))
        net.get_classifier().weight.mul_(20)
    card = Card(name, CLASSES, (size, size), ALIKE, {"val_accuracy": 0.5})
    return save_checkpoint(net.eval(), dataclasses.replace(card, **changes))


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    """Two architectures, input sizes, means and deviations."""
    facts = [backbone(n) for n in ("test_efficientnet", "test_vit")]
    assert facts[0].mean != facts[1].mean
    assert facts[0].std != facts[1].std
    return {
        "t0001": checkpoint("test_efficientnet", 64, 0),
        "t0004": checkpoint("test_vit", 160, 1),
        "t0002": checkpoint("test_resnet", 80, 2),
    }


def grown_images(n: int, size: int) -> NDArray[np.uint8]:
    """Images at 320 whose means over areas are whole grey levels at 160, 80 and 64 (5 x 5)."""
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 256, (n, 16, 16), dtype=np.uint8)
        .repeat(size // 16, 1)
        .repeat(size // 16, 2)
    )


def mean_of(members: dict[str, bytes], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    answers = [Classifier.from_checkpoint(data).predict(images) for data in members.values()]
    return np.mean(answers, axis=0, dtype=np.float64)


def test_it_answers_with_the_mean_of_its_members(members: dict[str, bytes]) -> None:
    images = grown_images(6, 160)
    ensemble = Classifier.from_checkpoint(join(members))
    assert ensemble.input_size == (160, 160)
    assert ensemble.classes == CLASSES
    expected = mean_of(members, images)
    assert np.ptp(expected, axis=0).max() > 0.05, "the answers should differ"
    np.testing.assert_allclose(ensemble.predict(images), expected, atol=1e-6)
    # Of any image the members alone would see whole grey levels, and the ensemble's do not.
    any_images = np.random.default_rng(1).integers(0, 256, (6, 160, 160), dtype=np.uint8)
    np.testing.assert_allclose(
        ensemble.predict(any_images), mean_of(members, any_images), atol=5e-3
    )


def test_members_see_averaged_areas_normalised_as_they_were_trained(
    members: dict[str, bytes],
) -> None:
    net, card = load_checkpoint(join(members))
    assert isinstance(net, Ensemble)
    assert not net.training
    assert list(card.members) == list(members)
    batch = torch.rand(2, 3, 160, 160)
    for member, (trial, own) in zip(net, card.members.items(), strict=True):
        facts = backbone(own.backbone)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (facts.mean, facts.std))
        small = functional.adaptive_avg_pool2d(batch, own.input_size)
        if 160 % own.input_size[0] == 0:  # torch's bins overlap where the sides do not divide
            torch.testing.assert_close(member.inputs(batch), (small - mean) / std, msg=trial)
        alone, _ = load_checkpoint(members[trial])
        with torch.no_grad():
            logits = alone(member.inputs(batch))
            torch.testing.assert_close(member(batch), logits, atol=1e-5, rtol=1e-5)


def test_twice_the_same_is_the_same(members: dict[str, bytes]) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    data = members["t0001"]
    both = Classifier.from_checkpoint(join({"a": data, "b": data})).predict(images)
    np.testing.assert_allclose(both, Classifier.from_checkpoint(data).predict(images), atol=1e-6)


def test_no_probability_is_too_small_for_a_logarithm() -> None:
    class Sure(nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 300.0, -300.0]]).expand(len(batch), -1)

    size = (4, 4)
    parts = [Member(Sure(), size, size, (0.0,) * 3, (1.0,) * 3) for _ in range(2)]
    found = Ensemble(parts)(torch.rand(2, 3, 4, 4))
    assert torch.isfinite(found).all()
    assert found.softmax(1).tolist() == [[0, 1, 0]] * 2


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_members_give_equal_bytes(members: dict[str, bytes], seed: int) -> None:
    torch.manual_seed(seed)
    assert join(members) == join(dict(members))
    card = card_of(join(members))
    assert (card.kind, card.backbone, card.preprocess) == ("ensemble", "ensemble", ALIKE)
    assert [c.kind for c in card.members.values()] == ["classifier"] * 3
    assert card.members["t0004"] == card_of(members["t0004"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"preprocess": {"lung_masking": True, "clahe": True}},
            r"preprocess.clahe is False of t0001 \(test_efficientnet\)/t0004 \(test_vit\)/"
            r"t0002 \(test_resnet\), True of odd",
        ),
        ({"preprocess": {"lung_masking": True}}, "preprocess.clahe is False of .*, None of odd"),
        (
            {"classes": ("COVID-19", "Normal", "Non-COVID")},
            r"classes is \[.*t0002 \(test_resnet\), \[.* of odd",
        ),
    ],
    ids=["preprocess", "lacking", "classes"],
)
def test_members_that_do_not_answer_alike_are_refused(
    members: dict[str, bytes], changes: dict[str, object], said: str
) -> None:
    odd = checkpoint("test_resnet", 64, 0, **changes)
    with pytest.raises(ModelError, match=said):
        join({**members, "odd": odd})


def test_settings_that_change_no_image_keep_no_members_apart(members: dict[str, bytes]) -> None:
    other = checkpoint("test_resnet", 64, 0, preprocess=ALIKE | {"clahe_clip": 3.0})
    joined = join({"t0001": members["t0001"], "other": other})
    assert list(card_of(joined).members) == ["t0001", "other"]
    lifted = {"preprocess": {"lung_masking": True, "clahe": True}}
    first = checkpoint("test_resnet", 64, 0, **lifted)
    lifted["preprocess"] |= {"clahe_clip": 3.0}
    with pytest.raises(ModelError, match=r"clahe_clip is None of first .*, 3\.0 of second"):
        join({"first": first, "second": checkpoint("test_resnet", 64, 0, **lifted)})


def test_one_member_or_an_ensemble_as_one_is_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(ModelError, match="two members at least, found t0001"):
        join({"t0001": members["t0001"]})
    with pytest.raises(ModelError, match="single classifiers, both is an ensemble"):
        join({**members, "both": join(members)})


def test_a_member_that_does_not_fit_is_named(members: dict[str, bytes]) -> None:
    wrong = checkpoint("test_resnet", 64, 0, backbone="test_efficientnet")
    with pytest.raises(ModelError, match=r"e\.safetensors, odd: .* test_efficientnet .*missing"):
        load_checkpoint(join({**members, "odd": wrong}), "e.safetensors")


@pytest.mark.parametrize(
    ("runtime", "tolerance"),
    [
        (Runtime("auto"), 2e-6),
        (Runtime("folded"), 2e-6),
        (Runtime("torch", "bfloat16"), 0.02),
    ],
    ids=["auto", "folded", "bfloat16"],
)
def test_every_backend_runs_it(
    members: dict[str, bytes], runtime: Runtime, tolerance: float
) -> None:
    images = grown_images(3, 160)
    ensemble = Classifier.from_checkpoint(join(members), runtime=runtime)
    if runtime.backend in ("auto", "folded"):  # the transformer has nothing to fold
        assert ensemble.runtime.backend == "folded"
    np.testing.assert_allclose(ensemble.predict(images), mean_of(members, images), atol=tolerance)


def test_openvino_runs_it() -> None:
    pytest.importorskip("openvino")
    shape, size = (64, 48), (32, 24)
    pair = [
        Member(Tiny(), shape, size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        Member(Tiny(), shape, shape, (0.0,) * 3, (1.0,) * 3),
    ]
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    found = [
        Classifier(Ensemble(pair), shape, (0.0,) * 3, (1.0,) * 3, runtime=Runtime(backend)).predict(
            images
        )
        for backend in ("openvino", "torch")
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_features_are_near_where_the_members_find_them_near_on_average(
    members: dict[str, bytes],
) -> None:
    images = grown_images(4, 160)
    features = Classifier.from_checkpoint(join(members)).embed(images)
    alone = [Classifier.from_checkpoint(data).embed(images) for data in members.values()]
    assert features.shape == (4, sum(f.shape[1] for f in alone))
    expected = np.mean([distances(f[1:], f[:1]) for f in alone], axis=0)
    np.testing.assert_allclose(distances(features[1:], features[:1]), expected, atol=1e-6)


def test_what_asks_for_answers_explains_it_and_what_looks_inside_says_it_does(
    members: dict[str, bytes],
) -> None:
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=64)
    image = data.load(data.records()[0]).image
    ensemble = Classifier.from_checkpoint(join(dict(list(members.items())[::2])))
    for explainer in (Lime(n_samples=30, superpixels="grid"), Rise(n_masks=20)):
        found = explainer.attribute(ensemble, image)
        assert np.ptp(found.values) > 0
        assert not explainer.looks_inside
    assert GradCam.looks_inside
