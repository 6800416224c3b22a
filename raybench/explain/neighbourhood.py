"""An image's neighbourhood: all its perturbations, which of them are asked, and what they say."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
from cachetools import LRUCache, cached
from numpy.typing import NDArray

from raybench.errors import ExplainError
from raybench.explain.designs import (
    KEEP_SHARE,
    Design,
    keep_vectors,
    law_of,
    n_fixed,
    n_together,
)
from raybench.explain.perturbation import Keep, active_superpixels, distinct
from raybench.explain.rows import Rows
from raybench.explain.surrogate import Floats, LocalFit
from raybench.explain.surrogates import Surrogate
from raybench.signs import oriented
from raybench.types import Gray, Sign

_N_DRAWS = 100
_KEPT_BYTES = 64 * 2**20
"""Of neighbourhoods: by default some 1,500, and a dozen of ten thousand samples."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The perturbations of one image.

    Attributes:
        keep: bool `[N, K]`, what the surrogate is fitted to.
        first: `[m]`, rows that show the model different images, in the order they are asked in.
        same_as: `[N]`, for each row the place in `first` of the image it shows.
        which: `[N]`, for each row the number of the fill that stands in; they take turns, what was
            drawn together sharing one.
        completions: rows that each image stands for.
        active: bool `[K]`, superpixels that change anything when switched off.
        design, law: how the patterns of these were drawn (see `laws`).
    """

    keep: Keep
    first: NDArray[np.intp]
    same_as: NDArray[np.intp]
    which: NDArray[np.intp]
    completions: int
    active: NDArray[np.bool_]
    design: Design
    law: Floats

    @classmethod
    def draw(
        cls,
        design: Design,
        n_samples: int,
        image: Gray,
        fills: NDArray[np.uint8],
        superpixels: NDArray[np.int32],
        seed: int,
        completions: int,
        deduplicate: bool,
        keep_share: float = KEEP_SHARE,
    ) -> Neighbourhood:
        """Draw a design for an image.

        Args:
            image: uint8 `[h, w]`, with its superpixels, int32 `[h, w]`.
            fills: uint8 `[F, h, w]`.
        """
        active = tuple(active_superpixels(image, fills, superpixels).tolist())
        settings = (design, n_samples, active, seed, completions, deduplicate, keep_share)
        return _drawn(*settings, len(fills))

    def asks_nothing_kept(self, n_images: int) -> bool:
        """Whether the image with all superpixels switched off is among the first asked."""
        asked = self.keep[self.first[:n_images]][:, self.active]
        return bool((~asked.any(axis=1)).any())

    @property
    def n_distinct(self) -> int:
        """Forward passes that all of it costs."""
        return len(self.first)

    def rows(
        self, answers: NDArray[np.floating], target: int, nothing: float | None = None
    ) -> Rows:
        """What the first answers, `[m, C]`, say of one class.

        Args:
            nothing: its answer with all superpixels switched off, where that was asked by itself.
        """
        n = self.n_rows(len(answers))
        return Rows(
            self.keep[:n],
            answers[self.same_as[:n], target],
            self.active,
            self.law,
            n_fixed(self.design),
            self.completions,
            n_together(self.design),
            int(self.which.max()) + 1,
            nothing,
        )

    def expect(self, image_id: str, n_answers: int) -> None:
        """Refuse answers that are not one for each image asked.

        Raises:
            ExplainError: there are more or fewer.
        """
        if n_answers != self.n_distinct:
            raise ExplainError(
                f"{image_id}: {n_answers} answers for {self.n_distinct} perturbed images"
            )

    def expect_effective(
        self, image_id: str, n_answers: int, fit: LocalFit, surrogate: Surrogate
    ) -> None:
        """Refuse a fit that rests on too few samples because the design draws by another law.

        That is fewer than there are weights to tell, and than half of what was drawn.

        Raises:
            ExplainError: it does; the message names the design that draws by the right one.
        """
        n_drawn = self.n_rows(n_answers) // self.completions
        n_active = int(self.active.sum())
        if surrogate.matching is None or fit.n_effective >= min(n_active + 1, n_drawn / 2):
            return
        name = getattr(surrogate, "name")  # noqa: B009  (each family member has one)
        raise ExplainError(
            f"{image_id}: to the surrogate {name} the {n_drawn} samples of the design "
            f"{self.design} are worth {fit.n_effective:.1f}, too few for {n_active} superpixels; "
            f"choose design: {surrogate.matching}"
        )

    def n_rows(self, n_answers: int) -> int:
        """How many rows, from the first on, the first `n_answers` answers cover."""
        missing = self.same_as >= n_answers
        return int(missing.argmax()) if missing.any() else len(self.keep)


def _n_bytes(drawn: Neighbourhood) -> int:
    arrays = (drawn.keep, drawn.first, drawn.same_as, drawn.which, drawn.active, drawn.law)
    # The key holds a pointer for each superpixel beside them.
    return sum(array.nbytes for array in arrays) + 8 * len(drawn.active)


_kept: LRUCache[object, Neighbourhood] = LRUCache(_KEPT_BYTES, _n_bytes)


@cached(_kept, lock=Lock())
def _drawn(
    design: Design,
    n_samples: int,
    active: tuple[bool, ...],
    seed: int,
    completions: int,
    deduplicate: bool,
    keep_share: float,
    n_fills: int,
) -> Neighbourhood:
    """Kept for a while: an image's rounds, and every setting fitted to it, look at the same one."""
    mask = np.array(active, dtype=bool)
    keep = keep_vectors(design, n_samples, mask, seed, completions, keep_share)
    law = law_of(design, int(mask.sum()), keep_share)
    # What leads the design belongs to no pair.
    drawn = np.arange(len(keep)) // completions - n_fixed(design)
    which = np.maximum(drawn, 0) // n_together(design) % n_fills
    if deduplicate:
        first, same_as = distinct(keep, mask, which if n_fills > 1 else None)
    else:
        first = np.arange(0, len(keep), completions)
        same_as = np.arange(len(keep)) // completions
    for array in (keep, first, same_as, which, mask, law):
        array.flags.writeable = False
    return Neighbourhood(keep, first, same_as, which, completions, mask, design, law)


def fit_of(
    seen: Neighbourhood,
    answers: NDArray[np.floating],
    target: int,
    surrogate: Surrogate,
    nothing: float | None = None,
    uncertain: bool = True,
) -> LocalFit:
    """Fit the surrogate of one class to the answers so far, `[m, C]`.

    Args:
        nothing: as for `Neighbourhood.rows`.
        uncertain: whether the uncertainty is wanted, which costs more than the fit.
    """
    return surrogate.fit(seen.rows(answers, target, nothing), uncertain)


def expected_iou(
    fit: LocalFit,
    areas: NDArray[np.integer],
    threshold: float,
    seed: int = 0,
    sign: Sign = "both",
) -> float:
    """Expected IoU of the salient mask with that of another draw of the same size, 0 to 1.

    The mask is that of the weights' part by `sign`, scaled to [0, 1] and cut at `threshold`; other
    draws are those of the wild bootstrap. Two masks that mark nothing agree.

    Args:
        areas: pixels of each superpixel, `[K]`.
    """
    if not len(fit.deltas):
        return 0.0
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (_N_DRAWS, len(fit.deltas))) * 2.0 - 1.0
    drawn = _salient(fit.weights + signs @ fit.deltas, threshold, sign)
    found = _salient(fit.weights[None], threshold, sign)
    both = ((drawn & found) * areas).sum(axis=1)
    either = ((drawn | found) * areas).sum(axis=1)
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())


def _salient(weights: Floats, threshold: float, sign: Sign) -> NDArray[np.bool_]:
    part = oriented(weights, sign)
    low, high = part.min(axis=1, keepdims=True), part.max(axis=1, keepdims=True)
    return np.asarray(part - low > threshold * (high - low))


def is_settled(
    fit: LocalFit,
    areas: NDArray[np.integer],
    threshold: float,
    tolerance: float,
    seed: int,
    sign: Sign,
) -> bool:
    """Whether more samples would move the salient mask by less than the tolerance (in IoU)."""
    return expected_iou(fit, areas, threshold, seed, sign) >= 1.0 - tolerance
