"""What all localisation scores of a study's maps cost.

    python -m benchmarks.scores [--maps 583] [--size 256] [--peer 5] [--json FILE]

Smooth random maps beside blobs as infection, all on one core: mask scores of the map's highest
fifth, scores of the map itself and severity. Goal: those of 583 maps (the study's Test images of
one explainer) of 256 x 256 in at most 60 s. A few of them are scored again by plain calls of scipy,
scikit-image and scikit-learn, in turns; both must say the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree
from skimage.metrics import hausdorff_distance
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from threadpoolctl import threadpool_limits

from benchmarks._timing import Ratio, as_dict, interleave, median_ratio, print_results, write_json
from raybench.scoring.metrics import localisation_scores
from raybench.scoring.ranking import map_scores
from raybench.scoring.severity import severity_scores
from raybench.scoring.surface import NSD_TOLERANCE
from raybench.types import Mask, Values

GOAL_SECONDS = 60.0
STUDY_MAPS = 583

Case = tuple[Values, Mask, Mask, Mask]
"""A map, its salient mask, the infection and the lungs."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--maps", type=int, default=STUDY_MAPS)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--peer", type=int, default=5, help="maps a round beside the plain calls")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def case(seed: int, size: int) -> Case:
    """Smooth noise whose peaks lie partly in the infection; both of lung-like extent."""
    rng = np.random.default_rng(seed)
    field, shared = (
        cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), size / 20)
        for _ in range(2)
    )
    lungs = np.zeros((size, size), bool)
    lungs[size // 6 : -size // 6, size // 8 : -size // 8] = True
    truth = (shared > np.quantile(shared, 0.85)) & lungs
    values = field + shared
    return values, values > np.quantile(values, 0.8), truth, lungs


def ours(one: Case) -> dict[str, float]:
    """Every score, as the score stage takes them."""
    values, salient, truth, lungs = one
    found = localisation_scores(salient, truth) | map_scores(values, truth, lungs)
    return found | severity_scores(salient, truth, lungs)


def plain(one: Case) -> dict[str, float]:
    """The same by other libraries' calls, one after the other."""
    values, salient, truth, lungs = one
    flat = truth.ravel(), salient.ravel()
    edges = [np.argwhere(m & ~binary_erosion(m)) for m in (salient, truth)]
    there = cKDTree(edges[1]).query(edges[0])[0]
    back = cKDTree(edges[0]).query(edges[1])[0]
    pooled = np.concatenate([there, back])
    positive = np.maximum(values, 0).astype(np.float64)
    highest = np.argsort(values, axis=None)[::-1][: truth.sum()]
    shares = [float((m & lungs).sum() / lungs.sum()) for m in (salient, truth)]
    return {
        "iou": jaccard_score(*flat),
        "dice": f1_score(*flat),
        "hausdorff": hausdorff_distance(salient, truth),
        "precision": precision_score(*flat),
        "recall": recall_score(*flat),
        "specificity": recall_score(*flat, pos_label=False),
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "assd": pooled.mean(),
        "nsd": (pooled <= NSD_TOLERANCE).mean(),
        "hausdorff_outline": pooled.max(),
        "hit_rate": float(truth.ravel()[values.argmax()]),
        "mass_accuracy": positive[truth].sum() / positive.sum(),
        "rank_accuracy": truth.ravel()[highest].mean(),
        "pixel_auroc": roc_auc_score(flat[0], values.ravel()),
        "pixel_ap": average_precision_score(flat[0], values.ravel()),
        "outside_lungs": positive[~lungs].sum() / positive.sum(),
        "pixel_auroc_lungs": roc_auc_score(truth[lungs], values[lungs]),
        "pixel_ap_lungs": average_precision_score(truth[lungs], values[lungs]),
        "severity": shares[0],
        "severity_truth": shares[1],
        "severity_error": abs(shares[0] - shares[1]),
    }


def check(cases: list[Case]) -> None:
    """Both must say the same, or their times mean nothing."""
    for one in cases:
        found, expected = ours(one), plain(one)
        if list(found) != list(expected):
            raise SystemExit(f"other scores than expected: {list(found)}, {list(expected)}")
        off = {n: (found[n], expected[n]) for n in found if abs(found[n] - expected[n]) > 1e-6}
        if off:
            raise SystemExit(f"ours and the plain calls differ: {off}")


def main() -> None:
    """Score all maps, then a few of them in turns with the plain calls."""
    args = arguments()
    cv2.setNumThreads(1)
    with threadpool_limits(1):
        few = [case(seed, args.size) for seed in range(args.peer)]
        check(few)

        def rate(score) -> float:
            started = time.perf_counter()
            for one in few:
                score(one)
            return len(few) / (time.perf_counter() - started)

        competitors = {"raybench": lambda _: rate(ours), "plain calls": lambda _: rate(plain)}
        rates = interleave(competitors, args.rounds)
        seconds = 0.0
        for seed in range(args.maps):
            one = case(seed, args.size)
            started = time.perf_counter()
            ours(one)
            seconds += time.perf_counter() - started
    whole = f"seconds for {args.maps} maps of {args.size} x {args.size}"
    full = args.maps == STUDY_MAPS and args.size == 256
    ratios = [
        Ratio(whole, seconds, high=GOAL_SECONDS if full else None),
        Ratio("raybench / plain calls, rate", median_ratio(rates, "raybench", "plain calls")),
    ]
    print_results("all scores, one core", rates, ratios, "maps a second")
    write_json(
        args.json, vars(args), {"scores": {"rates": rates, "ratios": [*map(as_dict, ratios)]}}
    )


if __name__ == "__main__":
    main()
