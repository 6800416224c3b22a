"""Do perturbed X-rays still look like X-rays? Fills against each other, in the model's own eyes.

    python -m benchmarks.fills --data DATA --checkpoint FILE.safetensors
        [--images 26] [--perturbed 32] [--json FILE] [--plot FILE]

Each COVID-19 test image is perturbed by lime's coin flips over its superpixels, with every fill in
turn. The distance of a perturbed image is that of its features, as the classifier's last layer sees
them, to those of the nearest training image (cosine, 0 to 2) that lent no fill any pixels;
untouched test images stand beside, held against the same training images.
DATA is laid out like COVID-QU-Ex. The pictures of the plot are phantoms.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks._timing import write_json
from raybench.data import CovidQuEx
from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.explain.fills import AnyFill, Black, Blur, Inpaint, Mean, Neighbour, Noise
from raybench.explain.neighbours import Bank, distances, pixel_features
from raybench.explain.perturbation import active_superpixels, coin_flips, render
from raybench.explain.superpixels import Quickshift
from raybench.models.classifier import Classifier
from raybench.models.runtime import Runtime, keep_memory
from raybench.types import ChestXray, Dataset, Gray, Split, Subject

FILLS: dict[str, AnyFill] = {
    "black": Black(),
    "mean": Mean(),
    "blur": Blur(),
    "inpaint": Inpaint(),
    "noise": Noise(),
    "neighbour (KP-LIME)": Neighbour(),
    "5 neighbours, turns (K*LIME)": Neighbour(n=5),
    "5 neighbours, mean": Neighbour(n=5, combine="mean"),
    "neighbour, Normal": Neighbour(among="Normal"),
}
N_NEIGHBOURS = 5


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="a folder laid out like COVID-QU-Ex")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint of raybench")
    parser.add_argument("--images", type=int, default=26, help="COVID-19 test images")
    parser.add_argument("--perturbed", type=int, default=32, help="perturbations of each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there")
    return parser.parse_args()


class Source:
    """A data set's preprocessed images, and the bank of its training images."""

    def __init__(self, data: Dataset, size: tuple[int, int], model: Classifier | None) -> None:
        self._data, self._size, self._model = data, size, model
        self.train = self.of("Train")
        labels = [record.label for record in self.train]
        patients = [record.patient for record in self.train]
        self.features = self.embed([self.image(record)[0] for record in self.train])
        self.bank = Bank(self.features, lambda i: self.image(self.train[i]), labels, patients)

    def of(self, split: Split) -> list[Any]:
        """Records of a split."""
        return [record for record in self._data.records() if record.split == split]

    def image(self, record: Any) -> tuple[Gray, Any]:
        """Preprocessed, at the data set's own size, with its lungs."""
        xray: ChestXray = self._data.load(record)
        return Preprocess().apply(xray), xray.lung_mask

    def embed(self, images: list[Gray]) -> NDArray[np.float32]:
        """Features, the model's or those of pixels."""
        if self._model is None:
            return pixel_features(images)
        return self._model.embed(np.stack([resize_gray(image, self._size) for image in images]))

    def subject(
        self, record: Any
    ) -> tuple[Subject, dict[str | None, NDArray[np.uint8]], NDArray[np.float32]]:
        """A record on the model's grid, its neighbours by the class they are taken from, and the
        features of all other training images."""
        full, lungs = self.image(record)
        image = resize_gray(full, self._size)
        feature = self.embed([full])[0]
        asked = (feature, N_NEIGHBOURS, record.patient)
        near = {a: self.bank.neighbours(image, lungs, *asked, a) for a in (None, "Normal")}
        lent = [number for a in near for number in self.bank.nearest(*asked, a)]
        subject = Subject(record.image_id, image, lungs, (full.shape[0], full.shape[1]))
        return subject, near, np.delete(self.features, lent, axis=0)


def perturbed(
    subject: Subject, near: NDArray[np.uint8], fill: AnyFill, n: int
) -> tuple[NDArray[np.uint8], float]:
    """Perturbed images `[n, h, w]` and seconds that drawing the fill took."""
    superpixels = Quickshift().segment(subject.image)
    started = time.perf_counter()
    fills = fill.draw(replace(subject, neighbours=near), superpixels)
    seconds = time.perf_counter() - started
    keep = coin_flips(n + 1, int(superpixels.max()) + 1, 0)[1:]
    assert active_superpixels(subject.image, fills, superpixels).any()
    return render(subject.image, fills, superpixels, keep, np.arange(n) % len(fills)), seconds


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Distances of the perturbed images of every fill, by image."""
    runtime = Runtime(backend="auto")
    model = Classifier.from_checkpoint(args.checkpoint.read_bytes(), runtime=runtime)
    data = CovidQuEx.model_validate({"name": "covid_qu_ex", "root": args.data})
    source = Source(data, model.input_size, model)
    pool = [r for r in source.of("Test") if r.label == data.infection_class and r.infection_mask]
    n_images = min(args.images, len(pool))
    chosen = [pool[i * len(pool) // n_images] for i in range(n_images)]
    found: dict[str, list[float]] = {"untouched": []}
    seconds: dict[str, list[float]] = {}
    for record in tqdm(chosen, desc="images", unit="image"):
        subject, near, others = source.subject(record)
        untouched = model.embed(subject.image[None])
        found["untouched"].append(float(distances(untouched, others)[0]))
        for name, fill in FILLS.items():
            among = getattr(fill, "among", None)
            shown, took = perturbed(subject, near[among], fill, args.perturbed)
            away = distances(model.embed(shown), others)
            found.setdefault(name, []).append(float(away.mean()))
            seconds.setdefault(name, []).append(took)
    return {"distance": found, "seconds": seconds}


def show(found: dict[str, Any]) -> None:
    """The table of the docs."""
    table = Table("fill", "distance, mean", "a tenth below", "a tenth above", "ms to draw")
    for name, away in found["distance"].items():
        took = found["seconds"].get(name)
        low, high = np.quantile(away, [0.1, 0.9])
        table.add_row(
            name,
            f"{np.mean(away):.4f}",
            f"{low:.4f}",
            f"{high:.4f}",
            "" if took is None else f"{1000 * np.mean(took):.1f}",
        )
    Console().print(table)


def plot(found: dict[str, Any], path: Path) -> None:
    """Phantoms perturbed with every fill, above the distances."""
    from matplotlib.figure import Figure

    from raybench.report.style import COLOURS, clean, png

    data = Phantom(name="phantom", n_train=8, n_val=1, n_test=2, size=256)
    source = Source(data, (224, 224), None)
    subject, near, _ = source.subject(source.of("Test")[0])
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.0, 1.0])
    axes = above.subplots(2, len(FILLS) // 2 + 1).ravel()
    axes[0].imshow(subject.image, cmap="gray", vmin=0, vmax=255)
    axes[0].set_title("untouched", fontsize=8)
    for ax, (name, fill) in zip(axes[1:], FILLS.items(), strict=False):
        among = getattr(fill, "among", None)
        ax.imshow(perturbed(subject, near[among], fill, 3)[0][2], cmap="gray", vmin=0, vmax=255)
        ax.set_title(name, fontsize=8)
    for ax in axes:
        ax.set_axis_off()
    names = list(found["distance"])[::-1]
    means = [float(np.mean(found["distance"][name])) for name in names]
    ax = below.subplots()
    bars = ax.barh(names, means, color=[COLOURS[5 if n == "untouched" else 1] for n in names])
    ax.bar_label(bars, fmt="%.3f", padding=3)
    ax.set_xlabel("cosine distance to the nearest training image, in the classifier's features")
    clean(ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def main() -> None:
    """Measure, print, draw."""
    args = arguments()
    torch.set_num_threads(1)
    keep_memory()
    found = measure(args)
    show(found)
    write_json(args.json, vars(args), found)
    if args.plot:
        plot(found, args.plot)


if __name__ == "__main__":
    main()
