"""One step of training: forward, loss, backward, optimiser; in pieces where memory is short."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from raybench.errors import ModelError
from raybench.models.runtime import check_backend, is_out_of_memory, release_memory
from raybench.training.balance import Weighable
from raybench.training.recipe import Recipe
from raybench.training.settings import Precision
from raybench.training.task import Network, Task

log = logging.getLogger(__name__)

EVAL_BATCH = 32
"""Images a pass on Val."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How steps are computed.

    Attributes:
        precision: of forward and backward passes; weights, optimiser and loss stay float32.
        compile: whether training passes go through `torch.compile`.
    """

    precision: Precision = "float32"
    compile: bool = False


PLAIN = Arithmetic()
"""float32, not compiled."""


def settle_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """What `auto` is here: bfloat16 on a GPU that computes in it, float32 elsewhere.

    A CPU mostly emulates bfloat16, and where it does not, figures would depend on the CPU.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32


class Stepper:
    """Passes of one network, and what they remember from step to step.

    Where memory is out, a batch is cut into pieces half as large, whose gradients are added up,
    each weighted by its images: they are the whole batch's, but for BatchNorm, which sees (and
    counts into its running statistics) a piece at a time. Where the pass failed half-way, the
    layers that it reached have counted it too.

    Args:
        network: on the device already.

    Attributes:
        weights: of each class in the training loss, float `[k]`; None: all count the same.
        micro_batch: images of a piece; None as long as whole batches fit.
        eval_batch: images a pass on Val.

    Raises:
        ModelError: `compile` is asked for and there is no compiler.
    """

    def __init__(
        self,
        task: Task,
        network: Network,
        recipe: Recipe,
        device: torch.device,
        arithmetic: Arithmetic,
    ) -> None:
        if arithmetic.compile:
            check_backend("compile", device.type)
        self.task, self.recipe, self.device = task, recipe, device
        self.net, self._compile = network.net, arithmetic.compile
        self._run: Callable[[torch.Tensor], torch.Tensor] = self.net
        self._mean = torch.tensor(network.mean, device=device).view(1, 3, 1, 1) * 255.0
        self._std = torch.tensor(network.std, device=device).view(1, 3, 1, 1) * 255.0
        self._dtype = settle_precision(arithmetic.precision, device)
        self._scaler = torch.amp.GradScaler(device.type) if self._dtype == torch.float16 else None
        self.weights: torch.Tensor | None = None
        self.micro_batch: int | None = None
        self.eval_batch = EVAL_BATCH

    def begin_phase(self) -> None:
        """Other parameters are trained from here on: compile anew, with nothing left over.

        The compiled passes are beside the network and not in its place: its parameters keep their
        names. Shapes are compiled one by one, so that the same steps give the same bits after a
        resume.
        """
        if self._compile:
            torch.compiler.reset()
            self._run = torch.compile(self.net, dynamic=False)

    def state(self) -> dict[str, Any]:
        """What has to be known to go on: plain values and tensors."""
        return {
            "micro_batch": self.micro_batch,
            "eval_batch": self.eval_batch,
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.micro_batch = state["micro_batch"]
        self.eval_batch = state["eval_batch"]
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Grey levels `[n, 1, H, W]` in [0, 255] as the network's input, float `[n, 3, H, W]`."""
        shape = (len(pixels), 3, *pixels.shape[2:])
        out = torch.empty(
            shape, device=pixels.device, dtype=torch.float32, memory_format=torch.channels_last
        )
        return torch.sub(pixels, self._mean, out=out).div_(self._std)

    def train(
        self, optimizer: Optimizer, pixels: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step.

        Args:
            pixels: grey levels, float `[n, 1, H, W]` in [0, 255], on the device.

        Returns:
            The mean loss and the summed score of the batch, on the device: reading them waits for
            it.

        Raises:
            ModelError: memory is out with a single image.
        """
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                found = self._gradients(pixels, targets)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.micro_batch = _halved(self.micro_batch or len(targets), error)
            # Outside of the handler: its traceback keeps the failed pass's tensors alive.
            optimizer.zero_grad(set_to_none=True)
            release_memory()
            log.warning(
                "%s: memory is out; batches of %d are trained in pieces of %d from here on",
                self.recipe.name,
                len(targets),
                self.micro_batch,
            )
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        return found

    def _gradients(
        self, pixels: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, size = len(targets), self.micro_batch or len(targets)
        losses, scores = [], []
        for piece, wanted in zip(*(torch.split(t, size) for t in (pixels, targets)), strict=True):
            with self._low():
                outputs = self._run(self.normalise(piece))
            loss = self._loss(outputs.float(), wanted)
            if len(wanted) < n:
                loss = loss * (len(wanted) / n)
            scaled = loss if self._scaler is None else self._scaler.scale(loss)
            scaled.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            scores.append(self.task.hits(outputs.detach().float(), wanted).sum())
        return torch.stack(losses).sum(), torch.stack(scores).sum()

    def _loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.weights is None:
            return self.task.loss(outputs, targets, self.recipe)
        assert isinstance(self.task, Weighable)
        return self.task.weighted_loss(outputs, targets, self.recipe, self.weights)

    def evaluate(self, pixels: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
        """Mean plain loss and score of uint8 images `[N, H, W]`, in evaluation mode.

        Raises:
            ModelError: memory is out with a single image.
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        score_sum = torch.zeros_like(loss_sum)
        start = 0
        with torch.inference_mode():
            while start < len(targets):
                stop = start + self.eval_batch
                try:
                    batch = pixels[start:stop].to(self.device).float().unsqueeze(1)
                    wanted = targets[start:stop].to(self.device)
                    with self._low():
                        outputs = self.net(self.normalise(batch)).float()
                    loss = self.task.loss(outputs, wanted, None).double() * len(wanted)
                    score = self.task.hits(outputs, wanted).sum()
                    loss_sum, score_sum, start = loss_sum + loss, score_sum + score, stop
                    continue
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    self.eval_batch = _halved(min(self.eval_batch, len(targets)), error)
                release_memory()
        return float(loss_sum) / len(targets), float(score_sum) / len(targets)

    def _low(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self._dtype)


def _halved(size: int, error: BaseException) -> int:
    if size == 1:
        raise ModelError(
            "memory is out with a single image; take a smaller backbone or input_size, train with "
            "training.precision bfloat16, or give each trial more memory "
            "(training.gpus_per_trial)"
        ) from error
    return (size + 1) // 2
