"""Grad-CAM (Selvaraju et al. 2017) through pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain.base import Explainer, need_classifier, target_class, to_shape, untouched
from raybench.models.backbones import module_at
from raybench.models.classifier import Classifier
from raybench.types import Arrays, AttributionMap, Subject, Unit


class GradCam(Explainer):
    """Activations of one layer, weighted by the mean gradient of the target's logit.

    The map is the rectified sum of the paper's equation 2, resized bilinearly. pytorch-grad-cam
    stretches its maps to [0, 1]; here that is left to the thresholding, so a map scaled to [0, 1]
    is the library's.
    """

    name: Literal["grad_cam"] = "grad_cam"
    layer: str | None = Field(
        None, description="dotted path of the layer; null: the backbone's last stage"
    )

    def n_forward_planned(self) -> int:
        """One forward (and one backward) pass an image."""
        return 1

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """One unit an image."""
        if done:
            return []
        return [Unit("cam", {"image": subject.image, "target": subject.target}, n_forward=1)]

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """The rectified map at the classifier's input size, and the class it is for.

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
        path = self.layer or model.cam_layer
        if path is None:
            raise ExplainError("grad_cam: name the layer, this model has no entry in the table")
        layer, step = module_at(model.net, path), model.batch_size
        batches = (units[i : i + step] for i in range(0, len(units), step))
        return [answer for batch in batches for answer in _maps(batch, model, path, layer)]

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The map at the ground truth's resolution."""
        answer = done["cam"]
        return AttributionMap(
            values=to_shape(answer["map"], subject.shape, smooth=True),
            target=int(answer["target"]),
            n_forward=1,
        )


def _maps(units: Sequence[Unit], model: Classifier, path: str, layer: nn.Module) -> list[Arrays]:
    """The answers to one batch."""
    # Imported here: it brings scikit-learn and matplotlib along, seconds that every process
    # would pay that only reads the settings.
    from pytorch_grad_cam import GradCAM

    images = [resize_gray(unit.payload["image"], model.input_size) for unit in units]
    # A frozen network gives its layers' outputs no gradient and the library's hook then stays
    # silent; an input that asks for one gives it back whatever is frozen.
    inputs = model.prepare(np.stack(images)).requires_grad_(True)
    with untouched(model.net), torch.enable_grad():
        cam = GradCAM(model=model.net, target_layers=[layer])
        seen = cam.activations_and_grads
        try:
            logits = seen(inputs)
            rows = zip(logits.detach().cpu().numpy(), units, strict=True)
            chosen = [target_class(scores, unit.payload["target"]) for scores, unit in rows]
            if logits.requires_grad:
                logits[range(len(units)), chosen].sum().backward()
            _check(path, seen.gradients)
            raw = cam.get_cam_image(
                inputs, layer, None, seen.activations[0].numpy(), seen.gradients[0].numpy()
            )
        finally:
            seen.release()
    rectified = np.maximum(np.asarray(raw, dtype=np.float32), 0)
    return [
        {"map": to_shape(values, model.input_size, smooth=True), "target": np.array(target)}
        for values, target in zip(rectified, chosen, strict=True)
    ]


def _check(path: str, gradients: list[torch.Tensor]) -> None:
    if not gradients:
        raise ExplainError(
            f"grad_cam: no gradient reaches {path!r}; name a layer that the classes depend on"
        )
    shape = tuple(gradients[0].shape)
    if len(shape) != 4:
        raise ExplainError(
            f"grad_cam: expected feature maps [N, C, h, w] from {path!r}, found {shape}; "
            "name a layer before the pooling"
        )
