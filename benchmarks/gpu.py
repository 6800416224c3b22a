"""How near LIME comes to the bare forward pass of its classifier, on one GPU (or a CPU).

    python -m benchmarks.gpu [--model convnext_base] [--samples 1000] [--images 20] [--json FILE]

Needs torch, timm and raybench; no Ray, no data, no weights: phantom X-rays and a network as it is
drawn. For each image the engine (plan, perturb, predict, fit, paint) and as many bare passes of the
same network are timed one after the other, in the same run, so that the ratio does not depend on
what else the machine does. Superpixels are computed ahead by processes on the CPU, as a sweep's
helpers do; how long the device had to wait for them is told apart.

Goal on a GPU: at least 0.85 of the bare throughput. A run takes minutes there; on a CPU
`--model test_resnet --samples 64 --images 2` ends in seconds and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from raybench.data import Phantom
from raybench.data.preprocess import resize_gray
from raybench.errors import RaybenchError
from raybench.explain import Lime
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.classifier import Classifier
from raybench.models.forward import make_forward, padded
from raybench.models.runtime import Runtime
from raybench.types import Arrays, Gray, Subject

STUDY_PASSES = 583 * 4 * 1000
GOAL = 0.85


@dataclass(frozen=True)
class Timing:
    """One image: seconds of waiting for its superpixels, of the engine, and of bare passes."""

    n_forward: int
    waited: float
    engine: float
    bare: float


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--model", default="convnext_base", help="a backbone of timm")
    parser.add_argument("--samples", type=int, default=1000, help="perturbations an image")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--device", choices=("cuda", "cpu"), default=there)
    parser.add_argument("--backend", choices=("torch", "compile", "openvino"), default="torch")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--batch-size", type=int, help="default: what is fastest on a GPU")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(argv)
    if options.device == "cuda" and there != "cuda":
        parser.error("--device cuda: torch sees no CUDA device here; choose --device cpu")
    if options.images < 1 or options.samples < 10:
        parser.error("expected --images of at least 1 and --samples of at least 10")
    return options


def make_classifier(options: argparse.Namespace) -> Classifier:
    """Weights as they are drawn: they cost what trained ones cost."""
    facts = backbone(options.model)
    torch.manual_seed(0)
    net = build(options.model, 3).eval().to(memory_format=torch.channels_last)
    runtime = Runtime(options.backend, options.precision, options.batch_size, options.threads)
    return Classifier(
        net, facts.input_size, facts.mean, facts.std, device=options.device, runtime=runtime
    )


def phantoms(n: int, size: tuple[int, int]) -> Iterator[Gray]:
    """Whole X-rays, not lung-masked: every superpixel changes something, no question repeats."""
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=n, size=256)
    for record in data.records():
        if record.split == "Test" and record.label == data.infection_class:
            yield resize_gray(data.load(record).image, size)


def without_model(lime: Lime, subject: Subject) -> dict[str, Arrays]:
    """What an image's explanation needs before the classifier: in a process of the pool."""
    done: dict[str, Arrays] = {}
    while units := [u for u in lime.plan(subject, done) if not u.needs_model]:
        done |= {unit.name: lime.run(unit, None) for unit in units}
    return done


def explain(lime: Lime, subject: Subject, done: dict[str, Arrays], model: Classifier) -> int:
    """The rest of it; returns the number of forward passes."""
    while units := lime.plan(subject, done):
        done = done | {unit.name: lime.run(unit, model) for unit in units}
    return lime.merge(subject, done).n_forward


def bare_passes(model: Classifier) -> Callable[[int], None]:
    """Passes so many images of a batch that is there already; what comes out is thrown away."""
    size = model.batch_size
    batch = torch.randn((size, 3, *model.input_size), device=model.device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    forward = make_forward(model.net, model.runtime, model.device)
    if model.runtime.backend == "compile":
        forward = padded(forward, size)

    def run(n: int) -> None:
        with torch.inference_mode():
            for start in range(0, n, size):
                forward(batch[: min(size, n - start)])

    return run


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(options: argparse.Namespace, model: Classifier) -> list[Timing]:
    # One unit an image: a chunk smaller than the batch size would cut the batches short.
    lime = Lime(n_samples=options.samples, chunk=options.samples)
    images = list(phantoms(options.images, model.input_size))
    subjects = [Subject(f"{i}", image, None, image.shape) for i, image in enumerate(images)]
    spawn = multiprocessing.get_context("spawn")
    n_processes = max(1, min(8, (os.cpu_count() or 2) - 1, len(subjects)))
    timings = []
    with ProcessPoolExecutor(n_processes, mp_context=spawn) as pool:
        ahead = [pool.submit(without_model, lime, subject) for subject in subjects]
        print(f"batch size {model.batch_size}", flush=True)
        bare = bare_passes(model)
        explain(lime, subjects[0], ahead[0].result(), model)
        bare(options.samples)
        for number, (subject, future) in enumerate(zip(subjects, ahead, strict=True)):
            started = time.perf_counter()
            done = future.result()
            waited = time.perf_counter() - started
            timings.append(_one(lime, subject, done, model, bare, number, waited))
    return timings


def _one(
    lime: Lime,
    subject: Subject,
    done: dict[str, Arrays],
    model: Classifier,
    bare: Callable[[int], None],
    number: int,
    waited: float,
) -> Timing:
    passes: list[int] = []

    def engine() -> None:
        passes.append(explain(lime, subject, done, model))

    if number % 2:  # turn about, so that neither always comes after the other
        n = n_passes(lime, subject, done)
        bare_seconds = seconds_of(lambda: bare(n), model.device)
        engine_seconds = seconds_of(engine, model.device)
    else:
        engine_seconds = seconds_of(engine, model.device)
        bare_seconds = seconds_of(lambda: bare(passes[0]), model.device)
    return Timing(passes[0], waited, engine_seconds, bare_seconds)


def n_passes(lime: Lime, subject: Subject, done: dict[str, Arrays]) -> int:
    """Forward passes that an image is about to cost."""
    return sum(unit.n_forward for unit in lime.plan(subject, done))


def figures(options: argparse.Namespace, model: Classifier, timings: list[Timing]) -> dict:
    passes = sum(t.n_forward for t in timings)
    engine, bare = sum(t.engine for t in timings), sum(t.bare for t in timings)
    waited = sum(t.waited for t in timings)
    on_gpu = model.device.type == "cuda"
    peak = (
        torch.cuda.max_memory_allocated(model.device)
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "model": options.model,
        "backend": options.backend,
        "precision": options.precision,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "batch_size": model.batch_size,
        "n_images": len(timings),
        "n_forward": passes,
        "engine_per_second": passes / engine,
        "bare_per_second": passes / bare,
        "ratio": bare / engine,
        "ratio_median": statistics.median(t.bare / t.engine for t in timings),
        "ratio_with_waiting": bare / (engine + waited),
        "waited_seconds": waited,
        "peak_memory_gib": peak / 2**30,
        "study_hours": STUDY_PASSES / (passes / (engine + waited)) / 3600,
        "images": [asdict(t) for t in timings],
    }


def show(found: dict, on_gpu: bool) -> None:
    kind = "device" if on_gpu else "process"
    print(f"{found['model']}, {found['backend']}, {found['precision']}, on {found['device']}")
    print(f"engine  {found['engine_per_second']:>10,.1f} passes a second")
    print(f"bare    {found['bare_per_second']:>10,.1f} passes a second")
    verdict = ""
    if on_gpu:
        verdict = " (goal reached)" if found["ratio"] >= GOAL else f" (goal: {GOAL})"
    print(f"ratio   {found['ratio']:>10.3f}{verdict}, median {found['ratio_median']:.3f}")
    print(
        f"waiting {found['waited_seconds']:>10.2f} s for superpixels, ratio with it "
        f"{found['ratio_with_waiting']:.3f}"
    )
    print(f"memory  {found['peak_memory_gib']:>10.2f} GiB of the {kind} at most")
    print(
        f"study   {found['study_hours']:>10.2f} h for 583 images x 4 backbones x 1,000, were each "
        "backbone like this one"
    )


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        model = make_classifier(options)
        found = figures(options, model, measure(options, model))
    except RaybenchError as error:
        print(error, file=sys.stderr)
        return 1
    show(found, model.device.type == "cuda")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
