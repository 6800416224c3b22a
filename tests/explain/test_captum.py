"""Gradients and propagation against captum called directly, and by their own completeness."""

from __future__ import annotations

import copy
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from nets import FAMILIES, classifier_of
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain import (
    DeepLift,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    Lrp,
    Saliency,
    SmoothGrad,
)
from raybench.explain.pixels import PixelAttribution, images_a_pass, watched
from raybench.models.classifier import Classifier
from raybench.types import Gray, Subject, Values

SIZE = (64, 64)


@pytest.fixture(scope="module")
def image(masked: Gray) -> Gray:
    return resize_gray(masked, SIZE)


def assert_near(ours: Values, theirs: torch.Tensor) -> None:
    expected = theirs.detach().numpy()
    peak = np.abs(expected).max()
    assert peak > 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5 * peak)


def direct(classifier: Classifier, image: Gray) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Network, normalised input and black, and grey levels to a unit of normalised input."""
    net = copy.deepcopy(classifier.net)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    inputs, black = (classifier.prepare(i[None]) for i in (image, np.zeros_like(image)))
    return net, inputs, black


def per_grey(classifier: Classifier) -> torch.Tensor:
    white, black = (classifier.prepare(np.full((1, *SIZE), g, np.uint8)) for g in (255, 0))
    return (white - black)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_captums(family: str, image: Gray) -> None:
    classifier = classifier_of(family)
    net, inputs, black = direct(classifier, image)
    unit = per_grey(classifier)

    def ours(explainer: PixelAttribution) -> Values:
        return explainer.attribute(classifier, image, 1).values

    gradient = captum.attr.Saliency(net).attribute(inputs.requires_grad_(), 1, abs=False)
    assert_near(ours(Saliency(absolute=False)), (gradient[0] * unit).sum(0))
    assert_near(ours(Saliency()), (gradient[0] * unit).sum(0).abs())
    grey = torch.from_numpy(image / np.float32(255))
    assert_near(ours(InputXGradient()), (gradient[0] * unit).sum(0) * grey)
    for method in ("gausslegendre", "riemann_middle"):
        path = captum.attr.IntegratedGradients(net).attribute(
            inputs, black, 1, n_steps=8, method=method
        )
        assert_near(ours(IntegratedGradients(n_steps=8, method=method)), path[0].sum(0))


@pytest.mark.parametrize("family", ["vgg16", "densenet121"])
def test_guided_backprop_and_lrp_are_captums(family: str, image: Gray) -> None:
    classifier = classifier_of(family)
    net, inputs, _ = direct(classifier, image)
    guided = captum.attr.GuidedBackprop(net).attribute(inputs.requires_grad_(), 1)
    found = GuidedBackprop(absolute=False).attribute(classifier, image, 1)
    assert_near(found.values, (guided[0] * per_grey(classifier)).sum(0))
    # By the epsilon rule relevance is gradient times input in a network of ReLUs (Ancona 2018).
    inputs = inputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net(inputs)[0, 1], inputs)
    expected = (gradient * inputs)[0].sum(0).detach().numpy()
    relevance = Lrp().attribute(classifier, image, 1).values
    np.testing.assert_allclose(relevance, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


class Plain(nn.Module):
    """What captum has rules for as it stands."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2),
            nn.ReLU(),
            nn.AvgPool2d(4),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Pooled(Plain):
    """The same with a pooling that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.body(x)).flatten(1))


def test_deep_lift_is_captums(image: Gray) -> None:
    classifier = Classifier(Plain().eval(), SIZE)
    net, inputs, black = direct(classifier, image)
    lifted = captum.attr.DeepLift(net.double()).attribute(inputs.double(), black.double(), 1)
    assert_near(DeepLift().attribute(classifier, image, 1).values, lifted[0].sum(0).float())


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha1_beta0"])
def test_lrp_is_captums(rule: Any, image: Gray) -> None:
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule

    classifier = Classifier(Pooled().eval(), SIZE)
    net, inputs, _ = direct(classifier, image)
    kinds = {"epsilon": EpsilonRule, "gamma": GammaRule, "alpha1_beta0": Alpha1_Beta0_Rule}
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.rule = kinds[rule]()
    theirs = captum.attr.LRP(net).attribute(inputs, 1)
    assert_near(Lrp(rule=rule).attribute(classifier, image, 1).values, theirs[0].sum(0))


@pytest.mark.parametrize("family", ["vgg16", "densenet121", "tf_efficientnet_lite0", "test_resnet"])
def test_contributions_add_up(family: str, image: Gray) -> None:
    classifier = classifier_of(family)
    logits = classifier.net(classifier.prepare(np.stack([image, np.zeros_like(image)])))[:, 1]
    difference = float((logits[0] - logits[1]).detach())
    lifted = DeepLift().attribute(classifier, image, 1).values.sum()
    assert lifted == pytest.approx(difference, rel=1e-3)
    if family == "densenet121":
        path = IntegratedGradients(n_steps=50).attribute(classifier, image, 1).values.sum()
        assert path == pytest.approx(difference, rel=0.02)


def test_smooth_grad_is_captums_and_leaves_the_generator_alone(image: Gray) -> None:
    classifier = classifier_of("test_efficientnet")
    net, inputs, _ = direct(classifier, image)
    unit = per_grey(classifier)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours = SmoothGrad(n_samples=6, noise=0.2, seed=3, absolute=False)
    found = ours.attribute(classifier, image, 1).values
    assert torch.equal(torch.get_rng_state(), before)

    def of_grey(grey: torch.Tensor) -> torch.Tensor:
        return net(inputs * 0 + unit * grey + classifier.prepare(np.zeros((1, *SIZE), np.uint8)))

    torch.manual_seed(3)
    grey = torch.from_numpy(image / np.float32(255))[None, None].requires_grad_()
    theirs = captum.attr.NoiseTunnel(captum.attr.Saliency(of_grey)).attribute(
        grey, nt_samples=6, stdevs=0.2, target=1, abs=False
    )
    assert_near(found, theirs[0, 0])
    classifier._batch_size = 2
    assert_near(ours.attribute(classifier, image, 1).values, torch.from_numpy(found))


def test_blur_and_sign_ask_the_same_question(image: Gray) -> None:
    asked = Subject("a", image, None, SIZE, 1)
    units = [
        e.plan(asked, {})[0].question
        for e in (Saliency(), Saliency(absolute=False, blur=0.1, threshold=0.2, label="other"))
    ]
    assert units[0] == units[1] != SmoothGrad().plan(asked, {})[0].question
    done = {"pixels": {"map": np.eye(64, dtype=np.float32) - 0.5, "target": np.ones((64, 1))}}
    sharp, smooth = (Saliency(absolute=False, blur=b).merge(asked, done).values for b in (0, 0.05))
    assert np.ptp(smooth) < np.ptp(sharp)
    assert Saliency().merge(asked, done).values.min() == 0.5


def test_settings_without_effect_are_no_part_of_the_question(image: Gray) -> None:
    def question(explainer: PixelAttribution) -> Any:
        return explainer.plan(Subject("a", image, None, SIZE, 1), {})[0].question

    for member in (IntegratedGradients, DeepLift):
        assert question(member(baseline_blur=0.3)) == question(member())
        blurred = [question(member(baseline="blurred", baseline_blur=b)) for b in (0.1, 0.3)]
        assert len({*blurred, question(member())}) == 3
    assert question(Lrp(gamma=3)) == question(Lrp())
    assert question(Lrp(rule="gamma", epsilon=0.1)) == question(Lrp(rule="gamma"))
    assert question(Lrp(rule="alpha1_beta0", epsilon=0.1, gamma=3)) == question(
        Lrp(rule="alpha1_beta0")
    )
    kinds = [Lrp(rule="gamma", gamma=3), Lrp(rule="gamma"), Lrp(epsilon=0.1), Lrp()]
    assert len({question(lrp) for lrp in [*kinds, Lrp(rule="alpha1_beta0")]}) == 5


@pytest.mark.parametrize("family", ["test_efficientnet", "test_vit", "densenet121"])
def test_gradients_in_small_batches_are_those_in_large_ones(
    family: str, image: Gray, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, sizes = classifier_of(family), []
    handle = classifier.net.register_forward_hook(lambda m, x, y: sizes.append(len(y)))
    _, n_bytes = watched(classifier.net, classifier.prepare(image[None]))
    for explainer in (IntegratedGradients(n_steps=12), SmoothGrad(n_samples=12)):
        found, most = [], []
        for room in (10**12, 3 * n_bytes):
            monkeypatch.setattr("raybench.explain.pixels._KEPT", room)
            sizes.clear()
            found.append(explainer.attribute(classifier, image, 1).values)
            most.append(max(sizes))
            classifier._batch_size = 2 if len(found) == 1 else 32  # plays no part
        assert 2 <= most[1] <= 4 < most[0]
        peak = np.abs(found[0]).max()
        np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-6 * peak)
    handle.remove()


def test_what_a_pass_keeps_is_counted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GELU(), nn.GELU()).requires_grad_(False)
    logits, n_bytes = watched(net, torch.zeros(1, 3, 16, 16))
    assert not logits.requires_grad
    # What goes into the convolution and into each GELU; weights are there anyway.
    assert n_bytes == (3 + 8 + 8) * 16 * 16 * 4
    model = Classifier(net, (16, 16))
    assert [images_a_pass(n, model) for n in (0, 2**26, 2**40)] == [8, 4, 1]


class Twice(nn.Module):
    """Uses one activation in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.second(self.act(self.first(x)))).mean((2, 3))


def test_a_module_used_twice_is_refused(image: Gray) -> None:
    with pytest.raises(ExplainError, match=r"deep_lift: .*uses act more than once.*choose integ"):
        DeepLift().attribute(Classifier(Twice().eval(), SIZE), image)
