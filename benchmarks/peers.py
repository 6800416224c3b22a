"""LIME and Grad-CAM against their peers and against bare forward passes, on this machine's CPU.

    python -m benchmarks.peers [--models ...] [--image FILE] [--checkpoint FILE.safetensors]

The same model, image and superpixels for all. raybench and the bare passes run as a sweep runs
them, a single-threaded process a core with the workers' allocator settings; the peers as their
users run them, one process with torch's default threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks._competitors import Peers, Worker, as_units
from benchmarks._timing import (
    ROOT,
    Crew,
    Ratio,
    as_dict,
    bar_plot,
    interleave,
    median_ratio,
    n_cores,
    print_results,
    write_json,
)
from raybench.cli.cluster import WORKER_ENV
from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.explain import Lime
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, read_card, save_checkpoint
from raybench.models.runtime import CPU_BATCH
from raybench.types import Gray, Subject

TARGETS = {"tf_efficientnet_lite0": 3.0, "densenet121": 1.3}
"""How many times lime's rate, every sample asked."""

BARE = 1.08
"""Time of raybench by that of the bare passes at the best setting, at most."""

Turn = Callable[[int], float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=list(TARGETS))
    parser.add_argument("--checkpoint", type=Path, help="of raybench, in place of --models")
    parser.add_argument("--image", type=Path, help="a grey image; default: a phantom")
    parser.add_argument("--samples", type=int, default=1000, help="of raybench's LIME")
    parser.add_argument("--peer-samples", type=int, default=200, help="of each peer, all rounds")
    parser.add_argument("--cams", type=int, default=80, help="Grad-CAM maps, all rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument(
        "--backends",
        nargs="+",
        default=["folded", "torch"],
        help="the first one's figures are held to the targets",
    )
    parser.add_argument("--workers", type=int, default=n_cores())
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "peers.png")
    parser.add_argument("--json", type=Path)
    found = parser.parse_args()
    for name in ("samples", "peer_samples", "cams", "rounds", "workers"):
        if getattr(found, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1")
    return found


def checkpoint(name: str) -> bytes:
    """Random weights: the speed is that of any."""
    torch.manual_seed(0)
    card = Card(name, ("COVID-19", "Non-COVID", "Normal"), backbone(name).input_size)
    return save_checkpoint(build(name, 3), card)


def picture(path: Path | None, size: tuple[int, int]) -> Gray:
    """The image at the model's size: a lung-masked phantom where no file is named."""
    if path is not None:
        read = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if read is None:
            raise SystemExit(f"--image: {path} is no image")
        return resize_gray(read, size)
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=256)
    return resize_gray(Preprocess().apply(data.load(data.records()[0])), size)


def lime_turn(crew: Crew, args: argparse.Namespace, subject: Subject, **settings: Any) -> Turn:
    """A slice of an explanation's units for each worker; samples stood for a second.

    Planning and fitting the whole are timed once (the fit on made-up answers, which cost the same)
    and charged by share, so equal perturbed images are found among all samples. Where the units
    do not fill every round, they come round again: no worker idles, as none does in a sweep.
    """
    backend = settings.pop("backend", "torch")
    superpixels = Lime().superpixels.segment(subject.image)
    drawn: dict[str, Any] = {"n_samples": args.samples, "design": "independent", **settings}
    n_asked = sum(u.n_forward for u in as_units(Lime(**drawn), subject, superpixels))
    share = -(-n_asked // (args.rounds * args.workers))
    batch = CPU_BATCH[backend]
    whole = -(-share // batch) * batch  # whole batches, as a sweep's units are
    explainer = Lime(**drawn, chunk=whole)
    started = time.perf_counter()
    units = as_units(explainer, subject, superpixels)
    made_up = {u.name: {"answers": np.full((u.n_forward, 3), 1 / 3)} for u in units}
    explainer.merge(subject, {"superpixels": {"labels": superpixels}, **made_up})
    aside = (time.perf_counter() - started) / n_asked

    def turn(number: int) -> float:
        start = number * args.workers
        own = [units[(start + i) % len(units)] for i in range(args.workers)]
        seconds, _ = crew.ask([("lime", backend, explainer, [one]) for one in own])
        n = sum(unit.n_forward for unit in own)
        return args.samples * n / n_asked / (seconds + aside * n)

    return turn


def bare_turn(crew: Crew, args: argparse.Namespace, backend: str, size: int) -> Turn:
    """Whole batches of as many images as a round of LIME asks, or nearly."""
    each = max(1, round(args.samples / args.rounds / args.workers / size))

    def turn(number: int) -> float:
        seconds, _ = crew.ask([("bare", backend, each, size)] * args.workers)
        return each * size * args.workers / seconds

    return turn


def peer_turn(crew: Crew, kind: str, n: int, *order: Any, seeded: bool = True) -> Turn:
    """A slice of a peer."""

    def turn(number: int) -> float:
        seconds, _ = crew.ask([(kind, n, *((number,) if seeded else ()), *order)])
        return n / seconds

    return turn


def cam_turn(crew: Crew, args: argparse.Namespace, together: bool) -> Turn:
    """A slice of Grad-CAM maps."""
    each = max(1, args.cams // args.rounds // args.workers)

    def turn(number: int) -> float:
        seconds, _ = crew.ask([("grad_cam", "torch", each, together)] * args.workers)
        return each * args.workers / seconds

    return turn


def turns(
    args: argparse.Namespace, workers: Crew, peers: Crew, subject: Subject
) -> tuple[dict[str, Turn], dict[str, Turn]]:
    """Who takes turns: for LIME, and for Grad-CAM."""
    n = max(10, args.peer_samples // args.rounds)
    lime: dict[str, Turn] = {
        "lime": peer_turn(peers, "lime", n),
        "captum, 1 at a time": peer_turn(peers, "captum", n, 1),
        "captum, 32 at a time": peer_turn(peers, "captum", n, 32),
    }
    for backend in args.backends:
        every = {"backend": backend, "deduplicate": False}
        lime[f"raybench, {backend}"] = lime_turn(workers, args, subject, **every)
        for size in args.batches:
            lime[f"bare, {backend}, batch {size}"] = bare_turn(workers, args, backend, size)
    first = args.backends[0]
    lime[f"raybench, {first}, equal ones once"] = lime_turn(workers, args, subject, backend=first)
    cam: dict[str, Turn] = {
        "grad-cam, 1 at a time": peer_turn(
            peers, "grad_cam", max(1, args.cams // args.rounds), seeded=False
        ),
        "raybench, 1 at a time": cam_turn(workers, args, False),
        "raybench, in batches": cam_turn(workers, args, True),
    }
    return lime, cam


def compare(
    name: str, lime: dict[str, list[float]], cam: dict[str, list[float]], backends: list[str]
) -> list[Ratio]:
    """The ratios that are claimed, beside their targets."""
    ours, once = f"raybench, {backends[0]}", f"raybench, {backends[0]}, equal ones once"
    found = [Ratio("raybench by lime", median_ratio(lime, ours, "lime"), low=TARGETS.get(name))]
    for peer in ("captum, 1 at a time", "captum, 32 at a time"):
        found.append(Ratio(f"raybench by {peer}", median_ratio(lime, ours, peer)))
    found.append(Ratio("raybench, equal ones once, by lime", median_ratio(lime, once, "lime")))
    for backend in backends:
        bare = [key for key in lime if key.startswith(f"bare, {backend},")]
        best = max(bare, key=lambda key: statistics.median(lime[key]))
        time_by_time = median_ratio(lime, best, f"raybench, {backend}")
        found.append(Ratio(f"time of raybench, {backend}, by {best}", time_by_time, high=BARE))
        if backend != backends[0]:
            gain = median_ratio(lime, f"raybench, {backend}", "lime")
            found.append(Ratio(f"raybench, {backend}, by lime", gain))
    batched = median_ratio(cam, "raybench, in batches", "grad-cam, 1 at a time")
    return [*found, Ratio("Grad-CAM in batches by grad-cam", batched)]


def race(name: str, data: bytes, size: tuple[int, int], args: argparse.Namespace) -> dict[str, Any]:
    """All rounds for one model."""
    image = picture(args.image, size)
    subject = Subject("image", image, None, size)
    superpixels = Lime().superpixels.segment(image)
    workers = Crew(args.workers, Worker, (data, image), WORKER_ENV)
    peers = Crew(1, Peers, (data, image, superpixels))
    try:
        of_lime, of_cam = turns(args, workers, peers, subject)
        lime, cam = interleave(of_lime, args.rounds), interleave(of_cam, args.rounds)
    finally:
        workers.close()
        peers.close()
    ratios = compare(name, lime, cam, args.backends)
    print_results(f"{name}: LIME samples, Grad-CAM maps", {**lime, **cam}, ratios)
    return {"lime": lime, "grad_cam": cam, "ratios": [as_dict(ratio) for ratio in ratios]}


def main() -> None:
    """Race every model."""
    args = arguments()
    found: dict[str, Any] = {}
    if args.checkpoint is not None:
        card = read_card(str(args.checkpoint))
        data = args.checkpoint.read_bytes()
        found[card.backbone] = race(card.backbone, data, card.input_size, args)
    else:
        for name in args.models:
            found[name] = race(name, checkpoint(name), backbone(name).input_size, args)
    bar_plot(args.plot, {name: one["lime"] for name, one in found.items()}, "samples a second")
    write_json(args.json, vars(args), found)


if __name__ == "__main__":
    main()
