"""Grad-CAM against pytorch-grad-cam, on networks trained or frozen, and nothing left behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError, ModelError
from raybench.explain import GradCam
from raybench.explain.given import untouched
from raybench.models.classifier import Classifier
from raybench.types import Gray, Values

MakeClassifier = Callable[..., Classifier]


def by_library(classifier: Classifier, image: Gray, layer: str, target: int | None) -> Values:
    net = copy.deepcopy(classifier.net).requires_grad_(True)
    targets = None if target is None else [ClassifierOutputTarget(target)]
    with GradCAM(model=net, target_layers=[net.get_submodule(layer)]) as cam:
        return cam(classifier.prepare(image[None]), targets)[0]


def scaled(values: Values) -> Values:
    low, high = values.min(), values.max()
    assert high > low, "a flat map says nothing"
    return (values - low) / (high - low)


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("test_efficientnet", "blocks.2"),
        ("test_resnet", "layer2"),
        ("test_convnext", "stages.2.blocks.0.conv_dw"),
    ],
)
@pytest.mark.parametrize("size", [(96, 96), (64, 128)])
@pytest.mark.parametrize("target", [None, 0, 2])
def test_map_is_that_of_pytorch_grad_cam(
    make_classifier: MakeClassifier,
    masked: Gray,
    name: str,
    inner: str,
    size: tuple[int, int],
    target: int | None,
) -> None:
    classifier = make_classifier(name, size)
    image = resize_gray(masked, size)
    assert classifier.cam_layer is not None
    for setting, layer in ((None, classifier.cam_layer), (inner, inner)):
        theirs = by_library(classifier, image, layer, target)
        if not theirs.any():
            assert target is not None, "the predicted class has evidence somewhere"
            continue
        ours = GradCam(layer=setting).attribute(classifier, image, target)
        np.testing.assert_allclose(scaled(ours.values), scaled(theirs), atol=1e-6)
        predicted = int(classifier.predict(image[None])[0].argmax())
        assert ours.target == (predicted if target is None else target)


def test_a_frozen_network_gives_the_same_map(make_classifier: MakeClassifier, masked: Gray) -> None:
    classifier = make_classifier()
    before = GradCam().attribute(classifier, masked)
    classifier.net.requires_grad_(False)
    after = GradCam().attribute(classifier, masked)
    assert before.values.max() > 0
    np.testing.assert_array_equal(before.values, after.values)
    assert not any(p.requires_grad for p in classifier.net.parameters())


@pytest.mark.parametrize(
    ("layer", "valid"), [("blocks.9", "0, 1, 2, 3, 4"), ("blocs.4", "conv_stem, bn1, blocks")]
)
def test_an_unknown_layer_is_refused_with_the_valid_ones(
    make_classifier: MakeClassifier, masked: Gray, layer: str, valid: str
) -> None:
    with pytest.raises(ModelError, match=valid) as caught:
        GradCam(layer=layer).attribute(make_classifier(), masked)
    assert repr(layer) in str(caught.value)


class Odd(nn.Module):
    """A network with a layer that nothing uses, and one that no gradient comes back to."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first, self.unused, self.body = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x + self.first(x).detach())


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("unused", "no gradient reaches 'unused'"),
        ("first", "no gradient reaches 'first'"),
        ("body.classifier", r"expected feature maps \[N, C, h, w\] from 'body.classifier'"),
        (None, "name the layer"),
    ],
)
def test_layers_that_cannot_be_explained_are_named(
    make_classifier: MakeClassifier, masked: Gray, layer: str | None, said: str
) -> None:
    net = Odd(make_classifier().net)
    with pytest.raises(ExplainError, match=said):
        GradCam(layer=layer).attribute(net, masked)
    assert not any(module._forward_hooks for module in net.modules())


def test_no_tensor_outlives_the_call(make_classifier: MakeClassifier, masked: Gray) -> None:
    classifier = make_classifier()

    def alive() -> int:
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    GradCam().attribute(classifier, masked)
    before = alive()
    for _ in range(3):
        GradCam().attribute(classifier, masked)
    assert alive() == before


def test_untouched_gives_everything_back_after_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).eval(), nn.Dropout())
    first, second = net[0].weight, net[0].bias
    second.requires_grad_(False)
    first.grad = given = torch.ones_like(first)

    def meddle() -> None:
        with untouched(net):
            assert not any(module.training for module in net.modules())
            assert not any(parameter.requires_grad for parameter in net.parameters())
            net.requires_grad_(True).zero_grad()
            raise KeyError("on purpose")

    with pytest.raises(KeyError):
        meddle()
    assert [module.training for module in net.modules()] == [True, True, False, True]
    assert (first.requires_grad, second.requires_grad) == (True, False)
    assert first.grad is given
    assert second.grad is None


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_maps_in_batches_are_those_of_one_image_at_a_time(
    make_classifier: MakeClassifier, masked: Gray, name: str, batch_size: int
) -> None:
    classifier = make_classifier(name)
    classifier._batch_size = batch_size
    images = [masked, masked[:, ::-1].copy(), resize_gray(masked, (96, 80)), masked // 2, masked]
    targets = [None, 0, 1, 2, 2]
    together = GradCam().attribute_many(classifier, images, targets)
    apart = [
        GradCam().attribute(classifier, image, target)
        for image, target in zip(images, targets, strict=True)
    ]
    assert len(together) == len(images)
    for image, ours, single in zip(images, together, apart, strict=True):
        assert ours.values.shape == image.shape
        assert (ours.target, ours.n_forward) == (single.target, 1)
        # Rounding grows with what is rounded, and the order of a sum is the processor's: on one of
        # them ConvNeXt's maps came out 9 units of float32's last place at 1 apart.
        peak = max(1.0, float(single.values.max()))
        rounding = 32 * np.finfo(np.float32).eps * peak
        np.testing.assert_allclose(ours.values, single.values, rtol=0, atol=rounding)
    assert sum(bool(one.values.any()) for one in apart) >= 3
    assert not np.allclose(together[3].values, together[4].values, rtol=0, atol=1e-6)


def test_a_batch_is_one_pass(make_classifier: MakeClassifier, masked: Gray) -> None:
    classifier, seen = make_classifier(), []
    handle = classifier.net.register_forward_hook(lambda m, x, y: seen.append(len(y)))
    GradCam().attribute_many(classifier, [masked] * 20)
    handle.remove()
    assert seen == [16, 4]


def test_lists_that_do_not_match_are_refused(make_classifier: MakeClassifier, masked: Gray) -> None:
    with pytest.raises(ExplainError, match=r"as many targets and lung masks as images \(2\)"):
        GradCam().attribute_many(make_classifier(), [masked] * 2, [0])
    assert GradCam().attribute_many(make_classifier(), []) == []
