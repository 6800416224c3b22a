"""The classifier: uint8 X-rays in, probabilities out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raybench.models import ensemble
from raybench.models.backbones import backbone
from raybench.models.checkpoint import load_checkpoint
from raybench.models.embedding import feature_reader
from raybench.models.forward import Compose, evaluating, in_batches, make_forward, settle
from raybench.models.inputs import Inputs
from raybench.models.perturbed import check_perturbed, check_pixels
from raybench.models.runtime import (
    CPU_BATCH,
    EAGER,
    Runtime,
    best_batch_size,
    gpu_throughput,
)
from raybench.types import Gray


class Classifier:
    """A classifier as the explainers use it: uint8 X-rays in, class probabilities out.

    Args:
        net: any torch classifier that takes float `[N, 3, H, W]` and returns logits `[N, C]`.
        input_size: `(height, width)` that it takes.
        mean, std: normalisation of RGB in [0, 1] that it was trained with.
        classes: names of its outputs, or empty.
        cam_layer: dotted path of the layer that Grad-CAM reads, or None.
        device: where it runs.
        runtime: backend, precision and batch size of its forward passes.
        checkpoint: digest of the file that it comes from, or None.

    Raises:
        ModelError: the runtime's backend cannot run here.
    """

    def __init__(
        self,
        net: nn.Module,
        input_size: tuple[int, int],
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        classes: Sequence[str] = (),
        cam_layer: str | None = None,
        device: str = "cpu",
        runtime: Runtime = EAGER,
        checkpoint: str | None = None,
    ) -> None:
        self.net = net.to(device)
        self.input_size = input_size
        self.classes = tuple(classes)
        self.cam_layer = cam_layer
        self.device = torch.device(device)
        self._inputs = Inputs(input_size, mean, std, self.device)
        self.runtime, passed = settle(self.net, runtime, self.device, input_size)
        self.identity = self._identity(checkpoint, mean, std)
        self._forward = make_forward(passed, self.runtime, self.device)
        self._batch_size = runtime.batch_size

    @classmethod
    def from_checkpoint(
        cls,
        data: bytes,
        device: str = "cpu",
        runtime: Runtime = EAGER,
        where: str = "checkpoint",
    ) -> Classifier:
        """Load a checkpoint; channels-last, which CPUs and GPUs convolve fastest.

        An ensemble has no layer of its own that class activation maps could read.
        """
        net, card = load_checkpoint(data, where)
        facts = None if card.members else backbone(card.backbone)
        net = net.to(memory_format=torch.channels_last)
        return cls(
            net,
            card.input_size,
            ensemble.MEAN if facts is None else facts.mean,
            ensemble.STD if facts is None else facts.std,
            card.classes,
            None if facts is None else facts.cam_layer,
            device,
            runtime,
            hashlib.sha256(data).hexdigest(),
        )

    def _identity(
        self, checkpoint: str | None, mean: Sequence[float], std: Sequence[float]
    ) -> str | None:
        """Hex digest of everything that decides answers and maps; None for a bare module.

        The batch size is not in it: it moves the answers by rounding alone.
        """
        if checkpoint is None:
            return None
        told = {
            "checkpoint": checkpoint,
            "backend": self.runtime.backend,
            "precision": self.runtime.precision,
            "device": self.device.type,
            "input_size": list(self.input_size),
            "cam_layer": self.cam_layer,
            "mean": [float(value) for value in mean],
            "std": [float(value) for value in std],
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def batch_size(self) -> int:
        """Images a forward pass. On a GPU it is looked for at first use, where none is set."""
        if self._batch_size is None:
            on_cpu = self.device.type == "cpu"
            self._batch_size = (
                CPU_BATCH[self.runtime.backend] if on_cpu else self._best_batch_size()
            )
        return self._batch_size

    def _best_batch_size(self) -> int:
        # Through the module and not what is compiled: every size would be compiled on its own.
        eager = make_forward(self.net, Runtime(precision=self.runtime.precision), self.device)

        def throughput(size: int) -> float:
            batch = torch.zeros((size, 3, *self.input_size), device=self.device)
            return gpu_throughput(eager, batch.contiguous(memory_format=torch.channels_last))

        with evaluating(self.net), torch.inference_mode():
            return best_batch_size(throughput)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """Grey levels `[N, 1 or 3, H, W]` to float32 `[N, 3, H, W]`, channels last."""
        return self._inputs.normalise(batch)

    def prepare(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 `[N, h, w]` or `[N, h, w, 3]`, any size, to normalised float `[N, 3, H, W]`."""
        return self._inputs.prepare(images)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 `[N, C]`, of uint8 `[N, h, w]` or `[N, h, w, 3]`.

        The mode of the model and of each module in it is left as it was found.

        Raises:
            ModelError: memory is out with a single image a pass.
        """
        return self.ask(len(images), lambda start, stop: self.prepare(images[start:stop]))

    def predict_perturbed(
        self,
        image: Gray,
        fill: NDArray[np.uint8],
        superpixels: NDArray[np.int32],
        keep: NDArray[np.bool_],
        which: NDArray[np.integer] | None = None,
    ) -> NDArray[np.float32]:
        """Class probabilities of an image's perturbations, composed on the model's device.

        The i-th perturbed image is `where(keep[i, superpixels], image, fill[which[i]])`, brought to
        the model's input size. On a CPU the answers are, to the bit, those that `predict` gives
        to these images.

        Args:
            image: uint8 `[h, w]`.
            fill: uint8 `[F, h, w]`, or `[h, w]` where there is one.
            superpixels: int32 `[h, w]`, labels 0 to K - 1.
            keep: bool `[n, K]`.
            which: `[n]`, 0 to F - 1; None where there is one fill.

        Returns:
            float32 `[n, C]`.

        Raises:
            ModelError: the arrays do not fit together, or memory is out with one image a pass.
        """
        fills = fill if fill.ndim == 3 else fill[None]
        check_perturbed(image, fills, superpixels, keep, which)
        with torch.inference_mode():
            return self.ask(
                len(keep), self._inputs.perturbed(image, fills, superpixels, keep, which)
            )

    def predict_blended(
        self, image: Gray, fill: Gray, n: int, shown: Compose
    ) -> NDArray[np.float32]:
        """Class probabilities of soft perturbations, composed on the model's device.

        The i-th is `shown[i] * image + (1 - shown[i]) * fill` in grey levels, brought to the
        model's input size; nothing is rounded.

        Args:
            image, fill: uint8 `[h, w]`.
            shown: from and up to which of the n, to float `[m, h, w]` in [0, 1] on the device.

        Returns:
            float32 `[n, C]`.

        Raises:
            ModelError: the arrays do not fit together, or memory is out with one image a pass.
        """
        check_pixels(image, fill[None])
        with torch.inference_mode():
            return self.ask(n, self._inputs.blended(image, fill, shown))

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network's own features, before its classifier, float32 `[N, d]`.

        An ensemble's are those of its members, each of length 1, side by side: the cosine of two
        images' features is the mean of what the members say.

        Args:
            images: as for `predict`.

        Raises:
            ModelError: the network is not one of timm's, which say where their classifier begins;
                or memory is out with a single image a pass.
        """
        features = feature_reader(self.net)
        with evaluating(self.net), torch.inference_mode():
            size = self.batch_size
            found, _ = in_batches(
                features, lambda a, b: self.prepare(images[a:b]), len(images), size, False
            )
            return found.float().cpu().numpy()

    def ask(self, n: int, compose: Compose) -> NDArray[np.float32]:
        """Class probabilities, float32 `[n, C]`, of normalised images that `compose` makes.

        Args:
            compose: from and up to which index, to float `[m, 3, H, W]` on the device.

        Raises:
            ModelError: memory is out with a single image a pass.
        """
        with evaluating(self.net), torch.inference_mode():
            pad = self.runtime.backend == "compile"
            found, fitted = in_batches(self._forward, compose, n, self.batch_size, pad)
            self._batch_size = fitted
            return found.float().cpu().numpy()
