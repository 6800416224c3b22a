"""How much two masks overlap.

All metrics count pixels of the whole image. Two empty masks agree perfectly and score 1.0, as
Metrics Reloaded (Maier-Hein et al. 2024) recommends where "nothing there" is a valid answer; one
empty mask beside one that is not scores 0.0. In the study itself the question does not arise: every
COVID-19 image bears an infection mask.
"""

from __future__ import annotations

import numpy as np

from raybench.types import Mask


def check_masks(predicted: Mask, truth: Mask) -> None:
    """Refuse anything but two bool arrays of one two-dimensional shape.

    Raises:
        ValueError: a dtype is not bool, or the shapes differ or are not `[H, W]`.
    """
    for name, mask in (("predicted", predicted), ("truth", truth)):
        if mask.dtype != np.bool_ or mask.ndim != 2:
            raise ValueError(
                f"{name}: expected a bool array of shape [H, W], but got {mask.dtype} of shape "
                f"{mask.shape}; compare the grey levels with a threshold first"
            )
    if predicted.shape != truth.shape:
        raise ValueError(
            f"expected two masks of one shape, but predicted has {predicted.shape} and truth has "
            f"{truth.shape}; resize one to the other first"
        )


def iou(predicted: Mask, truth: Mask) -> float:
    """Intersection over union (Jaccard index), 0 to 1; PROTOCOL.md, 5.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The score; 1.0 where both masks are empty, 0.0 where exactly one is.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    check_masks(predicted, truth)
    both, n_predicted, n_truth = _counts(predicted, truth)
    union = n_predicted + n_truth - both
    return both / union if union else 1.0


def dice(predicted: Mask, truth: Mask) -> float:
    """Dice coefficient (F1 over pixels), 0 to 1; PROTOCOL.md, 5.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The score; 1.0 where both masks are empty, 0.0 where exactly one is.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    check_masks(predicted, truth)
    both, n_predicted, n_truth = _counts(predicted, truth)
    return 2 * both / (n_predicted + n_truth) if n_predicted + n_truth else 1.0


def precision(predicted: Mask, truth: Mask) -> float:
    """The share of the salient pixels that are infected (positive predictive value), 0 to 1.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The score; 1.0 where both masks are empty, 0.0 where exactly one is. So a map that marks
        nothing earns nothing, where 0 / 0 would leave it out of the mean.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    check_masks(predicted, truth)
    both, n_predicted, n_truth = _counts(predicted, truth)
    return _share(both, n_predicted, n_truth)


def recall(predicted: Mask, truth: Mask) -> float:
    """The share of the infected pixels that are salient (sensitivity), 0 to 1.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The score; 1.0 where both masks are empty, 0.0 where exactly one is.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    check_masks(predicted, truth)
    both, n_predicted, n_truth = _counts(predicted, truth)
    return _share(both, n_truth, n_predicted)


def specificity(predicted: Mask, truth: Mask) -> float:
    """The share of the pixels without infection that are not salient, 0 to 1.

    It is the recall of what both masks leave out. Most of an image bears no infection, so even poor
    maps score high: to be read beside `recall`, never alone.

    Args:
        predicted: salient mask, bool `[H, W]`.
        truth: infection mask, bool `[H, W]`.

    Returns:
        The score. Empty masks are nothing special; where the infection covers the whole image, 1.0
        if the salient mask does too, else 0.0.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    check_masks(predicted, truth)
    return recall(~predicted, ~truth)


def _share(both: int, whole: int, other: int) -> float:
    """`both / whole`; with nothing in the whole, whether the other mask is empty too."""
    return both / whole if whole else float(other == 0)


def _counts(predicted: Mask, truth: Mask) -> tuple[int, int, int]:
    both = int(np.count_nonzero(predicted & truth))
    return both, int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
