"""What a search over LIME's settings costs once the model has been asked.

    python -m benchmarks.settings_for_free [--images 20] [--samples 1000] [--json FILE]

Explains phantoms once, keeping the answers, then fits them again with other surrogates and settings
of these, samples used, classes and thresholds, all on one core. The design is `shapley`, whose
patterns serve every surrogate. Goal: 100 settings of every image in at most 5% of the first run's
time, with not one more forward pass.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks._timing import Ratio, as_dict, print_results, write_json
from raybench.answers import AnswerStore
from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess
from raybench.explain import Lime
from raybench.explain.designs import Design
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.models.runtime import Runtime, keep_memory
from raybench.scoring.binarise import binarise

GOAL = 0.05
DESIGN: Design = "shapley"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def all_settings(n_samples: int) -> list[tuple[dict[str, Any], int, float]]:
    """100 settings: the surrogate and its own, samples used, the class explained, the threshold."""
    surrogates: list[dict[str, Any]] = [
        *({"name": "ridge", "kernel_width": w, "alpha": 1.0} for w in (0.1, 0.2, 0.25, 0.5, 1.0)),
        *({"name": "ridge", "kernel_width": 0.25, "alpha": a} for a in (0.01, 0.1, 10.0)),
        {"name": "bayesian_ridge"},
        *({"name": "glime", "sigma": s} for s in (1.0, 1.5, 3.0)),
        {"name": "kernel_shap"},
    ]
    drawn = itertools.product(surrogates, (1.0, 0.75), (0, 1), (0.5, 0.3))
    found = [
        ({"surrogate": surrogate, "n_samples": int(n_samples * share)}, target, threshold)
        for surrogate, share, target, threshold in drawn
    ]
    return found[:100]


def main() -> None:
    """Explain, then fit again, an image after the other."""
    args = arguments()
    torch.set_num_threads(1)
    threadpool_limits(1)
    keep_memory()
    torch.manual_seed(0)
    card = Card(args.model, ("COVID-19", "Non-COVID", "Normal"), backbone(args.model).input_size)
    runtime = Runtime(backend="auto")
    model = Classifier.from_checkpoint(save_checkpoint(build(args.model, 3), card), runtime=runtime)
    data = Phantom(name="phantom", n_train=args.images, n_val=1, n_test=1, size=256)
    records = data.records()[: args.images]
    images = [Preprocess().apply(data.load(record)) for record in records]
    settings = all_settings(args.samples)
    asked, again, first, second = 0, 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        store = AnswerStore(folder)
        for image in images:
            started = time.perf_counter()
            lime = Lime(n_samples=args.samples, design=DESIGN, deduplicate=False)
            asked += int(lime.attribute(model, image, store=store).extras["n_asked"])
            first += time.perf_counter() - started
        store = AnswerStore(folder)  # nothing in memory, as in another process
        for image in images:
            started = time.perf_counter()
            for chosen, target, threshold in settings:
                lime = Lime(design=DESIGN, deduplicate=False, **chosen)
                found = lime.attribute(model, image, target, store=store)
                binarise(found.values, threshold)
                again += int(found.extras["n_asked"])
            second += time.perf_counter() - started
    ratios = [
        Ratio(f"{len(settings)} settings by one run, time", second / first, high=GOAL),
        Ratio("forward passes of the settings", float(again), high=0.0),
    ]
    rates = {
        "first run, images": [len(images) / first],
        "settings fitted": [len(settings) * len(images) / second],
    }
    print_results(f"{args.model}: {asked:,} forward passes, then none", rates, ratios)
    write_json(args.json, vars(args), {args.model: {"ratios": [as_dict(r) for r in ratios]}})


if __name__ == "__main__":
    main()
