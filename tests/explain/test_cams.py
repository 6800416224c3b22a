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
from torch import nn

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
from raybench.types import Gray, Question, Subject, Values

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
        classifier.cam_layer = "stages.2.blocks.1"
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


class Weighed(nn.Module):
    """Channels that are all the image, by weights."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__()
        self.layer, self.weights = nn.Identity(), nn.Parameter(torch.tensor(weights))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.layer(x[:, :1] * self.weights[:, None, None])
        return torch.stack([seen.mean((1, 2, 3)), seen.amax((1, 2, 3))], dim=1)


def test_eigen_cam_can_be_turned_round() -> None:
    """What the decomposition gives is turned round where its negative part is the stronger."""
    same = []
    for side, larger in ((16, True), (60, False)):
        image = np.zeros(SIZE, np.uint8)
        image[:side, :side] = 255
        model = Classifier(Weighed((1.0, 2.0)).eval(), SIZE, cam_layer="layer")
        plain, turned = (
            EigenCam(orient=o).attribute(model, image, 1).values for o in (False, True)
        )
        # About its mean the component is far from 0 on the smaller part: that is to be positive.
        assert turned[(image > 0) == larger].min() > 2 * turned[(image > 0) != larger].max() >= 0
        assert turned.max() >= plain.max() > 0
        same.append(np.array_equal(plain, turned))
    assert not all(same), "nothing had to be turned: the test could not fail"


def question(explainer: Cam, target: int | None) -> Question | None:
    picture = np.zeros(SIZE, np.uint8)
    return explainer.plan(Subject("a", picture, None, SIZE, target), {})[0].question


def test_where_no_class_enters_the_answer_none_enters_the_question(masked: Gray) -> None:
    for cam in (EigenCam(), EigenCam(orient=True), ScoreCam(), ScoreCam(layer="blocks.2")):
        assert question(cam, None) == question(cam, 0) == question(cam, 2)
    asked = [EigenCam(), EigenCam(orient=True), EigenCam(layer="blocks.2"), ScoreCam()]
    asked += [ScoreCam(layer="blocks.2"), GradCam(), LayerCam(), GradCam(layer="blocks.2")]
    assert len({question(cam, 1) for cam in asked}) == len(asked)
    assert len({question(GradCam(), target) for target in (None, 0, 1)}) == 3
    classifier, image = classifier_of("test_efficientnet"), resize_gray(masked, SIZE)
    for cam in (EigenCam(), ScoreCam(n_channels=8)):
        maps = [cam.attribute(classifier, image, target) for target in (0, 2, None)]
        assert [m.target for m in maps[:2]] == [0, 2]
        assert maps[2].target == int(classifier.predict(image[None])[0].argmax())
