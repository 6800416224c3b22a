"""The study's own figures, replayed: what its authors' formulas give for a set of masks.

Beside the leaderboard's `iou`, `dice` and `hausdorff`, which are these very means; here they stand
alone, for masks that come from anywhere (PROTOCOL.md, 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from raybench.scoring.boundary import hausdorff
from raybench.scoring.overlap import dice, iou
from raybench.types import Mask


@dataclass(frozen=True, slots=True)
class StudyScores:
    """Means over images.

    Attributes:
        iou, dice: over all images, 0 to 1.
        hausdorff: in pixels, over the images where both masks hold a pixel; NaN without any.
        n: images.
        n_hausdorff: those of them that the Hausdorff distance is the mean of.
    """

    iou: float
    dice: float
    hausdorff: float
    n: int
    n_hausdorff: int


def study_scores(pairs: Iterable[tuple[Mask, Mask]]) -> StudyScores:
    """Mean IoU, Dice and symmetric Hausdorff distance as the study takes them.

    Per image IoU = |A and B| / |A or B|, Dice = 2 |A and B| / (|A| + |B|), and the larger of both
    directed Hausdorff distances over all pixels of the masks, outlines or not; then the plain mean
    over images. Images with an empty mask are left out of the Hausdorff distance alone.

    Args:
        pairs: salient mask and infection mask of each image, bool `[H, W]`.

    Raises:
        ValueError: no images, or not two bool masks of one shape.
    """
    rows = [(iou(p, t), dice(p, t), hausdorff(p, t)) for p, t in pairs]
    if not rows:
        raise ValueError("expected at least one image, but got none")
    found = np.array(rows)
    there = ~np.isnan(found[:, 2])
    distance = float(found[there, 2].mean()) if there.any() else float("nan")
    means = found[:, :2].mean(axis=0)
    return StudyScores(
        float(means[0]), float(means[1]), distance, len(rows), int(np.count_nonzero(there))
    )
