"""How few forward passes LIME can do with: designs against lime's own coin flips.

    python -m benchmarks.frugality --data DATA --checkpoint FILE.safetensors
        [--images 10] [--draws 4] [--store FOLDER] [--backend openvino] [--json FILE] [--plot FILE]

        [--surrogate ridge|bayesian_ridge|glime|kernel_shap]

Every explanation is held against that of a fresh reference, 10,000 independent samples of the same
image, both fitted as lime fits (or by the surrogate named; GLIME's and KernelSHAP's references are
drawn by their own designs): Spearman's correlation of the weights of the superpixels that hold
anything, and IoU of the salient masks (above 0.5 of the map scaled to [0, 1]). DATA is laid out
like COVID-QU-Ex, FILE a checkpoint of raybench. Answers are kept in the store: interrupted, it goes
on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from tqdm import tqdm

from raybench.answers import AnswerStore
from raybench.data import CovidQuEx
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.explain import Lime
from raybench.explain.perturbation import active_superpixels
from raybench.models.classifier import Classifier
from raybench.models.runtime import Runtime
from raybench.scoring.binarise import binarise
from raybench.scoring.overlap import iou
from raybench.types import AttributionMap, Gray

REFERENCE_SEED = 987_654
SIZES = {
    "independent": (128, 256, 512, 1000),
    "paired": (64, 128, 192, 256, 320, 384, 448, 512),
    "orthogonal": (64, 128, 192, 256, 320, 384, 448, 512),
    "completed": (64, 128, 192, 256, 320, 384, 448, 512),
}
OWN = {"glime": "bernoulli", "kernel_shap": "shapley"}
TOLERANCES = (0.2, 0.15, 0.1, 0.05)
LIME = ("independent", 1000)
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder laid out like COVID-QU-Ex")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of raybench")
    parser.add_argument("--images", type=int, default=10, help="COVID-19 test images")
    parser.add_argument("--draws", type=int, default=4, help="seeds of each design")
    parser.add_argument("--reference", type=int, default=10_000, help="its independent samples")
    parser.add_argument(
        "--surrogate", choices=("ridge", "bayesian_ridge", *OWN), default="ridge", help="all fitted"
    )
    parser.add_argument("--store", default="runs/answers", help="folder of the model's answers")
    parser.add_argument("--backend", choices=("torch", "openvino"), default="torch")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves there")
    return parser.parse_args()


def chosen_images(options: argparse.Namespace) -> list[Gray]:
    """Evenly spread over the COVID-19 test images that have an infection mask."""
    data = CovidQuEx.model_validate({"name": "covid_qu_ex", "root": options.data})
    records = [
        r
        for r in data.records()
        if (r.split, r.label) == ("Test", data.infection_class) and r.infection_mask
    ]
    spread = [records[int(i * len(records) / options.images)] for i in range(options.images)]
    return [Preprocess().apply(data.load(record)) for record in spread]


def designs(surrogate: str) -> dict[str, tuple[int, ...]]:
    """The designs held against each other, with their numbers of samples."""
    own = OWN.get(surrogate)
    return SIZES if own is None else {own: SIZES["completed"]}


def work(number: int, image: Gray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All explanations of one image, a row each."""
    import torch

    torch.set_num_threads(1)
    runtime = Runtime(backend=options.backend, n_threads=1)
    model = Classifier.from_checkpoint(options.checkpoint.read_bytes(), runtime=runtime)
    store = AnswerStore(options.store)

    def explained(**settings: Any) -> AttributionMap:
        lime = Lime.model_validate({"surrogate": options.surrogate, **settings})
        return lime.attribute(model, image, store=store)

    reference = explained(
        design=OWN.get(options.surrogate, "independent"),
        n_samples=options.reference,
        seed=REFERENCE_SEED,
        chunk=512,
    )
    rows = []
    for design, sizes in designs(options.surrogate).items():
        for seed in range(options.draws):
            for n in reversed(sizes):  # the largest first: the others begin alike
                found = explained(design=design, n_samples=n, seed=seed)
                rows.append({"design": design, "n_samples": n, **held(found, reference, image)})
    for tolerance in TOLERANCES if options.surrogate == "ridge" else ():
        for seed in range(options.draws):
            found = explained(n_samples=512, seed=seed, adaptive=tolerance)
            label = f"adaptive {tolerance}"
            rows.append({"design": label, "n_samples": 512, **held(found, reference, image)})
    return [{"image": number, **row} for row in rows]


def held(found: AttributionMap, reference: AttributionMap, image: Gray) -> dict[str, Any]:
    """An explanation held against the reference."""
    labels = reference.extras["superpixels"]
    grid = resize_gray(image, labels.shape)
    active = active_superpixels(grid, np.zeros_like(grid), labels)
    ours, theirs = found.extras["weights"], reference.extras["weights"]
    error = (ours - theirs)[active]
    both = np.hypot(found.extras["uncertainty"], reference.extras["uncertainty"])[active]
    return {
        "passes": found.n_forward,
        "spearman": float(spearmanr(ours[active], theirs[active])[0]),
        "iou": iou(binarise(found.values, 0.5), binarise(reference.values, 0.5)),
        "rmse": float(np.sqrt((error**2).mean()) / theirs[active].std()),
        "within_two_errors": float((np.abs(error) <= 2 * both).mean()),
        "n_active": int(active.sum()),
        "n_superpixels": len(active),
    }


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over images and draws."""
    figures = ["passes", "spearman", "iou", "rmse", "within_two_errors"]
    return rows.groupby(["design", "n_samples"], sort=False)[figures].mean().reset_index()


def by_lime(means: pd.DataFrame) -> Any:
    """The row of lime's own 1,000 samples; None where they are not among those held."""
    found = means[(means.design == LIME[0]) & (means.n_samples == LIME[1])]
    return None if found.empty else found.iloc[0]


def show(means: pd.DataFrame) -> None:
    lime = by_lime(means)
    table = Table("design", "samples", "passes", "Spearman", "IoU", "error", "within 2 s.e.", "")
    for row in means.itertuples():
        reached = (
            lime is not None
            and row.spearman >= lime.spearman
            and row.iou >= lime.iou
            and row.passes < lime.passes
        )
        table.add_row(
            row.design,
            str(row.n_samples),
            f"{row.passes:.0f}",
            f"{row.spearman:.3f}",
            f"{row.iou:.3f}",
            f"{row.rmse:.3f}",
            f"{row.within_two_errors:.2f}",
            "as lime at 1,000" if reached else "",
        )
    Console().print(table)


def plot(means: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    lime = by_lime(means)
    adaptive = means[means.design.str.startswith("adaptive")]
    for ax, key, name in zip(
        axes,
        ("spearman", "iou"),
        ("Spearman of the weights", "IoU of the salient masks"),
        strict=True,
    ):
        for design in SIZES | dict.fromkeys(OWN.values(), ()):
            part = means[means.design == design].sort_values("passes")
            if len(part):
                ax.plot(part.passes, part[key], marker="o", markersize=4, label=design)
        if len(adaptive):
            ax.plot(adaptive.passes, adaptive[key], "k^", markersize=5, label="completed, adaptive")
        if lime is not None:
            ax.axhline(lime[key], color="grey", linewidth=0.8, linestyle=":")
        ax.set_xlabel("distinct forward passes an image")
        ax.set_title(f"{name}, against the reference", fontsize=10)
    axes[1].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = arguments()
    os.environ.update(_MALLOC | {"OMP_NUM_THREADS": "1"})  # before any worker starts
    images = chosen_images(options)
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        waiting = [pool.submit(work, i, image, options) for i, image in enumerate(images)]
        for future in tqdm(waiting, desc="images", unit="image"):
            rows += future.result()
    means = summary(pd.DataFrame(rows))
    show(means)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.plot:
        plot(means, options.plot)


if __name__ == "__main__":
    main()
