"""What a step of the training loop costs beside the bare step on a batch that is there already.

    python -m benchmarks.training [--models NAME ...] [--threads 1 2] [--rounds 9] [--json FILE]

The loop takes its batch from uint8 images in memory, mirrors and rotates it, normalises it, and
goes forward, backward and through the optimiser, counting loss and score. The bare step has a
prepared batch and a network and optimiser of its own, and does the last three alone. They take
turns in one process, so that what else the machine does weighs on both. Goal: at most 1.10 of
the bare step's time. On a GPU the study's four backbones are taken, in the precision that a sweep
would choose, and images a second are worth reading too; on a CPU only the ratio is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks._timing import (
    Ratio,
    as_dict,
    interleave,
    median_ratio,
    n_cores,
    print_results,
    write_json,
)
from raybench.models.build import build
from raybench.models.checkpoint import Card
from raybench.models.runtime import keep_memory
from raybench.training.batches import Images
from raybench.training.loop import Trainer
from raybench.training.recipe import Recipe
from raybench.training.step import Arithmetic, settle_precision
from raybench.training.task import Classify

GOAL = 1.10
TASK = Classify(("COVID-19", "Non-COVID", "Normal"))
STUDY = ("vgg16", "densenet121", "densenet201", "convnext_base")
Slice = Callable[[int], float]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--models", nargs="+", default=STUDY if on_gpu else ("tf_efficientnet_lite0",)
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if on_gpu else "cpu")
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    parser.add_argument("--compile", action="store_true", help="both, by torch.compile")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch-size", type=int, default=32 if on_gpu else 16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch, on a CPU")
    parser.add_argument("--steps", type=int, default=20 if on_gpu else 1, help="a slice of a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="of this process, in place of the clock: for a busy machine, one thread, no GPU",
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def timed(work: Callable[[], object], args: argparse.Namespace) -> float:
    """Images a second."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.device == "cuda":
        torch.cuda.synchronize()
    started = clock()
    work()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return float(args.steps * args.batch_size / (clock() - started))


def the_loop(name: str, args: argparse.Namespace) -> Slice:
    """An epoch of `--steps` batches, as `Trainer` trains it."""
    recipe = Recipe.model_validate(
        {
            "name": name,
            "weights": "none",
            "input_size": args.size,
            "batch_size": args.batch_size,
            "phases": [{"unfreeze": "full", "epochs": 1, "lr": 1e-5}],
        }
    )
    torch.manual_seed(0)
    arithmetic = Arithmetic(args.precision, args.compile)
    card = Card(name, TASK.classes, recipe.size)
    trainer = Trainer(TASK, TASK.network(recipe), recipe, card, 0, args.device, arithmetic)
    n = args.steps * args.batch_size
    images = Images(
        torch.randint(0, 256, (n, args.size, args.size), dtype=torch.uint8),
        torch.randint(0, 3, (n,)),
    )
    optimizer, _ = trainer.set_up(recipe.phases[0], images)
    return lambda number: timed(lambda: trainer.train_epoch(number, optimizer, images), args)


def the_bare_step(name: str, args: argparse.Namespace) -> Slice:
    """As many steps on one batch."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    net: Any = build(name, 3).to(device, memory_format=torch.channels_last).train()
    run = torch.compile(net) if args.compile else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-5)
    batch = torch.randn((args.batch_size, 3, args.size, args.size), device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    wanted = torch.randint(0, 3, (args.batch_size,), device=device)
    dtype = settle_precision(args.precision, device)
    scaler = torch.amp.GradScaler(args.device, enabled=dtype == torch.float16)

    def low() -> AbstractContextManager[Any]:
        return nullcontext() if dtype == torch.float32 else torch.autocast(args.device, dtype)

    def work() -> None:
        for _ in range(args.steps):
            with low():
                outputs = run(batch)
            loss = functional.cross_entropy(outputs.float(), wanted)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return lambda _: timed(work, args)


def main() -> None:
    """Each model with each number of threads."""
    args = arguments()
    keep_memory()
    found: dict[str, Any] = {}
    one = args.device == "cuda" or args.cpu_time
    counts = [1] if one else [n for n in args.threads if n <= n_cores()]
    for name in args.models:
        for threads in counts:
            torch.set_num_threads(threads)
            rates = interleave(
                {"raybench's loop": the_loop(name, args), "bare step": the_bare_step(name, args)},
                args.rounds,
            )
            ratio = Ratio(
                "the loop's time by the bare step's",
                median_ratio(rates, "bare step", "raybench's loop"),
                high=GOAL,
            )
            where = "on a GPU" if args.device == "cuda" else f"threads: {threads}"
            print_results(f"{name}, {where}", rates, [ratio], "images a second")
            found[f"{name}, {where}"] = {"rates": rates, "ratios": [as_dict(ratio)]}
    write_json(args.json, vars(args), found)


if __name__ == "__main__":
    main()
