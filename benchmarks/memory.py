"""Peak memory of a worker over many images against few: it has to stay flat.

python -m benchmarks.memory [--many 200] [--few 20]
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks._timing import ROOT, Crew, Ratio, as_dict, bar_plot, print_results, write_json
from raybench.cli.cluster import WORKER_ENV
from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.executor import Job, run_jobs
from raybench.executor.local import LocalPool
from raybench.explain import GradCam, Lime
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.types import Subject

TARGET = 1.10
_SIZE = (64, 64)


class Explaining:
    """Explains phantoms in this process and says how large it grew."""

    def __call__(self, n_images: int, n_samples: int) -> float:
        """Peak resident memory, MiB, after so many images.

        Raises:
            RuntimeError: a map failed, so that the figure would say nothing.
        """
        torch.manual_seed(0)
        card = Card("test_efficientnet", ("COVID-19", "Non-COVID", "Normal"), _SIZE)
        data = save_checkpoint(build(card.backbone, 3), card)
        pool = LocalPool(lambda key: data, 1)
        n_done = 0
        for outcome in run_jobs(_jobs(n_images, n_samples), pool):
            if outcome.error is not None:
                raise RuntimeError(f"{outcome.key}: {outcome.error}")
            n_done += 1
        pool.close()
        if n_done != 2 * n_images:
            raise RuntimeError(f"{n_done} maps of {n_images} images, expected {2 * n_images}")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _jobs(n_images: int, n_samples: int) -> Iterator[Job]:
    each = -(-n_images // 3)
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=each, size=128)
    records = [record for record in data.records() if record.split == "Test"][:n_images]
    for record in records:
        xray = data.load(record)
        image = resize_gray(Preprocess().apply(xray), _SIZE)
        subject = Subject(record.image_id, image, xray.lung_mask, (128, 128))
        for task in (Lime(n_samples=n_samples), GradCam()):
            yield Job((record.image_id, task.title), task, subject, "tiny")


def peak(n_images: int, n_samples: int) -> float:
    """Peak of a fresh process, MiB."""
    crew = Crew(1, Explaining, (), WORKER_ENV)
    try:
        return float(crew.ask([(n_images, n_samples)])[1][0])
    finally:
        crew.close()


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--many", type=int, default=200, help="images")
    parser.add_argument("--few", type=int, default=20, help="images")
    parser.add_argument("--samples", type=int, default=50, help="of LIME, each image")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "memory.png")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not 0 < args.few < args.many:
        parser.error(f"--few: expected 1 to {args.many - 1} (below --many), found {args.few}")
    peaks = {f"{n} images": [peak(n, args.samples)] for n in (args.few, args.many)}
    few, many = (found[0] for found in peaks.values())
    ratio = Ratio(f"peak of {args.many} images by that of {args.few}", many / few, high=TARGET)
    print_results("Peak resident memory of a worker, MiB", peaks, [ratio], "MiB")
    bar_plot(args.plot, {"Peak memory of a worker": peaks}, "MiB")
    write_json(
        args.json, vars(args), {"test_efficientnet": {"mib": peaks, "ratios": [as_dict(ratio)]}}
    )


if __name__ == "__main__":
    main()
