"""Interleaved rounds, worker processes, tables and plots, for all benchmarks."""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure with its target: at least `low`, or at most `high`, or neither."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def target(self) -> str:
        """The target in words."""
        if self.low is not None:
            return f"at least {self.low:g}"
        return "" if self.high is None else f"at most {self.high:g}"

    @property
    def met(self) -> str:
        """`yes`, `no`, or nothing where there is no target."""
        if self.low is None and self.high is None:
            return ""
        low, high = self.low, self.high
        return (
            "yes"
            if (low is None or self.value >= low) and (high is None or self.value <= high)
            else "no"
        )


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else "?", "cores": n_cores(), "torch": torch.__version__}


def interleave(
    competitors: Mapping[str, Callable[[int], float]], rounds: int
) -> dict[str, list[float]]:
    """Rates of every competitor in every round.

    Args:
        competitors: each does the slice of a round and returns what it did a second. All of them
            take turns within a round, from another first one each time, after a round to warm up.
    """
    names = list(competitors)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        competitors[name](0)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rates[name].append(competitors[name](number))
    return rates


def median_ratio(rates: Mapping[str, Sequence[float]], above: str, below: str) -> float:
    """Median over rounds of one competitor's rate by another's."""
    pairs = zip(rates[above], rates[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _serve(pipe: Connection, factory: Callable[..., Callable[..., Any]], args: Any) -> None:
    try:
        handler = factory(*args)
        while (order := pipe.recv()) is not None:
            pipe.send((handler(*order), None))
    except EOFError:
        return
    except Exception:
        pipe.send((None, traceback.format_exc()))


class Crew:
    """Fresh processes that wait for orders.

    Args:
        n: how many.
        factory: called in each with `args`; what it returns is called with every order.
        env: set before they start, which the allocator needs.
    """

    def __init__(
        self,
        n: int,
        factory: Callable[..., Callable[..., Any]],
        args: Sequence[Any],
        env: Mapping[str, str] | None = None,
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        before = dict(os.environ)
        os.environ.update(env or {})
        self._members = []
        try:
            for _ in range(n):
                here, there = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(there, factory, args), daemon=True)
                process.start()
                there.close()
                self._members.append((process, here))
        finally:
            os.environ.clear()
            os.environ.update(before)

    def ask(self, orders: Sequence[tuple[Any, ...]]) -> tuple[float, list[Any]]:
        """An order for each process; seconds until the last has answered, and the answers."""
        if len(orders) != len(self._members):
            raise ValueError(f"{len(orders)} orders for {len(self._members)} processes")
        started = time.perf_counter()
        for (_, pipe), order in zip(self._members, orders, strict=True):
            pipe.send(order)
        replies = [pipe.recv() for _, pipe in self._members]
        seconds = time.perf_counter() - started
        for _, error in replies:
            if error is not None:
                raise RuntimeError(f"a worker failed:\n{error}")
        return seconds, [answer for answer, _ in replies]

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._members:
            if process.is_alive():
                pipe.send(None)
            process.join(10)
            pipe.close()


def print_results(
    title: str,
    rates: Mapping[str, Sequence[float]],
    ratios: Sequence[Ratio],
    unit: str = "a second",
) -> None:
    """Two tables: what each did a second, and the ratios beside their targets."""
    console = Console()
    table = Table("", f"{unit}, median", "each round", title=title)
    for name, found in rates.items():
        each = " ".join(f"{rate:.3g}" for rate in found)
        table.add_row(name, f"{statistics.median(found):.1f}", each)
    console.print(table)
    table = Table("ratio, median of rounds", "", "target", "met")
    for ratio in ratios:
        table.add_row(ratio.name, f"{ratio.value:.2f}", ratio.target, ratio.met)
    console.print(table)


def bar_plot(path: Path, panels: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> None:
    """Medians as horizontal bars, a panel a model."""
    from matplotlib.figure import Figure

    from raybench.report.style import COLOURS, clean, png

    rows = max(len(rates) for rates in panels.values())
    figure = Figure(figsize=(6 * len(panels), 1 + 0.35 * rows), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, rates) in zip(axes, panels.items(), strict=True):
        names = list(rates)[::-1]
        colours = [
            COLOURS[1] if n.startswith("raybench") else COLOURS[5 if n[:4] == "bare" else 0]
            for n in names
        ]
        bars = ax.barh(names, [statistics.median(rates[n]) for n in names], color=colours)
        ax.bar_label(bars, fmt="%.1f", padding=3)
        ax.set_title(title)
        ax.set_xlabel(unit)
        clean(ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(figure))


def write_json(path: Path | None, settings: Mapping[str, Any], models: Mapping[str, Any]) -> None:
    """Everything measured, where a file was asked for."""
    if path is not None:
        told = {"machine": machine(), "settings": dict(settings), "models": dict(models)}
        path.write_text(json.dumps(told, indent=2, default=str) + "\n")


def as_dict(ratio: Ratio) -> dict[str, Any]:
    """A ratio for JSON."""
    return {**asdict(ratio), "met": ratio.met}
