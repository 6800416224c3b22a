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
from raybench.training.batches import Images, augmenter, batches
from raybench.training.recipe import Phase, Recipe
from raybench.training.state import Epoch, State, digest
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
    """

    def __init__(
        self, task: Task, network: Network, recipe: Recipe, card: Card, seed: int, device: str
    ) -> None:
        self.device = torch.device(device)
        self.net = network.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.task, self.recipe, self.card, self.seed = task, recipe, card, seed
        self._trains = network.trains
        self._mean = torch.tensor(network.mean, device=self.device).view(1, 3, 1, 1) * 255.0
        self._std = torch.tensor(network.std, device=self.device).view(1, 3, 1, 1) * 255.0

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
        """
        if state is not None:
            self.net.load_state_dict(state.net)
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
        optimizer, plateau = self._set_up(phase)
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

    def _set_up(self, phase: Phase) -> tuple[Optimizer, ReduceLROnPlateau | None]:
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
            parameters, lr=phase.lr, weight_decay=self.recipe.weight_decay
        )
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
        train_loss, train_score = self._train(epoch, optimizer, train)
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

    def _train(self, epoch: int, optimizer: Optimizer, train: Images) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        augment = augmenter(self.recipe.augmentation, generator)
        self._train_mode()
        loss_sum, score_sum = 0.0, 0.0
        for pixels, wanted in batches(train, int(self.recipe.batch_size), generator):
            moved, targets = augment(
                pixels.to(self.device).float().unsqueeze(1), wanted.to(self.device)
            )
            outputs = self.net(self._normalise(moved))
            loss = self.task.loss(outputs, targets, self.recipe)
            value = float(loss.detach())
            _check_finite(value, epoch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss_sum += value * len(targets)
            score_sum += float(self.task.hits(outputs.detach(), targets).sum())
        return loss_sum / len(train), score_sum / len(train)

    def _train_mode(self) -> None:
        """Training mode, but frozen BatchNorm layers keep their statistics."""
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, _BatchNorm) and not any(
                p.requires_grad for p in module.parameters(recurse=False)
            ):
                module.eval()

    def evaluate(self, images: Images, batch_size: int = 32) -> tuple[float, float]:
        """Mean plain loss and score, without augmentation."""
        self.net.eval()
        loss_sum, score_sum = 0.0, 0.0
        with torch.inference_mode():
            for start in range(0, len(images), batch_size):
                pixels = images.pixels[start : start + batch_size].to(self.device)
                targets = images.targets[start : start + batch_size].to(self.device)
                outputs = self.net(self._normalise(pixels.float().unsqueeze(1)))
                loss_sum += float(self.task.loss(outputs, targets, None)) * len(targets)
                score_sum += float(self.task.hits(outputs, targets).sum())
        return loss_sum / len(images), score_sum / len(images)

    def _normalise(self, batch: torch.Tensor) -> torch.Tensor:
        scaled = (batch.expand(-1, 3, -1, -1) - self._mean) / self._std
        return scaled.contiguous(memory_format=torch.channels_last)

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
        )


def _check_finite(loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"the loss became {loss} in epoch {epoch + 1}; lower the learning rate")
