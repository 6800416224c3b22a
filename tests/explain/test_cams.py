"""Class activation maps against pytorch-grad-cam, on every family of backbones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from nets import FAMILIES, classifier_of
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain import (
    EigenCam,
    GradCam,
    GradCamPlusPlus,
    HiResCam,
    LayerCam,
    ScoreCam,
)
from raybench.explain.cams import Cam
from raybench.models.classifier import Classifier
from raybench.types import Gray, Values

KINDS = {
    GradCam: "GradCAM",
    GradCamPlusPlus: "GradCAMPlusPlus",
    HiResCam: "HiResCAM",
    LayerCam: "LayerCAM",
    EigenCam: "EigenCAM",
    ScoreCam: "ScoreCAM",
}
SIZE = (64, 64)

Reshape = Callable[[torch.Tensor], torch.Tensor]


def tokens(output: torch.Tensor) -> torch.Tensor:
    return output[:, 1:].transpose(1, 2).reshape(len(output), -1, 4, 4)


def channels_last(output: torch.Tensor) -> torch.Tensor:
    return output.permute(0, 3, 1, 2)


RESHAPES: dict[str, Reshape] = {"test_vit": tokens, "swin": channels_last}


def by_library(classifier: Classifier, image: Gray, kind: str, target: int, how: Any) -> Values:
    net = copy.deepcopy(classifier.net).requires_grad_(True)
    layer = net.get_submodule(classifier.cam_layer or "")
    with getattr(pytorch_grad_cam, kind)(net, [layer], reshape_transform=how) as cam:
        return np.asarray(cam(classifier.prepare(image[None]), [ClassifierOutputTarget(target)])[0])


def scaled(values: Values) -> Values:
    low, high = values.min(), values.max()
    assert high > low, "a flat map says nothing"
    return (values - low) / (high - low)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("member", KINDS, ids=lambda m: m.__name__)
def test_maps_are_those_of_pytorch_grad_cam(member: type[Cam], family: str, masked: Gray) -> None:
    classifier, image = classifier_of(family), resize_gray(masked, SIZE)
    if family == "test_convnext":  # its last stage says nothing positive of a picture so small
        classifier.cam_layer = "stages.2"
    compared = 0
    for target in range(3):
        if member in (EigenCam, ScoreCam) and target:
            continue
        theirs = by_library(classifier, image, KINDS[member], target, RESHAPES.get(family))
        if np.ptp(theirs) == 0:
            continue
        ours = member().attribute(classifier, image, target)
        np.testing.assert_allclose(scaled(ours.values), scaled(theirs), rtol=0, atol=1e-5)
        compared += 1
    assert compared


def test_fewer_channels_are_the_strongest_and_ask_less(masked: Gray) -> None:
    classifier, image = classifier_of("test_efficientnet"), resize_gray(masked, SIZE)
    few, all_ = (ScoreCam(n_channels=n).attribute(classifier, image, 0) for n in (5, 2048))
    assert few.n_forward == 6
    assert 6 < all_.n_forward <= ScoreCam().n_forward_planned()
    assert not np.array_equal(few.values, all_.values)


def test_a_class_tokens_last_block_is_refused(masked: Gray) -> None:
    classifier, image = classifier_of("test_vit"), resize_gray(masked, SIZE)
    assert classifier.cam_layer is not None
    block = classifier.cam_layer.removesuffix(".norm1")
    with pytest.raises(ExplainError, match=r"gradient is 0 everywhere in 'blocks.*first norm"):
        GradCam(layer=block).attribute(classifier, image)


def test_eigen_cam_can_be_turned_round(masked: Gray) -> None:
    classifier, image = classifier_of("test_efficientnet"), resize_gray(masked, SIZE)
    plain, turned = (EigenCam(orient=o).attribute(classifier, image, 1) for o in (False, True))
    assert plain.target == turned.target == 1
    assert turned.values.max() >= plain.values.max()
