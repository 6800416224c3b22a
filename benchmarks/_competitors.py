"""Who races: the peers as their users run them, and raybench's workers beside bare passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from raybench.explain import GradCam, Lime
from raybench.models.backbones import backbone
from raybench.models.checkpoint import load_checkpoint
from raybench.models.classifier import Classifier
from raybench.models.runtime import Runtime
from raybench.types import Gray, Unit


class Worker:
    """One single-threaded stream, as a sweep runs one a core."""

    def __init__(self, data: bytes, image: Gray) -> None:
        torch.set_num_threads(1)
        self._data, self._image = data, image
        self._classifiers: dict[str, Classifier] = {}
        self._batches: dict[tuple[str, int], torch.Tensor] = {}

    def _classifier(self, backend: str) -> Classifier:
        if backend not in self._classifiers:
            runtime = Runtime(backend=backend, n_threads=1)  # type: ignore[arg-type]
            made = Classifier.from_checkpoint(self._data, runtime=runtime)
            self._classifiers[backend] = made
        return self._classifiers[backend]

    def __call__(self, kind: str, backend: str, *order: Any) -> Any:
        """Do an order: `lime`, `grad_cam` or `bare`."""
        return getattr(self, f"_{kind}")(self._classifier(backend), *order)

    def _lime(self, classifier: Classifier, explainer: Lime, units: list[Unit]) -> Any:
        return [(unit.name, explainer.run(unit, classifier)) for unit in units]

    def _grad_cam(self, classifier: Classifier, n: int, together: bool) -> None:
        if together:
            GradCam().attribute_many(classifier, [self._image] * n)
            return
        for _ in range(n):
            GradCam().attribute(classifier, self._image)

    def _bare(self, classifier: Classifier, n_batches: int, size: int) -> None:
        key = (classifier.runtime.backend, size)
        if key not in self._batches:
            self._batches[key] = classifier.prepare(np.stack([self._image] * size))
        batch = self._batches[key]
        # `_forward` is the backend's own call: with torch the module and a softmax, nothing else.
        classifier.net.eval()
        with torch.inference_mode():
            for _ in range(n_batches):
                classifier._forward(batch)


class _FromUnit(nn.Module):
    """Takes RGB in [0, 1], so that captum's baseline 0 is lime's black."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.net((x - self.mean) / self.std), dim=1)


class Peers:
    """One process with torch's default threads."""

    def __init__(self, data: bytes, image: Gray, superpixels: np.ndarray) -> None:
        os.environ["TQDM_DISABLE"] = "1"
        self._net, card = load_checkpoint(data)
        self._facts = backbone(card.backbone)
        self._rgb = np.repeat(image[:, :, None], 3, axis=2)
        self._superpixels, self._size = superpixels, card.input_size

    def __call__(self, kind: str, *order: Any) -> None:
        """Do an order: `lime`, `captum` or `grad_cam`."""
        getattr(self, f"_{kind}")(*order)

    def _lime(self, n: int, seed: int) -> None:
        from lime.lime_image import LimeImageExplainer

        LimeImageExplainer(random_state=seed).explain_instance(
            self._rgb,
            self._predict,
            hide_color=0,
            num_samples=n,
            segmentation_fn=lambda image: self._superpixels,
        )

    @property
    def _transform(self) -> Callable[[Any], torch.Tensor]:
        from torchvision import transforms

        normalise = transforms.Normalize(self._facts.mean, self._facts.std)
        steps = [transforms.Resize(self._size), transforms.ToTensor(), normalise]
        made: Callable[[Any], torch.Tensor] = transforms.Compose(steps)
        return made

    def _predict(self, images: Any) -> np.ndarray:
        from PIL import Image

        transform = self._transform
        batch = torch.stack([transform(Image.fromarray(image)) for image in images])
        with torch.no_grad():
            return torch.softmax(self._net(batch), dim=1).numpy()

    def _captum(self, n: int, seed: int, together: int) -> None:
        from captum._utils.models.linear_model import SkLearnRidge
        from captum.attr import Lime as CaptumLime
        from captum.attr._core.lime import get_exp_kernel_similarity_function

        torch.manual_seed(seed)
        model = _FromUnit(self._net, self._facts.mean, self._facts.std).eval()
        similarity = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)
        lime = CaptumLime(model, SkLearnRidge(alpha=1.0), similarity)
        with torch.no_grad():
            lime.attribute(
                torch.from_numpy(self._rgb).permute(2, 0, 1)[None].float() / 255,
                baselines=0,
                target=0,
                feature_mask=torch.from_numpy(self._superpixels.astype(np.int64))[None, None],
                n_samples=n,
                perturbations_per_eval=together,
            )

    def _grad_cam(self, n: int) -> None:
        from pytorch_grad_cam import GradCAM

        layer = self._net.get_submodule(self._facts.cam_layer)
        transform = self._transform
        from PIL import Image

        with GradCAM(model=self._net, target_layers=[layer]) as cam:
            for _ in range(n):
                cam(transform(Image.fromarray(self._rgb))[None], None)


def as_units(explainer: Lime, subject: Any, superpixels: np.ndarray) -> list[Unit]:
    """The units that ask the model, the superpixels being given."""
    done: Mapping[str, Any] = {"superpixels": {"labels": superpixels}}
    return explainer.plan(subject, done)
