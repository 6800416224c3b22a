"""Where no explainer is better, a sweep's own comparison has to say so.

`tests/scoring/test_paired.py` asks this of the test itself, on discs. Here it is the whole way:
maps of phantoms, cut and scored as in a sweep, patients of two images, and the sentence at its end.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from raybench.data.phantom import Phantom
from raybench.explain import RandomSuperpixels, Slic
from raybench.scoring.binarise import binarise
from raybench.scoring.overlap import dice, iou
from raybench.scoring.paired import ALPHA
from raybench.studies.comparing import compare
from raybench.types import Subject
from tests.studies.test_comparing import LEVELS, N, context_of, scores_of

N_PHANTOMS, N_BOARDS = 60, 1000
EXPLAINERS = (*LEVELS, "occlusion")


def score_all() -> tuple[np.ndarray, np.ndarray]:
    """IoU and Dice of every map with every mask, `[2, maps, masks]`; of the own lungs, `[2, n]`."""
    raw = {"name": "phantom", "n_test": N_PHANTOMS, "size": 64}
    data = Phantom.model_validate(raw)
    ill = [r for r in data.records() if (r.split, r.label) == ("Test", data.infection_class)]
    xrays = [data.load(record) for record in ill]
    masks = [xray.infection_mask for xray in xrays]
    maps = []
    for number, xray in enumerate(xrays):
        explainer = RandomSuperpixels(seed=number, superpixels=Slic(n_segments=20))
        subject = Subject(xray.record.image_id, xray.image, None, (64, 64))
        maps.append(binarise(explainer.draw(subject), 0.5))
    every = [[[score(m, t) for t in masks] for m in maps] for score in (iou, dice)]
    lungs = [[score(x.lung_mask, x.infection_mask) for x in xrays] for score in (iou, dice)]
    return np.array(every), np.array(lungs)


def elsewhere(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """A map for each mask, each of another image than the mask's, none twice."""
    while True:
        maps = rng.permutation(N_PHANTOMS)[: len(masks)]
        if (maps != masks).all():
            return maps


@pytest.mark.slow
def test_a_thousand_leaderboards_without_a_better_explainer(tmp_path: Path) -> None:
    """About a minute."""
    every, lungs = score_all()
    context, rng = context_of(tmp_path, patients=True), np.random.default_rng(0)
    table = scores_of(context, dict.fromkeys(EXPLAINERS, 0.0))
    table = table[table.threshold_rule == "val"].reset_index(drop=True)

    def board(with_lungs: bool) -> pd.DataFrame:
        masks = rng.choice(N_PHANTOMS, N // 2, replace=False)
        scores = {e: every[:, elsewhere(rng, masks), masks] for e in EXPLAINERS}
        if with_lungs:
            scores["lungs"] = lungs[:, masks]
        # Two images a patient, which are alike: counted as two they would find too much.
        for explainer, of in scores.items():
            rows = table.explainer == explainer
            table.loc[rows, ["iou", "dice"]] = np.repeat(of, 2, axis=1).T
        return compare(table, ["t0"], context).pairs

    found = [board(with_lungs=False) for _ in range(N_BOARDS)]
    most = binom.ppf(0.999, N_BOARDS, ALPHA)
    for metric in ("iou", "dice"):
        winners = sum(pairs[pairs.metric == metric].significant.any() for pairs in found)
        assert 0 < winners <= most, metric
        above = r"(?:only \w+ is|both are) above the whole lung"
        told = [p[p.metric == metric].sentence.str.contains(above).any() for p in found]
        assert sum(told) <= winners, metric
    # And it is no test that never finds anything.
    control = [board(with_lungs=True) for _ in range(20)]
    for pairs in control:
        first = pairs[(pairs.metric == "iou") & (pairs.explainer == "lungs")]
        assert len(first) == len(EXPLAINERS) - 1
        assert first.significant.all()
