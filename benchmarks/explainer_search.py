"""What a search over LIME's settings costs beside explaining the images once.

    python -m benchmarks.explainer_search [--images 14] [--settings 200] [--data ROOT]
                                          [--checkpoint FILE] [--profile] [--json FILE]

Explains Val images once and then searches settings of LIME within one choice of superpixels and
fill, as the sweep does it, in this process and on one core. Goal: the search, the first explaining
included, takes at most twice the time of explaining once, and asks the model for nothing more.
Phantoms and an untrained network, unless a folder laid out like COVID-QU-Ex and a checkpoint of
raybench are named.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from benchmarks._timing import Ratio, as_dict, print_results, write_json
from raybench.config import SweepConfig
from raybench.executor.local import LocalPool
from raybench.executor.remembering import RememberingPool
from raybench.explain.spaces import Space
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.models.runtime import Runtime
from raybench.studies.context import Context, explained_images
from raybench.studies.judging_settings import Judge
from raybench.studies.material import Material
from raybench.studies.proposals import Proposer
from raybench.studies.tried import Tried, make_row
from raybench.studies.truths import load_truths
from raybench.tracking.run_folder import RunFolder

GOAL = 2.0
DOMAINS = {
    "n_samples": {"choices": [64, 128, 256, 448]},
    "design": {"choices": ["orthogonal", "completed"]},
    "surrogate.kernel_width": {"low": 0.05, "high": 5.0, "log": True},
    "surrogate.alpha": {"low": 1e-3, "high": 100.0, "log": True},
    "clip_to_lungs": {"choices": [False, True]},
    "median_filter": {"choices": [0, 3, 5, 9, 15]},
    "threshold_rule": {"choices": ["val", "fixed"]},
    "threshold": {"low": 0.05, "high": 0.95},
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=14)
    parser.add_argument("--settings", type=int, default=200)
    parser.add_argument("--sampler", choices=["tpe", "random"], default="tpe")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def context_of(args: argparse.Namespace, folder: str) -> Context:
    """A sweep of which only the search is done."""
    phantom = {"name": "phantom", "n_train": 1, "n_val": args.images, "n_test": 1, "size": 256}
    folder_of_xrays = {"name": "covid_qu_ex", "root": str(args.data)}
    recipe = {"name": args.model, "weights": "none", "phases": [{"epochs": 1, "lr": 1e-3}]}
    config = SweepConfig.model_validate(
        {
            "name": "search",
            "data": folder_of_xrays if args.data else phantom,
            "backbones": [recipe],
            "preprocess": {"lung_masking": bool(args.data)},
            "explain": {"explainers": [{"name": "lime"}]},
            "explainer_search": {
                "n_trials": args.settings,
                "sampler": args.sampler,
                "explainers": {"lime": DOMAINS},
            },
        }
    )
    records = tuple(config.data.records())
    explained = explained_images(
        records, config.data.infection_class, {"Val": args.images, "Test": 1}
    )
    return Context(config, RunFolder(folder), config.data, records, explained)


def checkpoint(args: argparse.Namespace, classes: tuple[str, ...]) -> bytes:
    """The one named, or an untrained network."""
    if args.checkpoint:
        return bytes(args.checkpoint.read_bytes())
    torch.manual_seed(0)
    card = Card(args.model, classes, backbone(args.model).input_size)
    return save_checkpoint(build(args.model, len(classes)), card)


def main() -> None:
    """Explain once by the first trial, then the others."""
    args = arguments()
    torch.set_num_threads(1)
    threadpool_limits(1)
    with tempfile.TemporaryDirectory() as folder:
        context = context_of(args, folder)
        search = context.config.explainer_search
        assert search is not None
        model = checkpoint(args, context.dataset.classes)
        size = Classifier.from_checkpoint(model).input_size
        pool = LocalPool(lambda key: model, 1, Runtime(backend="auto"), f"{folder}/answers")
        truths = load_truths(context, ["Val"])
        judge = Judge(
            context, RememberingPool(pool), "t0", truths, Material(context, {"t0": size}), None
        )
        lime = context.config.explain.explainers[0]
        proposer = Proposer(Space.of(lime, search.explainers["lime"]), search, "t0 lime")
        tried, seconds, asked = Tried(), [], []
        profile = cProfile.Profile()
        for number in range(args.settings):
            if number == 1 and args.profile:
                profile.enable()
            started = time.perf_counter()
            proposal = proposer.ask()
            tried.add(make_row(number, proposal, judge))
            context.run.append("search", pd.DataFrame([tried.rows[-1]]))
            proposer.tell(proposal, tried.values(number))
            seconds.append(time.perf_counter() - started)
            asked.append(judge.n_asked)
    profile.disable()
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(28)
        pstats.Stats(profile).sort_stats("cumtime").print_stats(45)
    first, others = seconds[0], sum(seconds[1:])
    each = others / max(1, len(seconds) - 1) / args.images
    ratios = [
        Ratio(
            f"{args.settings} settings by explaining once, time", sum(seconds) / first, high=GOAL
        ),
        Ratio("forward passes after the first setting", float(asked[-1] - asked[0]), high=0.0),
    ]
    assert tried.winner is not None
    print(
        f"{args.images} images; first {first:.1f} s with {asked[0]:,} forward passes, then "
        f"{others:.1f} s, {1000 * each:.1f} ms an image and setting; mean IoU "
        f"{tried.scores[0]:.3f} as set, {tried.scores[tried.winner]:.3f} found"
    )
    rates = {
        "first setting, images": [args.images / first],
        "settings judged, images": [1 / each],
    }
    print_results(args.model, rates, ratios)
    write_json(args.json, vars(args), {args.model: {"ratios": [as_dict(r) for r in ratios]}})


if __name__ == "__main__":
    main()
