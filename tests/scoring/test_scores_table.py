"""The table of scores holds for every score: ranges, directions, what needs a threshold."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from raybench.scoring.metrics import METRICS, SCORES, localisation_scores
from raybench.scoring.ranking import MAP_SCORES, map_scores


def test_every_column_has_its_row_in_order() -> None:
    assert list(SCORES) == [*METRICS, *MAP_SCORES]
    assert [n for n, s in SCORES.items() if s.needs_threshold] == list(METRICS)
    lower = [name for name, score in SCORES.items() if not score.higher_is_better]
    assert lower == ["hausdorff", "hd95", "assd", "hausdorff_outline", "outside_lungs"]


@pytest.mark.parametrize("name", SCORES)
def test_a_map_of_the_infection_is_better_than_noise_in_every_score(name: str) -> None:
    """What `higher_is_better` says, on a map that follows the infection and one that does not."""
    rng = np.random.default_rng(0)
    lungs, truth = np.zeros((48, 48), bool), np.zeros((48, 48), bool)
    lungs[6:42, 4:44], truth[14:26, 10:24] = True, True
    near = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 2)
    noise = rng.random((48, 48)).astype(np.float32)
    found = []
    for values in (near, noise):
        salient = values > np.quantile(values, 1 - truth.mean())
        every = localisation_scores(salient, truth) | map_scores(values, truth, lungs)
        found.append(every[name])
    low, high = SCORES[name].bounds
    assert all(low <= value <= high for value in found)
    assert (found[0] > found[1]) == SCORES[name].higher_is_better
