"""The training loop: plain torch, in phases, resumable after any epoch to the same bits.

What an epoch draws at random depends on the seed and the epoch's number alone, so a loop that goes
on from a saved state draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from raybench.errors import RaybenchError
from raybench.models.checkpoint import Card
from raybench.training.balance import Weighable, check_balance, class_weights
from raybench.training.batches import Images, augmenter, batches, on_device
from raybench.training.recipe import Phase, Recipe
from raybench.training.state import Epoch, State, digest
from raybench.training.step import PLAIN, Arithmetic, Stepper
from raybench.training.task import Network, Task


class DivergedError(RaybenchError):
    """The loss is no longer a number."""


class Trainer:
    """Trains one network for one task by one resolved recipe.

    Args:
        task: what it learns.
        network: trained in place.
        recipe: plain values only (see `space.resolve`).
        card: goes into the kept checkpoint, with the figures of its epoch.
        seed: fixes order, augmentation and dropout.
        device: where it trains.
        arithmetic: precision and compilation of its passes.

    Raises:
        ModelError: the recipe balances classes and the task has none, or nothing can be compiled.
    """

    def __init__(
        self,
        task: Task,
        network: Network,
        recipe: Recipe,
        card: Card,
        seed: int,
        device: str,
        arithmetic: Arithmetic = PLAIN,
    ) -> None:
        check_balance(task, recipe)
        self.device = torch.device(device)
        self.net = network.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.task, self.recipe, self.card, self.seed = task, recipe, card, seed
        self._trains = network.trains
        self._steps = Stepper(task, network, recipe, self.device, arithmetic)

    def fit(
        self,
        train: Images,
        val: Images,
        report: Callable[[Epoch, State], None],
        state: State | None = None,
    ) -> State:
        """Train all phases, calling `report` after each epoch; go on from `state` where given.

        The checkpoint kept is that of the epoch with the highest score on Val, the lower loss
        deciding between equals.

        Raises:
            DivergedError: the loss became NaN or infinite.
            ModelError: memory is out with a single image.
        """
        if state is not None:
            self.net.load_state_dict(state.net)
            self._steps.load_state(state.passes)
        first = 0
        for number, phase in enumerate(self.recipe.phases):
            last = first + phase.epochs
            if state is None or state.next_epoch < last:
                state = self._phase(number, phase, first, last, train, val, report, state)
            first = last
        assert state is not None
        return state

    def _phase(
        self,
        number: int,
        phase: Phase,
        first: int,
        last: int,
        train: Images,
        val: Images,
        report: Callable[[Epoch, State], None],
        state: State | None,
    ) -> State:
        optimizer, plateau = self.set_up(phase, train)
        start = first
        if state is not None and state.next_epoch > first:
            start = state.next_epoch
            optimizer.load_state_dict(state.optimizer)
            if plateau and state.plateau:
                plateau.load_state_dict(state.plateau)
        for epoch in range(start, last):
            result = self._epoch(epoch, number, phase, optimizer, train, val)
            if plateau:
                plateau.step(result.val_loss)
            state = self._state(result, optimizer, plateau, state)
            report(result, state)
        assert state is not None
        return state

    def set_up(self, phase: Phase, train: Images) -> tuple[Optimizer, ReduceLROnPlateau | None]:
        """Freeze all but what a phase trains; its optimiser, and its plateau where there is one."""
        if self.recipe.balance == "class_weights" and isinstance(self.task, Weighable):
            weights = class_weights(train.targets, len(self.task.classes))
            self._steps.weights = weights.to(self.device)
        names = set(self._trains(phase.unfreeze))
        for name, parameter in self.net.named_parameters():
            parameter.requires_grad_(name in names)
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        kinds: dict[str, Any] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "sgd": partial(torch.optim.SGD, momentum=0.9),
        }
        optimizer: Optimizer = kinds[self.recipe.optimizer](
            parameters,
            lr=phase.lr,
            weight_decay=self.recipe.weight_decay,
            fused=True if self.device.type == "cuda" else None,
        )
        self._steps.begin_phase()
        settings = self.recipe.plateau
        plateau = (
            ReduceLROnPlateau(optimizer, factor=settings.factor, patience=settings.patience)
            if settings
            else None
        )
        return optimizer, plateau

    def _epoch(
        self,
        epoch: int,
        number: int,
        phase: Phase,
        optimizer: Optimizer,
        train: Images,
        val: Images,
    ) -> Epoch:
        started = time.perf_counter()
        rate = float(optimizer.param_groups[0]["lr"])
        torch.manual_seed(self.seed * 1_000_003 + epoch)
        train_loss, train_score = self.train_epoch(epoch, optimizer, train)
        val_loss, val_score = self.evaluate(val)
        _check_finite(val_loss, epoch)
        return Epoch(
            epoch=epoch,
            phase=number,
            unfreeze=phase.unfreeze,
            lr=rate,
            train_loss=train_loss,
            train_score=train_score,
            val_loss=val_loss,
            val_score=val_score,
            seconds=time.perf_counter() - started,
            score=self.task.score,
        )

    def train_epoch(self, epoch: int, optimizer: Optimizer, train: Images) -> tuple[float, float]:
        """One epoch of steps: the mean loss that was minimised, and the mean score.

        Raises:
            DivergedError: the loss became NaN or infinite.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        augment = augmenter(self.recipe.augmentation, generator)
        self._train_mode()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        score_sum = torch.zeros_like(loss_sum)
        look = looks_after(self.device)
        balanced = self.recipe.balance == "sampler"
        parts = batches(train, int(self.recipe.batch_size), generator, balanced)
        for step, (pixels, wanted) in enumerate(on_device(parts, self.device), 1):
            moved, targets = augment(pixels, wanted)
            loss, score = self._steps.train(optimizer, moved, targets)
            loss_sum += loss.double() * len(targets)
            score_sum += score
            if step % look == 0:
                _check_finite(float(loss_sum), epoch)
        # What is no number stays none in a sum.
        _check_finite(float(loss_sum), epoch)
        return float(loss_sum) / len(train), float(score_sum) / len(train)

    def _train_mode(self) -> None:
        """Training mode, but frozen BatchNorm layers keep their statistics."""
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, _BatchNorm) and not any(
                p.requires_grad for p in module.parameters(recurse=False)
            ):
                module.eval()

    def evaluate(self, images: Images) -> tuple[float, float]:
        """Mean plain loss and score, without augmentation."""
        self.net.eval()
        return self._steps.evaluate(images.pixels, images.targets)

    def _state(
        self,
        result: Epoch,
        optimizer: Optimizer,
        plateau: ReduceLROnPlateau | None,
        before: State | None,
    ) -> State:
        better = before is None or (result.val_score, -result.val_loss) > (
            before.best_score,
            -before.best_loss,
        )
        if better:
            card = asdict(self.card) | {
                "scores": {f"val_{result.score}": result.val_score, "val_loss": result.val_loss}
            }
            best = self.task.checkpoint(self.net, Card(**card))
            best_score, best_loss = result.val_score, result.val_loss
        else:
            assert before is not None
            best, best_score, best_loss = before.best, before.best_score, before.best_loss
        return State(
            recipe=digest(self.recipe),
            epoch=result,
            net=self.net.state_dict(),
            optimizer=optimizer.state_dict(),
            plateau=dict(plateau.state_dict()) if plateau else None,
            best_score=best_score,
            best_loss=best_loss,
            best=best,
            passes=self._steps.state(),
        )


def looks_after(device: torch.device) -> int:
    """Steps after which the loss is looked at: on a GPU that waits for all that is under way."""
    return 64 if device.type == "cuda" else 1


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the loss became {loss} in epoch {epoch + 1}; lower the learning rate")
