"""The family of class activation maps, through pytorch-grad-cam."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from raybench.answers import digest
from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError, ModelError
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape, untouched
from raybench.models.backbones import module_at
from raybench.models.classifier import Classifier
from raybench.models.features import feature_maps
from raybench.types import Arrays, AttributionMap, Question, Subject, Unit, Values

LIBRARY = f"grad-cam {version('grad-cam')}"
"""Part of every answer's name: another version is asked anew."""


class Cam(Explainer):
    """A layer's feature maps, summed with weights, rectified and resized bilinearly.

    pytorch-grad-cam stretches its maps to [0, 1]; here that is left to the thresholding, so a map
    scaled to [0, 1] is the library's. What the library calls the target is the class's logit.
    """

    layer: str | None = Field(
        None, description="dotted path of the layer; null: the backbone's own for such maps"
    )

    needs_gradient: ClassVar[bool] = True

    def n_forward_planned(self) -> int:
        """One forward pass an image (and one backward pass, where gradients enter)."""
        return 1

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit an image."""
        if done:
            return []
        asked = f"{getattr(self, 'name')} {self.layer} {subject.target}"  # noqa: B009
        question = Question(digest(LIBRARY, "cam", asked, subject.image), 0, len(subject.image))
        payload = {"image": subject.image, "target": subject.target}
        return [Unit("cam", payload, n_forward=1, question=question)]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """The rectified map at the image's size, and beside it the class, `[h, 1]`.

        Raises:
            ExplainError: no layer is named, the class does not depend on it, or its output is no
                feature map.
            ModelError: there is no such layer.
        """
        return self.run_many([unit], classifier)[0]

    def run_many(self, units: Sequence[Unit], classifier: Classifier | None) -> list[Arrays]:
        """Several units with one forward and one backward pass for each batch of the classifier.

        What is differentiated is the sum of the targets' logits. In evaluation mode no image sees
        another, so each gets the gradient of its own logit; maps equal those of `run` to 1e-6,
        not to the bit, because convolutions add up in another order.
        """
        if not units:
            return []
        model = need_classifier(units[0], classifier)
        step = model.batch_size
        batches = (units[i : i + step] for i in range(0, len(units), step))
        return [answer for batch in batches for answer in self._maps(batch, model)]

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The map at the ground truth's resolution."""
        answer = done["cam"]
        values = to_shape(answer["map"], subject.shape, smooth=True)
        return AttributionMap(values, int(answer["target"].flat[0]), n_forward=1)

    @abstractmethod
    def _library(self) -> type[Any]:
        """The library's class."""

    # Imported where they are called: the library brings scikit-learn and matplotlib along, seconds
    # that every process would pay that only reads the settings.

    def _maps(self, units: Sequence[Unit], model: Classifier) -> list[Arrays]:
        """The answers to one batch."""
        seen = look(self, units, model)
        raw = self._weighted(model.net, module_at(model.net, seen.path), seen)
        rectified = np.maximum(np.asarray(raw, dtype=np.float32), 0)
        answers: list[Arrays] = []
        for values, target, unit in zip(rectified, seen.targets, units, strict=True):
            shape = unit.payload["image"].shape
            finished = to_shape(to_shape(values, model.input_size, smooth=True), shape, smooth=True)
            column = np.full((shape[0], 1), target, dtype=np.int32)
            answers.append({"map": finished, "target": column})
        return answers

    def _weighted(self, net: nn.Module, layer: nn.Module, seen: Looked) -> Values:
        with untouched(net):
            cam = self._library()(model=net, target_layers=[layer])
            cam.activations_and_grads.release()
            found = cam.get_cam_image(
                None, layer, None, seen.activations, seen.gradients, eigen_smooth=False
            )
        return np.asarray(found, dtype=np.float32)


class GradCam(Cam):
    """Activations of one layer, weighted by the mean gradient of the target's logit.

    The rectified sum of equation 2 of Selvaraju et al. (2017).
    """

    name: Literal["grad_cam"] = "grad_cam"

    def _library(self) -> type[Any]:
        from pytorch_grad_cam import GradCAM

        return GradCAM  # type: ignore[no-any-return]


class GradCamPlusPlus(Cam):
    """Grad-CAM++ (Chattopadhay et al. 2018): weights by the positive gradients' higher powers."""

    name: Literal["grad_cam_plus_plus"] = "grad_cam_plus_plus"

    def _library(self) -> type[Any]:
        from pytorch_grad_cam import GradCAMPlusPlus

        return GradCAMPlusPlus  # type: ignore[no-any-return]


class HiResCam(Cam):
    """HiResCAM (Draelos and Carin 2020): gradient times activation, place by place."""

    name: Literal["hires_cam"] = "hires_cam"

    def _library(self) -> type[Any]:
        from pytorch_grad_cam import HiResCAM

        return HiResCAM  # type: ignore[no-any-return]


class LayerCam(Cam):
    """LayerCAM (Jiang et al. 2021): positive gradient times activation, place by place."""

    name: Literal["layer_cam"] = "layer_cam"

    def _library(self) -> type[Any]:
        from pytorch_grad_cam import LayerCAM

        return LayerCAM  # type: ignore[no-any-return]


class EigenCam(Cam):
    """Eigen-CAM (Muhammad and Yeasin 2020): the activations' first principal component.

    No class enters the map, so it is the same whichever is asked; the class asked for, or the
    predicted one, is still checked and named, so that its results stand beside the others'. The
    component's sign is what the decomposition happens to give, as in the library.
    """

    name: Literal["eigen_cam"] = "eigen_cam"
    orient: bool = Field(
        False, description="turn the component round where its negative part is the stronger"
    )

    needs_gradient: ClassVar[bool] = False

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit an image."""
        if done:
            return []
        asked = f"eigen_cam {self.layer} {subject.target} {self.orient}"
        question = Question(digest(LIBRARY, "cam", asked, subject.image), 0, len(subject.image))
        payload = {"image": subject.image, "target": subject.target}
        return [Unit("cam", payload, n_forward=1, question=question)]

    def _library(self) -> type[Any]:
        from pytorch_grad_cam import EigenCAM

        return EigenCAM  # type: ignore[no-any-return]

    def _weighted(self, net: nn.Module, layer: nn.Module, seen: Looked) -> Values:
        found = super()._weighted(net, layer, seen)
        if self.orient:
            turned = -found.min(axis=(1, 2)) > found.max(axis=(1, 2))
            found = np.where(turned[:, None, None], -found, found)
        return found


class Looked:
    """What one pass showed of a layer.

    Attributes:
        path: the layer's.
        activations, gradients: float32 `[N, C, h, w]`; gradients None where none were asked for.
        targets: the class of each image.
    """

    def __init__(
        self,
        path: str,
        activations: Values,
        gradients: Values | None,
        targets: Sequence[int],
    ) -> None:
        self.path = path
        self.activations = activations
        self.gradients = gradients
        self.targets = targets


def look(explainer: Cam, units: Sequence[Unit], model: Classifier) -> Looked:
    """Pass the units' images through the model and note what its layer gives.

    Raises:
        ExplainError, ModelError: as `Cam.run` says.
    """
    from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients

    name, path = str(getattr(explainer, "name")), explainer.layer or model.cam_layer  # noqa: B009
    if path is None:
        raise ExplainError(f"{name}: name the layer, this model has no entry in the table")
    layer, gradient = module_at(model.net, path), explainer.needs_gradient
    reshape = feature_maps(model.net, path, model.input_size)
    images = [resize_gray(unit.payload["image"], model.input_size) for unit in units]
    # A frozen network gives its layers' outputs no gradient and the library's hook then stays
    # silent; an input that asks for one gives it back whatever is frozen.
    inputs = model.prepare(np.stack(images)).requires_grad_(gradient)
    with untouched(model.net), torch.set_grad_enabled(gradient):
        seen = ActivationsAndGradients(model.net, [layer], None)
        try:
            logits = seen(inputs)
            rows = zip(logits.detach().cpu().numpy(), units, strict=True)
            targets = [target_class(scores, unit.payload["target"]) for scores, unit in rows]
            if gradient and logits.requires_grad:
                logits[range(len(units)), targets].sum().backward()
            activations, gradients = list(seen.activations), list(seen.gradients)
        finally:
            seen.release()
    _check(name, path, activations, gradients if gradient else None)
    try:
        maps = reshape(activations[0]).numpy()
        slopes = reshape(gradients[0]).numpy() if gradient else None
    except ModelError as error:
        raise ExplainError(f"{name}: {error}") from error
    if slopes is not None and not slopes.any():
        raise ExplainError(
            f"{name}: the gradient is 0 everywhere in {path!r}; name a layer that the classes "
            "depend on (of a transformer with a class token the last block's first normalisation)"
        )
    return Looked(path, maps, slopes, targets)


def _check(
    name: str, path: str, activations: list[torch.Tensor], gradients: list[torch.Tensor] | None
) -> None:
    if not activations or (gradients is not None and not gradients):
        what = "no activation comes from" if gradients is None else "no gradient reaches"
        raise ExplainError(f"{name}: {what} {path!r}; name a layer that the classes depend on")
    if len(activations) > 1:
        raise ExplainError(
            f"{name}: {path!r} is used {len(activations)} times in a pass; name a layer that is "
            "used once"
        )
