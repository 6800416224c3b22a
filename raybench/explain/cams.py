"""The family of class activation maps, through pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import nn

from raybench.answers import digest
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape
from raybench.explain.given import untouched
from raybench.explain.looking import Looked, check_sums, look
from raybench.models.backbones import module_at
from raybench.models.classifier import Classifier
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

    library: ClassVar[str]
    """The library's name of the class."""

    needs_gradient: ClassVar[bool] = True
    looks_inside: ClassVar[bool] = True

    def n_forward_planned(self) -> int:
        """One forward pass an image (and one backward pass, where gradients enter)."""
        return 1

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit an image."""
        return [] if done else [self._look_unit(subject, len(subject.image))]

    def _look_unit(self, subject: Subject, n_rows: int) -> Unit:
        """Ask for what the layer shows; the target is in the question where it decides the map."""
        target = subject.target if self.needs_gradient else None
        asked = f"{self._asked()} {target}" if self.needs_gradient else f"{self._asked()} any class"
        question = Question(digest(LIBRARY, "cam", asked, subject.image), 0, n_rows)
        payload = {"image": subject.image, "target": target}
        return Unit("cam", payload, n_forward=1, question=question)

    def _asked(self) -> str:
        """All settings that decide the answer."""
        return f"{getattr(self, 'name')} {self.layer}"  # noqa: B009

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """The rectified map at the image's size, and beside it the logits, `[h, classes]`.

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
        return AttributionMap(values, target_class(answer["logits"][0], subject.target), 1)

    def _look(self, units: Sequence[Unit], model: Classifier) -> Looked:
        name = str(getattr(self, "name"))  # noqa: B009  (each family member has one)
        return look(name, self.layer, self.needs_gradient, units, model)

    def _maps(self, units: Sequence[Unit], model: Classifier) -> list[Arrays]:
        """The answers to one batch."""
        seen = self._look(units, model)
        raw = self._weighted(model.net, seen)
        rectified = np.maximum(np.asarray(raw, dtype=np.float32), 0)
        answers: list[Arrays] = []
        for values, logits, unit in zip(rectified, seen.logits, units, strict=True):
            shape = unit.payload["image"].shape
            finished = to_shape(to_shape(values, model.input_size, smooth=True), shape, smooth=True)
            answers.append({"map": finished, "logits": np.tile(logits, (shape[0], 1))})
        return answers

    def _weighted(self, net: nn.Module, seen: Looked) -> Values:
        # Imported where it is called: the library brings scikit-learn and matplotlib along,
        # seconds that every process would pay that only reads the settings.
        import pytorch_grad_cam

        layer = module_at(net, seen.path)
        with untouched(net):
            cam = getattr(pytorch_grad_cam, self.library)(model=net, target_layers=[layer])
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
    library: ClassVar[str] = "GradCAM"


class GradCamPlusPlus(Cam):
    """Grad-CAM++ (Chattopadhay et al. 2018): weights by the positive gradients' higher powers."""

    name: Literal["grad_cam_plus_plus"] = "grad_cam_plus_plus"
    library: ClassVar[str] = "GradCAMPlusPlus"


class HiResCam(Cam):
    """HiResCAM (Draelos and Carin 2020): gradient times activation, place by place.

    A layer whose every place is normalised behind it is refused: there the two add up to 0.
    """

    name: Literal["hires_cam"] = "hires_cam"
    library: ClassVar[str] = "HiResCAM"

    def _look(self, units: Sequence[Unit], model: Classifier) -> Looked:
        seen = super()._look(units, model)
        check_sums(self.name, seen, model.net)
        return seen


class LayerCam(Cam):
    """LayerCAM (Jiang et al. 2021): positive gradient times activation, place by place."""

    name: Literal["layer_cam"] = "layer_cam"
    library: ClassVar[str] = "LayerCAM"


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

    library: ClassVar[str] = "EigenCAM"
    needs_gradient: ClassVar[bool] = False

    def _asked(self) -> str:
        return f"{super()._asked()} {self.orient}"

    def _weighted(self, net: nn.Module, seen: Looked) -> Values:
        found = super()._weighted(net, seen)
        if self.orient:
            turned = -found.min(axis=(1, 2)) > found.max(axis=(1, 2))
            found = np.where(turned[:, None, None], -found, found)
        return found
