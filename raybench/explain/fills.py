"""Fills: what stands in for a superpixel that is switched off.

A fill draws one image, or several that the perturbations take in turns: then the model's answer is
averaged over them by the surrogate's own fit, at no further forward pass. What a fill draws depends
on the image alone and not on the keep-vector, so that a perturbed image is composed from two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raybench.errors import ExplainError
from raybench.settings import Choice, Range, Settings, named
from raybench.types import Subject

Regions = NDArray[np.int32]
"""Superpixels, int32 `[h, w]`, labels 0 to K - 1."""


class _Fill(Settings):
    """Settings that draw."""

    is_drawn_once: ClassVar[bool] = False
    """Whether drawing costs enough to be a unit of work whose answer is kept."""

    @property
    def n_drawn(self) -> int:
        """Images that `draw` returns."""
        return 1

    @property
    def identity(self) -> str:
        """Names all that decides what is drawn for an image, OpenCV's version included."""
        return f"opencv {cv2.__version__} {self.model_dump_json()}"

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """The images that stand in, uint8 `[F, h, w]`.

        Args:
            superpixels: of the subject's image; None where the explainer has none (RISE,
                occlusion): then the whole image is one.

        Raises:
            ExplainError: the subject lacks what the fill needs.
        """
        raise NotImplementedError


class Black(_Fill):
    """Grey level 0: lime's `hide_color=0`, the study's."""

    name: Literal["black"] = "black"

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """Zeros."""
        return np.zeros_like(subject.image)[None]


class Mean(_Fill):
    """Each superpixel's own mean grey level, rounded down: lime's `hide_color=None`."""

    name: Literal["mean"] = "mean"

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """Piecewise constant."""
        image = subject.image
        labels = np.zeros(image.shape, np.int32) if superpixels is None else superpixels
        sums = np.bincount(labels.ravel(), weights=image.ravel())
        means = (sums / np.maximum(np.bincount(labels.ravel()), 1)).astype(np.uint8)
        return np.asarray(means[labels], np.uint8)[None]


class Blur(_Fill):
    """The image through a Gaussian filter: large shapes stay, texture goes."""

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "sigma": Choice(choices=(0.02, 0.05, 0.1))
    }

    name: Literal["blur"] = "blur"
    sigma: float = Field(
        0.05, gt=0, le=1, description="deviation, as a share of the image's shorter side"
    )

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """The filtered image; beyond the border it is mirrored."""
        image = subject.image
        sigma = self.sigma * min(image.shape)
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)[None]


class Inpaint(_Fill):
    """Each superpixel drawn from what surrounds it (Telea 2004), all the others being there.

    So what stands in does not depend on which others are switched off as well. Where superpixels
    that touch are switched off together, each still shows what it was drawn from.
    """

    is_drawn_once: ClassVar[bool] = True

    name: Literal["inpaint"] = "inpaint"
    radius: float = Field(
        0.02, gt=0, le=0.5, description="how far it looks, as a share of the image's shorter side"
    )

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """One call of OpenCV's inpainting a superpixel that holds a lit pixel.

        A superpixel that nothing surrounds becomes black.

        Raises:
            ExplainError: there are no superpixels to draw one by one.
        """
        if superpixels is None:
            raise ExplainError("fill: inpaint draws superpixels, and this explainer has none")
        image, found = subject.image, subject.image.copy()
        radius = max(1.0, self.radius * min(image.shape))
        margin = int(np.ceil(radius)) + 2
        # OpenCV does not reach the outermost pixels: what is hidden is continued beyond them.
        edge = ((margin, margin), (margin, margin))
        framed, labels = np.pad(image, edge, "edge"), np.pad(superpixels, edge, "edge")
        inner = (slice(margin, -margin), slice(margin, -margin))
        for label in np.unique(superpixels[image > 0]):
            box = _about(superpixels == label, 2 * margin)  # in the frame: `margin` on each side
            hidden = labels[box] == label
            drawn = np.zeros(hidden.shape, np.uint8)
            if not hidden.all():
                mask = hidden.astype(np.uint8)
                drawn = np.asarray(cv2.inpaint(framed[box], mask, radius, cv2.INPAINT_TELEA))
            whole = np.zeros(labels.shape, np.uint8)
            whole[box] = drawn
            own = superpixels == label
            found[own] = whole[inner][own]
        return found[None]


def _about(mask: NDArray[np.bool_], more: int) -> tuple[slice, slice]:
    """The box of a mask, its ends moved on by `more`: its surroundings, in a frame half as wide."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1 + more), slice(columns[0], columns[-1] + 1 + more)


class Noise(_Fill):
    """Independent Gaussian grey levels with the mean and deviation of the image's lit pixels.

    Pixels that are black stay black, so that the outline of masked lungs is not what changes.
    """

    is_drawn_once: ClassVar[bool] = True

    name: Literal["noise"] = "noise"
    n_images: int = Field(8, ge=1, le=256, description="noise images that take turns")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the noise")

    @property
    def n_drawn(self) -> int:
        """As many as the settings say."""
        return self.n_images

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """The noise images; the first ones stay the same with more of them."""
        image = subject.image
        lit = image > 0
        found = np.zeros((self.n_images, *image.shape), np.uint8)
        if not lit.any():
            return found
        mean, deviation = float(image[lit].mean()), float(image[lit].std())
        for number in range(self.n_images):
            rng = np.random.default_rng([self.seed, number])
            drawn = rng.normal(mean, deviation, image.shape).round().clip(0, 255)
            found[number][lit] = drawn[lit]
        return found


class Neighbour(_Fill):
    """The same place of a similar patient's X-ray: KP-LIME, and with several K*LIME.

    Neighbours come from Train alone and never from the patient who is explained; they are the
    nearest by the cosine of the classifier's own features (`embedding: pixels`: of the image at 16
    x 16). Each is laid over the image so that the lungs' bounding boxes coincide; where the image
    is lit and the neighbour's lungs do not reach, its nearest lung pixel stands
    (`explain/neighbours.py`). See docs/explainers.md for the definition and what it costs.
    """

    search_space: ClassVar[Mapping[str, Range | Choice]] = {
        "n": Choice(choices=(1, 3, 5, 10)),
        "combine": Choice(choices=("turns", "mean")),
    }
    search_if: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {
        "combine": ("n", (3, 5, 10)),
    }

    name: Literal["neighbour"] = "neighbour"
    n: int = Field(1, ge=1, le=64, description="neighbours; more than one is K*LIME")
    combine: Literal["turns", "mean"] = Field(
        "turns",
        description="of several: turns (each perturbation shows one of them, so the answers are "
        "averaged), or mean (all show the mean image)",
    )
    embedding: Literal["features", "pixels"] = Field(
        "features", description="what they are near by: the classifier's features, or the pixels"
    )
    among: str | None = Field(
        None, description="the class that neighbours are taken from; null: every class"
    )

    @property
    def n_drawn(self) -> int:
        """One a neighbour, or their mean."""
        return 1 if self.combine == "mean" else self.n

    def draw(self, subject: Subject, superpixels: Regions | None) -> NDArray[np.uint8]:
        """The neighbours that the subject came with.

        Raises:
            ExplainError: it came with fewer.
        """
        near = subject.neighbours
        if near is None or len(near) < self.n:
            found = 0 if near is None else len(near)
            raise ExplainError(
                f"{subject.image_id}: fill: expected {self.n} neighbours, found {found}; pass "
                "`neighbours`, uint8 [n, h, w], or take them from a `Bank`"
            )
        if self.combine == "mean":
            mean = near[: self.n].mean(axis=0, dtype=np.float64)
            return np.asarray(mean.round()[None], np.uint8)
        return np.asarray(near[: self.n])


if TYPE_CHECKING:
    AnyFill = Black | Mean | Blur | Inpaint | Noise | Neighbour
    AnyWholeFill = Black | Mean | Blur | Noise | Neighbour
else:
    AnyFill = named(Black | Mean | Blur | Inpaint | Noise | Neighbour)
    AnyWholeFill = named(Black | Mean | Blur | Noise | Neighbour)
"""What `fill` parses into: of an explainer with superpixels, and of one without."""


def one_image(fill: AnyWholeFill) -> AnyWholeFill:
    """Refuse, as a validator, a fill that shows several images in turns.

    Without a surrogate to average the answers, what a region did could not be told from which image
    stood in for it.
    """
    if fill.n_drawn != 1:
        raise ValueError(
            f"expected a fill of one image here, found {fill.n_drawn} that take turns; set "
            f"{'combine: mean' if fill.name == 'neighbour' else 'n_images: 1'}, or choose another"
        )
    return fill
