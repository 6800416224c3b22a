"""Forward passes by backend: normalised float images in, class probabilities out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.fold import fold
from raybench.models.runtime import Runtime, check_backend, is_out_of_memory, release_memory

Forward = Callable[[torch.Tensor], torch.Tensor]
"""float `[n, 3, H, W]` on the classifier's device to float32 probabilities `[n, C]` on it."""


Compose = Callable[[int, int], torch.Tensor]
"""Makes the normalised images from one index up to another, float `[m, 3, H, W]`."""


_CLOSE = 1e-4
"""How far logits may be off after folding, as a share of the largest."""


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module is in the mode that it was found in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def settle(
    net: nn.Module, runtime: Runtime, device: torch.device, input_size: tuple[int, int]
) -> tuple[Runtime, nn.Module]:
    """The runtime with `auto` decided, and the network that its passes go through.

    Raises:
        ModelError: `folded` was asked for by name and the network does not allow it.
    """
    wanted = runtime.backend
    if wanted == "folded" or (wanted == "auto" and device.type == "cpu"):
        folded = fold(net)
        if folded is not None and _agree(net, folded, input_size, device):
            return replace(runtime, backend="folded"), folded
        if wanted == "folded":
            raise ModelError(
                "backend: expected a network that torch.fx can trace, with a batch normalisation "
                f"behind a convolution, found {type(net).__name__}; choose auto or torch"
            )
    return replace(runtime, backend="torch" if wanted == "auto" else wanted), net


def _agree(
    net: nn.Module, other: nn.Module, input_size: tuple[int, int], device: torch.device
) -> bool:
    """Whether two networks give the same logits; a trace may have missed a turn of the code."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn((2, 3, *input_size), generator=generator).to(device)
    with evaluating(net), torch.no_grad():
        expected, found = net(batch), other(batch)
    return bool((found - expected).abs().max() <= _CLOSE * expected.abs().max().clamp(min=1e-6))


def make_forward(net: nn.Module, runtime: Runtime, device: torch.device) -> Forward:
    """The forward pass of a module under a runtime that `settle` returned.

    Called in evaluation and inference mode. OpenVINO takes the weights as they are at the first
    pass; the others follow the module.

    Raises:
        ModelError: the backend cannot run here.
    """
    check_backend(runtime.backend, device.type)
    if runtime.backend == "openvino":
        return _OpenVino(net, runtime)
    run: Callable[[torch.Tensor], torch.Tensor] = net
    if runtime.backend == "compile":
        run = torch.compile(net, dynamic=False)
    low = runtime.precision == "bfloat16"

    def forward(batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            logits = run(batch)
        return torch.softmax(logits.float(), dim=1)

    return forward


class _OpenVino:
    """A network converted at its first pass, one stream, for batches of any size.

    float32 is asked for by name: on a CPU with bfloat16 arithmetic OpenVINO would choose that.
    """

    def __init__(self, net: nn.Module, runtime: Runtime) -> None:
        self._net, self._runtime = net, runtime
        self._compiled: Any = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        if self._compiled is None:
            self._compiled = self._convert(batch)
        logits = self._compiled(batch.contiguous().numpy(), share_inputs=True)[0]
        return torch.softmax(torch.from_numpy(logits).float(), dim=1)

    def _convert(self, batch: torch.Tensor) -> Any:
        import openvino

        # What inference mode has made cannot be traced; a plain copy of one image can.
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's remarks on Python numbers in shapes
            example = torch.zeros(tuple(batch.shape))
            shape = openvino.PartialShape([-1, *batch.shape[1:]])
            model = openvino.convert_model(self._net, example_input=example, input=[shape])
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32" if self._runtime.precision == "float32" else "bf16",
            "NUM_STREAMS": 1,
        }
        if self._runtime.n_threads is not None:
            options["INFERENCE_NUM_THREADS"] = self._runtime.n_threads
        return openvino.Core().compile_model(model, "CPU", options)


def padded(forward: Forward, size: int) -> Forward:
    """The same pass over batches of one size only: a short one is filled up with black images."""

    def run(batch: torch.Tensor) -> torch.Tensor:
        n = len(batch)
        if n == size:
            return forward(batch)
        whole = torch.zeros(
            (size, *batch.shape[1:]), device=batch.device, dtype=batch.dtype
        ).contiguous(memory_format=torch.channels_last)
        whole[:n] = batch
        return forward(whole)[:n]

    return run


def in_batches(
    forward: Forward, compose: Compose, n: int, size: int, pad: bool
) -> tuple[torch.Tensor, int]:
    """Pass `n` images in batches; where memory is out, go on with batches half as large.

    Args:
        size: images a pass to begin with.
        pad: whether the last batch is filled up to the size.

    Returns:
        Probabilities float32 `[n, C]` on the device, and the batch size that fitted.

    Raises:
        ModelError: memory is out with a single image.
    """
    parts: list[torch.Tensor] = []
    start = 0
    while start < n:
        stop = min(start + size, n)
        run = padded(forward, size) if pad else forward
        try:
            parts.append(run(compose(start, stop)))
            start = stop
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise ModelError(
                    "memory is out with a single image a pass; take a smaller backbone or input "
                    "size, give each worker more memory (execution.gpus_per_worker), or run fewer"
                ) from error
        # Outside of the handler: its traceback keeps the failed pass's tensors alive.
        size = max(1, size // 2)
        release_memory()
    return torch.cat(parts), size
