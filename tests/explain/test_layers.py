"""Which layer is read, in which layout, and what is refused with which advice."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam
import torch
from nets import classifier_of
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.models.hiera import Hiera
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError, ModelError
from raybench.explain import GradCam, HiResCam, LayerCam
from raybench.explain.base import Explainer
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.classifier import Classifier
from raybench.models.features import cam_layer, feature_maps
from raybench.types import Gray, Values

SIZE = (64, 64)


@pytest.fixture(scope="module")
def image(masked: Gray) -> Gray:
    return resize_gray(masked, SIZE)


def by_library(
    classifier: Classifier, image: Gray, layer: str, how: Any, kind: str = "GradCAM"
) -> Values:
    net = copy.deepcopy(classifier.net).requires_grad_(True)
    with getattr(pytorch_grad_cam, kind)(net, [net.get_submodule(layer)], how) as cam:
        return np.asarray(cam(classifier.prepare(image[None]), [ClassifierOutputTarget(1)])[0])


def assert_alike(ours: Values, theirs: Values) -> None:
    assert np.ptp(ours) > 0
    scaled = (ours - ours.min()) / np.ptp(ours)
    np.testing.assert_allclose(scaled, theirs, rtol=0, atol=1e-5)


# Layouts


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (80, 64)])
@pytest.mark.parametrize(
    ("inner", "last"),
    [
        ("blocks.1.mlp", True),
        ("blocks.1.mlp.act", True),
        ("blocks.1.mlp.fc2", True),
        ("blocks.1.norm", True),
        ("blocks.1.conv_dw", False),
        ("blocks.1", False),
        ("downsample.0", False),
    ],
)
def test_layers_inside_a_convnext_are_read_in_their_own_layout(
    inner: str, last: bool, size: tuple[int, int], masked: Gray
) -> None:
    classifier, layer = classifier_of("test_convnext", size), f"stages.2.{inner}"
    picture = resize_gray(masked, size)
    theirs = by_library(
        classifier, picture, layer, (lambda y: y.permute(0, 3, 1, 2)) if last else None
    )
    if np.ptp(theirs) > 0:
        assert_alike(GradCam(layer=layer).attribute(classifier, picture, 1).values, theirs)
    shape = (2, 5, *size) if not last else (2, *size, 5)
    found = feature_maps(classifier.net, layer, size)(torch.zeros(shape))
    assert found.shape == (2, 5, *size)


class Both(nn.Module):
    """As many channels as rows and columns, and layers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential()
        self.body.append(nn.Sequential())
        self.body[0].conv = nn.Conv2d(3, 4, 16, 16)
        self.body[0].linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


def test_a_layout_that_cannot_be_told_is_refused(image: Gray) -> None:
    with pytest.raises(ExplainError, match=r"'body.0' gives .1, 4, 4, 4., .* name 'body.0.conv'"):
        GradCam(layer="body.0").attribute(Both().eval(), image, 1)
    GradCam(layer="body.0.conv").attribute(Both().eval(), image, 1)


# What is read


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_vit", "blocks.5.norm1"),
        ("deit_tiny_distilled_patch16_224", "blocks.11.norm1"),
        ("test_vit2", "blocks.7"),
        ("test_vit3", "norm"),
        ("vit_base_patch16_gap_224", "norm"),
        ("cait_xxs24_224", "blocks.23"),
        ("xcit_nano_12_p16_224", "blocks.11"),
        ("maxvit_pico_rw_256", "norm"),
        ("coatnet_pico_rw_224", "norm"),
        ("swinv2_tiny_window8_256", "norm"),
        ("mixer_s16_224", "norm"),
        ("efficientformer_l1", "norm"),
        ("levit_128s", "stages.2"),
        ("hiera_tiny_224", "blocks.11"),
        ("convnext_tiny", "stages.3"),
    ],
)
def test_the_layer_that_is_read(name: str, layer: str) -> None:
    assert backbone(name).cam_layer == layer


def vit(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3, **settings
    )
    with torch.no_grad():
        net.head.weight.normal_()
    return net.eval()


def rows(output: torch.Tensor) -> torch.Tensor:
    return output.transpose(1, 2).reshape(len(output), -1, 4, 4)


@pytest.mark.parametrize("pool", ["avg", "map"])
def test_a_vit_that_pools_its_patches_is_read_behind_its_norm(pool: str, image: Gray) -> None:
    net = vit(class_token=False, global_pool=pool, fc_norm=False)
    assert cam_layer(net, "blocks.1") == "norm"
    classifier = Classifier(net, SIZE, cam_layer="norm")
    for member, kind in ((GradCam, "GradCAM"), (HiResCam, "HiResCAM")):
        found = member().attribute(classifier, image, 1).values
        assert_alike(found, by_library(classifier, image, "norm", rows, kind))
    # Before the norm gradient times activation adds up to 0 at every place, whatever the map.
    with pytest.raises(ExplainError, match=r"adds up to 0 at every place of 'blocks.1'.*'norm'"):
        HiResCam(layer="blocks.1").attribute(classifier, image, 1)
    assert np.ptp(GradCam(layer="blocks.1").attribute(classifier, image, 1).values) > 0


def test_a_norm_behind_the_layer_is_named_for_a_convnet_too(image: Gray) -> None:
    classifier = classifier_of("test_convnext")
    with pytest.raises(ExplainError, match=r"adds up to 0 at every place of 'stages\.2'"):
        HiResCam(layer="stages.2").attribute(classifier, image, 1)
    found = HiResCam(layer="stages.3.downsample.0").attribute(classifier, image, 1)
    assert_alike(
        found.values, by_library(classifier, image, "stages.3.downsample.0", None, "HiResCAM")
    )


def test_tokens_of_a_mixer_lie_row_by_row(image: Gray) -> None:
    torch.manual_seed(0)
    net = MlpMixer(img_size=64, patch_size=16, num_blocks=2, embed_dim=16, num_classes=3).eval()
    nn.init.normal_(net.head.weight)
    classifier = Classifier(net, SIZE, cam_layer=cam_layer(net, "blocks.1"))
    for member, kind in ((GradCam, "GradCAM"), (HiResCam, "HiResCAM"), (LayerCam, "LayerCAM")):
        found = member().attribute(classifier, image, 1).values
        assert_alike(found, by_library(classifier, image, "norm", rows, kind))


def test_hieras_tokens_are_read_where_they_lie_row_by_row(image: Gray) -> None:
    torch.manual_seed(0)
    net = Hiera(
        img_size=(128, 128), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), num_classes=3
    ).eval()
    nn.init.normal_(net.head.fc.weight)
    classifier = Classifier(net, (128, 128), cam_layer="blocks.3")
    assert np.ptp(GradCam().attribute(classifier, image, 1).values) > 0
    tokens = torch.randn(2, 16, 64)
    ours = feature_maps(net, "blocks.3", (128, 128))(tokens)
    torch.testing.assert_close(ours, net.reroll(tokens, 3).permute(0, 3, 1, 2))
    with pytest.raises(ExplainError, match=r"'blocks.0' come window by window.*last stage"):
        GradCam(layer="blocks.0").attribute(classifier, image, 1)


@pytest.mark.parametrize(("name", "n_tokens"), [("levit_128s", 16), ("efficientformer_l1", 49)])
def test_tokens_are_laid_out_by_the_stages_strides(name: str, n_tokens: int) -> None:
    import timm

    with torch.device("meta"):
        net = timm.create_model(name, num_classes=3)
    side = int(n_tokens**0.5)
    tokens = torch.arange(n_tokens * 2.0).reshape(1, n_tokens, 2)
    found = feature_maps(net, backbone(name).cam_layer, (224, 224))(tokens)
    torch.testing.assert_close(found[0, 0], torch.arange(0, 2.0 * n_tokens, 2).reshape(side, side))
    with pytest.raises(ModelError, match="all patches row by row"):
        feature_maps(net, backbone(name).cam_layer, (224, 224))(torch.zeros(1, n_tokens + 3, 2))


# What is refused


class Dead(nn.Module):
    """Says nothing of a black image: no unit of its layer is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 5), nn.Linear(4, 3)
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.constant_(self.layer.bias, -0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.layer(x)).mean((2, 3)))


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1, 0, 1)])
def test_an_image_without_gradient_is_refused_in_a_batch_as_alone(
    order: tuple[int, ...], image: Gray
) -> None:
    torch.manual_seed(0)
    model = Classifier(Dead().eval(), SIZE, (0, 0, 0), (1, 1, 1), cam_layer="layer")
    pictures = [np.zeros_like(image), np.full_like(image, 200)]
    with pytest.raises(ExplainError, match="gradient is 0 everywhere in 'layer'") as alone:
        GradCam().attribute(model, pictures[0], 1)
    GradCam().attribute(model, pictures[1], 1)
    with pytest.raises(ExplainError) as together:
        GradCam().attribute_many(model, [pictures[n] for n in order], [1] * len(order))
    assert str(together.value) == str(alone.value)


class Pair(nn.Module):
    """A layer of two outputs, and windows that stand for images of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.windows = nn.Conv2d(3, 3, 8, 8), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.windows(self.conv(x).unfold(3, 4, 4).permute(0, 3, 1, 2, 4).flatten(0, 1))
        return y.reshape(len(x), -1, 3, 8, 4).mean((1, 3, 4))


class Twofold(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.two = Halves()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.two(self.conv(x))
        return first.mean((2, 3)) + second.mean((2, 3))


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x.relu()


@pytest.mark.parametrize(
    ("net", "layer", "said"),
    [
        (Twofold, "two", r"that gives a single tensor \(here `layer: conv` does\); net.named_mod"),
        (Pair, "windows", "gives 2 feature maps for 1 images"),
    ],
)
def test_layers_that_are_no_feature_maps_are_refused(
    net: type[nn.Module], layer: str, said: str, image: Gray
) -> None:
    made = net().eval()
    explainer: Explainer = GradCam(layer=layer)
    with pytest.raises(ExplainError, match=said):
        explainer.attribute(Classifier(made, SIZE), image, 1)
    assert not any(module._forward_hooks for module in made.modules())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("pit_ti_224", "transformers.2.pool.conv"),
        ("crossvit_tiny_240", "patch_embed.1.proj"),
        ("tnt_s_patch16_224", "blocks.11.norm_out"),
        ("coat_tiny", "patch_embed4"),
    ],
)
def test_networks_without_a_layer_for_maps_are_told_one_that_works(
    name: str, layer: str, image: Gray
) -> None:
    torch.manual_seed(0)
    size = backbone(name).input_size
    model = Classifier(build(name, 2).eval(), size, cam_layer=backbone(name).cam_layer)
    with pytest.raises(ExplainError, match=f"here `layer: {layer}` does"):
        GradCam().attribute(model, image, 1)
    assert not any(module._forward_hooks for module in model.net.modules())
    assert all(p.requires_grad and p.grad is None for p in model.net.parameters())
    found = GradCam(layer=layer).attribute(model, image, 1)
    assert np.isfinite(found.values).all()
