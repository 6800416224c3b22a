"""What every explainer is: frozen settings that plan, run and merge units of work.

An explainer knows nothing of where its units run. `plan` looks at what is done so far and names
the units that are needed next; when it names none, `merge` puts the answers together. So work that
depends on earlier work (perturbations need superpixels) is planned in rounds.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import nn

from raybench.answers import AnswerStore
from raybench.data.preprocess import resize_gray
from raybench.errors import ExplainError
from raybench.explain.given import check_image, wrap
from raybench.models.classifier import Classifier
from raybench.settings import Settings
from raybench.types import Arrays, AttributionMap, Mask, Sign, Subject, Unit, Values


class Explainer(Settings):
    """Settings that every explainer has, and the three verbs that each defines."""

    label: str | None = Field(
        None,
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,60}$",
        description="name in the results; null: the explainer's own",
    )
    target: str | None = Field(
        None, description="class explained: predicted, true or a class; null: as explain.target"
    )
    threshold: float = Field(
        0.5, ge=0, lt=1, description="of the `fixed` rule, on the map scaled to [0, 1]"
    )
    sign: Sign = Field(
        "both",
        description="what of a signed map the salient mask is made from: both (as in the study), "
        "for (the class), against (it), or absolute",
    )
    clip_to_lungs: bool = Field(False, description="salient pixels outside the lungs are dropped")
    median_filter: int = Field(
        0, ge=0, le=31, description="side of a median filter on the salient mask, odd; 0: none"
    )

    uses_model: ClassVar[bool] = True
    is_probability: ClassVar[bool] = False

    looks_inside: ClassVar[bool] = False
    """Whether it reads one network's layers or gradients, and not its answers alone: then it cannot
    explain an ensemble."""

    @field_validator("median_filter")
    @classmethod
    def _odd(cls, side: int) -> int:
        if side and side % 2 == 0:
            raise ValueError(f"must be odd or 0, found {side}")
        return side

    @property
    def title(self) -> str:
        """The name in the results."""
        return self.label or str(getattr(self, "name"))  # noqa: B009  (each family member has one)

    @property
    def of_mask(self) -> frozenset[str]:
        """Settings that make a mask of the map and leave the map as it is."""
        return frozenset({"label", "threshold", "clip_to_lungs", "median_filter", "sign"})

    @property
    def map_key(self) -> str:
        """Equal for explainers that make the same maps, whatever masks are made of them."""
        return self.model_dump_json(exclude=set(self.of_mask))

    @abstractmethod
    def plan(self, subject: Subject, done: Mapping[str, Arrays]) -> list[Unit]:
        """The units needed next, given the answers so far; none when `merge` can be called."""

    @abstractmethod
    def run(self, unit: Unit, classifier: Classifier | None) -> Arrays:
        """Do one unit. Deterministic: the same unit and classifier, the same answer."""

    def run_many(self, units: Sequence[Unit], classifier: Classifier | None) -> list[Arrays]:
        """The answers of several units; explainers whose units can share a pass override this."""
        return [self.run(unit, classifier) for unit in units]

    @abstractmethod
    def merge(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """Put the answers of all units together."""

    def merge_map(self, subject: Subject, done: Mapping[str, Arrays]) -> AttributionMap:
        """The same map, where nobody will look at the extras: they may be left out."""
        return self.merge(subject, done)

    @abstractmethod
    def n_forward_planned(self) -> int:
        """Forward passes an image, at most."""

    def n_units_planned(self) -> int:
        """Units of work an image, at most."""
        return 1

    @property
    def needs_lungs(self) -> bool:
        """Whether it cannot do without a lung mask."""
        return self.clip_to_lungs

    @property
    def needs_prior(self) -> bool:
        """Whether it looks at `Subject.prior`."""
        return False

    @property
    def is_cheap(self) -> bool:
        """Whether it costs so little that every trial gets it."""
        return self.n_forward_planned() <= 10

    def attribute(
        self,
        model: nn.Module | Classifier,
        image: NDArray[np.uint8],
        target: int | None = None,
        lung_mask: Mask | None = None,
        store: AnswerStore | None = None,
        neighbours: NDArray[np.uint8] | None = None,
    ) -> AttributionMap:
        """Explain one image in this process.

        Args:
            model: a `Classifier`, or any torch classifier that takes normalised float
                `[N, 3, H, W]` and returns logits. A bare module is taken to want ImageNet's mean
                and deviation, or those of its timm record, and the image's own size.
            image: uint8 `[H, W]`, the X-ray as the model is to see it (lung-masked or not).
            target: index of the class to explain; None for the predicted one.
            lung_mask: bool `[H, W]`, for the references that need it.
            store: where answers are looked up before the model is asked, and kept; only those of
                a `Classifier` that was loaded from a checkpoint, for others have no name.
            neighbours: uint8 `[n, H', W']`, training images laid over this one, nearest first, for
                the fill `neighbour`; a `Bank` finds them.

        Returns:
            The map at the image's own resolution; `extras["seconds"]` says how long it took and
            `extras["n_asked"]` how many forward passes were made now.

        Raises:
            ExplainError: the image is not uint8 `[H, W]`, the lung mask is not bool of the same
                shape, a needed one is missing, or the model has no such class.
        """
        check_image(image, lung_mask)
        classifier = model if isinstance(model, Classifier) else wrap(model, image.shape)
        subject = self.subject(classifier, image, target, lung_mask)
        if neighbours is not None:
            subject = _beside(subject, neighbours)
        done: dict[str, Arrays] = {}
        started, n_asked = time.perf_counter(), 0
        while units := self.plan(subject, done):
            for unit in units:
                done[unit.name], n_forward = self._answer(unit, classifier, store)
                n_asked += n_forward
        result = self.merge(subject, done)
        seconds = time.perf_counter() - started
        extras = {**result.extras, "seconds": seconds, "n_asked": n_asked}
        return AttributionMap(result.values, result.target, result.n_forward, extras)

    def attribute_many(
        self,
        model: nn.Module | Classifier,
        images: Sequence[NDArray[np.uint8]],
        targets: Sequence[int | None] | None = None,
        lung_masks: Sequence[Mask | None] | None = None,
    ) -> list[AttributionMap]:
        """Explain several images in this process, in batches where the explainer can.

        Args:
            model: as for `attribute`; a bare module is given every image at the first one's size.
            images: uint8 `[H, W]` each.
            targets: a class index, or None for the predicted one, for each image; None: all so.
            lung_masks: bool `[H, W]` or None for each image; None: there are none.

        Returns:
            A map an image, in order; `extras["seconds"]` is its share of the time.

        Raises:
            ExplainError: as for `attribute`, or the lists differ in length.
        """
        wanted = [None] * len(images) if targets is None else targets
        lungs = [None] * len(images) if lung_masks is None else lung_masks
        if not len(images) == len(wanted) == len(lungs):
            raise ExplainError(
                f"expected as many targets and lung masks as images ({len(images)}), "
                f"got {len(wanted)} and {len(lungs)}"
            )
        if not images:
            return []
        check_image(images[0], None)  # before its shape is taken
        classifier = model if isinstance(model, Classifier) else wrap(model, images[0].shape)
        subjects = [
            self.subject(classifier, *each) for each in zip(images, wanted, lungs, strict=True)
        ]
        started = time.perf_counter()
        found = self._explain(subjects, classifier)
        extras = {"seconds": (time.perf_counter() - started) / len(images)}
        return [
            replace(one, extras={**one.extras, **extras, "n_asked": one.n_forward}) for one in found
        ]

    def _explain(self, subjects: Sequence[Subject], classifier: Classifier) -> list[AttributionMap]:
        """Round by round: what all subjects need next is asked together."""
        done: list[dict[str, Arrays]] = [{} for _ in subjects]
        while planned := [
            (number, unit)
            for number, subject in enumerate(subjects)
            for unit in self.plan(subject, done[number])
        ]:
            answers = self.run_many([unit for _, unit in planned], classifier)
            for (number, unit), answer in zip(planned, answers, strict=True):
                done[number][unit.name] = answer
        return [self.merge(s, answers) for s, answers in zip(subjects, done, strict=True)]

    def subject(
        self,
        classifier: Classifier,
        image: NDArray[np.uint8],
        target: int | None,
        lung_mask: Mask | None,
    ) -> Subject:
        """What `plan` and `merge` take, of one image: on the classifier's grid where it is asked.

        Args:
            image, target, lung_mask: as for `attribute`.

        Raises:
            ExplainError: the image is not uint8 `[H, W]`, or the lung mask not bool of its shape.
        """
        check_image(image, lung_mask)
        grid = resize_gray(image, classifier.input_size) if self.uses_model else image
        return Subject("image", grid, lung_mask, (image.shape[0], image.shape[1]), target)

    def _answer(
        self, unit: Unit, classifier: Classifier, store: AnswerStore | None
    ) -> tuple[Arrays, int]:
        if store is None:
            return self.run(unit, classifier), unit.n_forward
        return store.answer(unit, classifier.identity, lambda: self.run(unit, classifier))


def _beside(subject: Subject, neighbours: NDArray[np.uint8]) -> Subject:
    """The image with its neighbours, brought to its grid."""
    size = (subject.image.shape[0], subject.image.shape[1])
    return replace(subject, neighbours=np.stack([resize_gray(each, size) for each in neighbours]))


def need_classifier(unit: Unit, classifier: Classifier | None) -> Classifier:
    """The classifier, or an `ExplainError` where a unit that needs one was given none."""
    if classifier is None:
        raise ExplainError(f"unit {unit.name} needs a classifier and was given none")
    return classifier


def joined(done: Mapping[str, Arrays], prefix: str) -> NDArray[np.floating]:
    """The answers `[n, C]` of the units whose names begin alike, in the order of their names."""
    return np.concatenate(
        [done[name]["answers"] for name in sorted(done) if name.startswith(prefix)]
    )


def target_class(scores: NDArray[np.floating], target: int | None) -> int:
    """Index of the class to explain: `target`, or the predicted one where it is None.

    Args:
        scores: `[C]`, the model's answer to the unperturbed image.

    Raises:
        ExplainError: there is no such class.
    """
    if target is None:
        return int(scores.argmax())
    if not 0 <= target < len(scores):
        raise ExplainError(f"target {target}: the model has classes 0 to {len(scores) - 1}")
    return target


def to_shape(values: NDArray[np.generic], shape: tuple[int, int], smooth: bool) -> Values:
    """A map at the ground truth's resolution.

    Args:
        values: `[h, w]`.
        shape: `(H, W)`.
        smooth: bilinear, for maps that vary smoothly; else nearest, which keeps the values of
            piecewise constant ones.
    """
    import cv2

    array = np.asarray(values, dtype=np.float32)
    if array.shape == shape:
        return array
    how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST_EXACT
    return np.asarray(cv2.resize(array, (shape[1], shape[0]), interpolation=how), dtype=np.float32)
