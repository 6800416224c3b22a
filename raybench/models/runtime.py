"""How a classifier is run: by what, in which precision, how many images at a time."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from raybench.errors import ModelError

Backend = Literal["auto", "torch", "folded", "compile", "openvino"]
Precision = Literal["float32", "bfloat16"]

CPU_BATCH: Mapping[Backend, int] = {"torch": 16, "folded": 32, "compile": 16, "openvino": 16}
"""Images a pass on a CPU: what was fastest with an allocator that keeps its memory. Fixed, so that
no figure depends on what a clock said."""

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of <malloc.h>
_MALLOC_OPTIONS = ((-3, 1 << 30), (-1, 1 << 30), (-2, 1 << 26))

# Where the search for a GPU's batch size begins and ends, and the gain that is worth a doubling.
_FIRST, _LAST, _WORTH = 16, 4096, 1.03

_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "bad_alloc",
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """How forward passes are made.

    Attributes:
        backend: `torch` runs the module as it is, `folded` a copy with its normalisations folded
            into its convolutions, `compile` through `torch.compile`, `openvino` converts it once
            (CPUs only); `auto` is `folded` on a CPU where the network allows it, else `torch`.
            Gradients always go through the module in float32.
        precision: of the arithmetic; `bfloat16` is autocast for torch, a hint for OpenVINO.
        batch_size: images a pass; None: `CPU_BATCH` on a CPU, what is fastest on a GPU.
        n_threads: of OpenVINO; None leaves it to OpenVINO. (torch's own are the process's.)

    Raises:
        ModelError: a value is not one of the above.
    """

    backend: Backend = "torch"
    precision: Precision = "float32"
    batch_size: int | None = None
    n_threads: int | None = None

    def __post_init__(self) -> None:
        valid: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("backend", self.backend, get_args(Backend)),
            ("precision", self.precision, get_args(Precision)),
        )
        for key, found, known in valid:
            if found not in known:
                raise ModelError(f"{key}: expected one of {', '.join(known)}, found {found!r}")
        for key, count in (("batch_size", self.batch_size), ("n_threads", self.n_threads)):
            if count is not None and count < 1:
                raise ModelError(f"{key}: expected a number of at least 1 or null, found {count}")


EAGER = Runtime()
"""The module as it is, in float32."""


def with_precision(checkpoint: str, precision: Precision) -> str:
    """The key of a model: a checkpoint's, with the precision that it is to run in."""
    return f"{checkpoint}@{precision}"


DRAWN = "~"
"""In a key what follows says which parameters are drawn anew (`models.randomise`)."""


def split_key(key: str) -> tuple[str, Precision | None]:
    """A model's key as the checkpoint that is read, and precision; None where it names none.

    Raises:
        ModelError: it names one that there is not.
    """
    named, at, precision = key.partition("@")
    checkpoint = named.partition(DRAWN)[0]
    if not at:
        return checkpoint, None
    for known in get_args(Precision):
        if precision == known:
            return checkpoint, known
    raise ModelError(
        f"{key}: expected a precision of {', '.join(get_args(Precision))} after the @, found "
        f"{precision!r}"
    )


def check_backend(backend: str, device: str) -> None:
    """Whether a backend can run here.

    Args:
        device: `cpu` or `cuda`, where the classifier is to run.

    Raises:
        ModelError: something that it needs is missing; the message says what to do.
    """
    if backend == "openvino":
        if device != "cpu":
            raise ModelError(
                "backend: openvino runs on CPUs only, and the classifier is to run on a GPU; "
                "choose torch or compile"
            )
        if importlib.util.find_spec("openvino") is None:
            raise ModelError(
                'backend: openvino is not installed; run pip install "raybench[openvino]", or '
                "choose torch or compile"
            )
    if backend == "compile" and device == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            raise ModelError(
                f"backend: compile needs a C++ compiler and there is no {compiler!r}; install one "
                "(Debian: apt install g++), name another in CXX, or choose torch or openvino"
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is out, in any of the ways that torch has of saying it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _MEMORY_WORDS)


def keep_memory() -> None:
    """Tell glibc to keep what is freed: given back after each layer, it costs page faults that take
    longer than the arithmetic. Without effect where there is no glibc."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    for option, value in _MALLOC_OPTIONS:
        libc.mallopt(option, value)


def release_memory() -> None:
    """Give what a failed pass has left in torch's cache back to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def best_batch_size(throughput: Callable[[int], float]) -> int:
    """The batch size worth having: doubled from 16 until that gains less than 3%.

    Args:
        throughput: images a second at a batch size; raises where memory is out.

    Returns:
        The last size that paid. Where memory is out at 16 already, 16: passes halve it then.
    """
    best, size, fastest = _FIRST, _FIRST, 0.0
    while size <= _LAST:
        try:
            found = throughput(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            found = 0.0
        if found < fastest * _WORTH or found == 0.0:
            break
        best, fastest, size = size, found, size * 2
    release_memory()
    return best


def gpu_throughput(forward: Callable[[torch.Tensor], object], batch: torch.Tensor) -> float:
    """Images a second of a forward pass on a GPU: the best of three, after one to warm up."""
    seconds = []
    for _ in range(4):
        torch.cuda.synchronize(batch.device)
        started = time.perf_counter()
        forward(batch)
        torch.cuda.synchronize(batch.device)
        seconds.append(time.perf_counter() - started)
    return len(batch) / min(seconds[1:])
