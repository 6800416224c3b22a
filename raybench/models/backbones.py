"""The table of backbones: what raybench has to know of each, and how to derive it for any other.

A row says what timm does not: where the "partial" phase of fine-tuning begins and which layer
Grad-CAM reads. Input size, mean and deviation come from timm's record of the weights.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache

import timm
import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.features import cam_layer


@dataclass(frozen=True, slots=True)
class _Row:
    timm_name: str
    cam_layer: str
    partial_from: str


# The study's four carry the tag of the weights that it started from (PROTOCOL.md 3: torchvision's
# for VGG and DenseNet, fb_in1k for ConvNeXt). "Partial" is the last stage or dense block and all
# after it; for VGG16 the last block of three convolutions, for a ViT the last quarter of its
# blocks. The report is silent on it: ours.
_TABLE: dict[str, _Row] = {
    "vgg16": _Row("vgg16.tv_in1k", "features.30", "features.24"),
    "densenet121": _Row("densenet121.tv_in1k", "features.norm5", "features.denseblock4"),
    "densenet201": _Row("densenet201.tv_in1k", "features.norm5", "features.denseblock4"),
    "convnext_base": _Row("convnext_base.fb_in1k", "stages.3", "stages.3"),
    "tf_efficientnet_lite0": _Row("tf_efficientnet_lite0.in1k", "blocks.6", "blocks.5"),
    "resnet50": _Row("resnet50.a1_in1k", "layer4", "layer4"),
    "efficientnet_b0": _Row("efficientnet_b0.ra_in1k", "blocks.6", "blocks.5"),
    "swin_tiny_patch4_window7_224": _Row(
        "swin_tiny_patch4_window7_224.ms_in1k", "norm", "layers.3"
    ),
    "vit_small_patch16_224": _Row(
        "vit_small_patch16_224.augreg_in21k_ft_in1k", "blocks.11.norm1", "blocks.9"
    ),
    "test_efficientnet": _Row("test_efficientnet.r160_in1k", "blocks.4", "blocks.4"),
    "test_resnet": _Row("test_resnet.r160_in1k", "layer4", "layer4"),
}

_MOST_STAGES = 8


@dataclass(frozen=True, slots=True)
class Backbone:
    """Facts of one backbone.

    Attributes:
        name: as the sweep file has it.
        timm_name: timm's name with the tag of its weights.
        input_size: `(height, width)` in pixels that the weights were made for.
        mean, std: normalisation of RGB in [0, 1] that the weights were made with.
        cam_layer: module that Grad-CAM reads.
        stages: first module of each stage behind the first, in the model's order; the partial phase
            trains the last one and all after it.
        head: prefixes of the classifier's parameters.
        fixed_size: whether it takes no other input size.
    """

    name: str
    timm_name: str
    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    cam_layer: str
    stages: tuple[str, ...]
    head: tuple[str, ...]
    fixed_size: bool = False

    def stage(self, from_end: int) -> str:
        """The first module of a stage, counted from the end: 1 is the last.

        Raises:
            ModelError: there are fewer stages.
        """
        if not 1 <= from_end <= len(self.stages):
            raise ModelError(
                f"{self.name}: expected head, partial, full or 1 to {len(self.stages)} (its last "
                f"stages), found {from_end}"
            )
        return self.stages[-from_end]


def known_backbones() -> tuple[str, ...]:
    """The names that have a row of their own."""
    return tuple(_TABLE)


def check_backbone(name: str) -> None:
    """Raise `ModelError` with the nearest valid names where timm has no such model."""
    if name in _TABLE:
        return
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        pool = list(dict.fromkeys([*_TABLE, *timm.list_models()]))
        near = difflib.get_close_matches(base, pool, n=3, cutoff=0.5) or list(_TABLE)
        raise ModelError(f"{name}: timm has no such backbone; did you mean {', '.join(near)}?")
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ModelError(
            f"{name}: timm knows no weights tagged {tag!r}; choose {', '.join(tags) or 'no tag'}"
        )


@lru_cache(maxsize=64)
def backbone(name: str) -> Backbone:
    """The facts of `name`: a row of the table, or any timm name with its stages derived.

    Raises:
        ModelError: timm has no such model, or its stages cannot be told.
    """
    check_backbone(name)
    row = _TABLE.get(name) or _TABLE.get(name.partition(".")[0])
    timm_name = _TABLE[name].timm_name if name in _TABLE else name
    with torch.device("meta"):
        net = timm.create_model(timm_name, pretrained=False, num_classes=2)
    cfg = net.pretrained_cfg
    read, stages = _derived(net, name)
    if row:
        read, stages = row.cam_layer, (*stages[:-1], row.partial_from)
    classifier = cfg["classifier"]
    return Backbone(
        name=name,
        timm_name=timm_name,
        input_size=(int(cfg["input_size"][1]), int(cfg["input_size"][2])),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        cam_layer=read,
        stages=stages,
        head=(classifier,) if isinstance(classifier, str) else tuple(classifier),
        fixed_size=bool(cfg.get("fixed_input_size", False)),
    )


def _derived(net: nn.Module, name: str) -> tuple[str, tuple[str, ...]]:
    """The layer that Grad-CAM reads, and the first module with parameters of each later stage.

    That is the first after the stage before it, and not the stage that timm names, where timm
    names a stage by its end: a DenseNet's last norm, a VGG's last pool. What only leads over into
    a dense block is left to the stage before.
    """
    ends = _stage_ends(net, name)
    names = [n for n, _ in net.named_modules()]
    last = names.index(ends[-1])
    starts: list[str] = []
    for before in ends[:-1]:
        for following in names[names.index(before) + 1 : last + 1]:
            apart = not following.startswith((f"{before}.", *(f"{s}." for s in starts)))
            holds_stages = any(end.startswith(f"{following}.") for end in ends)
            leads_over = any(part.startswith("transition") for part in following.split("."))
            if apart and not holds_stages and not leads_over and _has_parameters(net, following):
                starts.append(following)
                break
    return cam_layer(net, ends[-1]), tuple(dict.fromkeys(starts)) or (ends[-1],)


def _stage_ends(net: nn.Module, name: str) -> list[str]:
    info = getattr(net, "feature_info", None)
    entries = getattr(info, "info", info) or []
    ends = [str(entry["module"]) for entry in entries if entry.get("module")]
    modules = dict(net.named_modules())
    if not ends or any(end not in modules for end in ends):
        raise ModelError(f"{name}: timm does not name its stages; choose a backbone that has them")
    if len(ends) > _MOST_STAGES:  # of a plain ViT every block is one: four quarters
        ends = [ends[len(ends) * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]
    return ends


def _has_parameters(net: nn.Module, path: str) -> bool:
    return any(True for _ in net.get_submodule(path).parameters())


def module_at(net: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path.

    Raises:
        ModelError: there is none; the valid names beside it are listed.
    """
    try:
        return net.get_submodule(path)
    except AttributeError as error:
        top = net
        for part in path.split("."):
            children = dict(top.named_children())
            if part not in children:
                known = ", ".join(children) or "none"
                raise ModelError(f"no layer {part!r} in {path!r}; there are: {known}") from error
            top = children[part]
        raise ModelError(f"{path!r} is no layer") from error


def trainable(net: nn.Module, facts: Backbone, unfreeze: str | int) -> list[str]:
    """Names of the parameters that a phase trains, in the model's order.

    Args:
        unfreeze: `head` (the classifier), `partial` (the last stage and all after it), `full`, or
            the number of last stages, of which 1 is `partial`.

    Raises:
        ModelError: the network has fewer stages.
    """
    names = [name for name, _ in net.named_parameters()]
    if unfreeze == "head":
        return [n for n in names if n.startswith(tuple(f"{h}." for h in facts.head))]
    if unfreeze == "full":
        return names
    start = facts.stage(1 if unfreeze == "partial" else int(unfreeze))
    inside = [i for i, n in enumerate(names) if n.startswith(f"{start}.")]
    if not inside:
        raise ModelError(f"{facts.name}: no parameters below {start!r}")
    return names[inside[0] :]
