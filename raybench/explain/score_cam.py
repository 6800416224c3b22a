"""Score-CAM (Wang et al. 2020), as pytorch-grad-cam computes it, in shippable units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from raybench.answers import digest
from raybench.data.preprocess import resize_gray
from raybench.explain.base import need_classifier, target_class, to_shape
from raybench.explain.cams import Cam
from raybench.explain.given import untouched
from raybench.models.classifier import Classifier
from raybench.models.forward import in_batches
from raybench.types import Arrays, AttributionMap, Question, Subject, Unit


class ScoreCam(Cam):
    """Each feature map, scaled to [0, 1], masks the input; its weight is the target's logit then.

    The weights are put through a softmax over the channels. Masks multiply the normalised input,
    as in the library, so what they hide turns into the mean colour of ImageNet. It costs a pass a
    channel; with fewer channels the strongest are taken, by their mean activation.
    """

    name: Literal["score_cam"] = "score_cam"
    n_channels: int = Field(
        2048, ge=1, le=16384, description="channels asked, at most, the strongest by mean first"
    )
    chunk: int = Field(64, ge=1, description="forward passes in a unit of work")

    library: ClassVar[str] = "ScoreCAM"
    needs_gradient: ClassVar[bool] = False

    def n_forward_planned(self) -> int:
        """The pass that shows the channels, and one a channel."""
        return 1 + self.n_channels

    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """First the layer's activations, then chunks of channels, the strongest first."""
        if "cam" not in done:
            return [self._look_unit(subject, 1)]
        if len(done) > 1:
            return []
        maps = self._strongest(done["cam"])
        key = digest("score_cam", str(self.layer), subject.image)
        units = []
        for start in range(0, len(maps), self.chunk):
            stop = min(start + self.chunk, len(maps))
            part = {"image": subject.image, "maps": maps[start:stop]}
            question = Question(key, start, stop)
            units.append(
                Unit(f"scores:{start:07d}", part, n_forward=stop - start, question=question)
            )
        return units

    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """The activations, or all classes' logits for a chunk of masked inputs.

        Raises:
            ExplainError, ModelError: as for the other maps.
        """
        if unit.name == "cam":
            return super().run(unit, classifier)
        model = need_classifier(unit, classifier)
        image = resize_gray(unit.payload["image"], model.input_size)
        inputs = model.prepare(image[None])
        maps = torch.from_numpy(unit.payload["maps"]).to(inputs.device)

        def masked(start: int, stop: int) -> torch.Tensor:
            return (inputs * _masks(maps[start:stop], model.input_size)).contiguous(
                memory_format=torch.channels_last
            )

        with untouched(model.net), torch.inference_mode():
            logits, _ = in_batches(model.net, masked, len(maps), model.batch_size, pad=False)
        return {"logits": logits.float().cpu().numpy()}

    def run_many(self, units: Sequence[Unit], classifier: Classifier | None) -> list[Arrays]:
        """The activations of several images in batches; chunks of masks one by one."""
        if all(unit.name == "cam" for unit in units):
            return super().run_many(units, classifier)
        return [self.run(unit, classifier) for unit in units]

    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The channels' sum, weighted by the softmax of their logits, rectified."""
        maps = self._strongest(done["cam"])
        target = target_class(done["cam"]["logits"][0], subject.target)
        names = sorted(name for name in done if name.startswith("scores:"))
        scores = np.concatenate([done[name]["logits"][:, target] for name in names])
        weights = torch.softmax(torch.from_numpy(scores), dim=0).numpy()
        raw = np.maximum((weights[:, None, None] * maps).sum(axis=0), 0)
        at_input = to_shape(raw, (subject.image.shape[0], subject.image.shape[1]), smooth=True)
        return AttributionMap(
            to_shape(at_input, subject.shape, smooth=True), target, n_forward=1 + len(scores)
        )

    def _asked(self) -> str:
        return f"activations {self.layer}"

    def _maps(self, units: Sequence[Unit], model: Classifier) -> list[Arrays]:
        seen = self._look(units, model)
        shape = np.array([seen.activations.shape[1:]], dtype=np.int32)
        return [
            {
                "activations": np.ascontiguousarray(maps).reshape(1, -1),
                "shape": shape,
                "logits": logits[None],
            }
            for maps, logits in zip(seen.activations, seen.logits, strict=True)
        ]

    def _strongest(self, answer: Arrays) -> NDArray[np.float32]:
        """Feature maps `[k, h, w]` in falling order of their mean, so fewer begin as more do."""
        maps = answer["activations"].reshape(answer["shape"][0])
        order = np.argsort(-maps.mean(axis=(1, 2)), kind="stable")[: self.n_channels]
        return np.asarray(maps[order], dtype=np.float32)


def _masks(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Feature maps `[k, h, w]` as masks in [0, 1], `[k, 1, H, W]`; a flat one hides everything."""
    large = nn.functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=True)
    low, high = large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True)
    return (large - low) / (high - low + 1e-8)
