"""Class weights and the sampler against closed forms. About 2 seconds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from raybench.errors import ModelError
from raybench.models.checkpoint import Card
from raybench.training.balance import balanced_order, check_balance, class_weights
from raybench.training.batches import Images, batches
from raybench.training.loop import Trainer
from raybench.training.recipe import Recipe
from raybench.training.space import hyperparameters, resolve, searched_settings
from raybench.training.task import Classify

TASK = Classify(("a", "b", "c"))


def recipe(**changes: Any) -> Recipe:
    raw = {"name": "test_resnet", "weights": "none", "input_size": 32, "batch_size": 4}
    return Recipe.model_validate(
        {**raw, "phases": [{"unfreeze": "full", "epochs": 1, "lr": 1e-3}], **changes}
    )


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_weights_are_n_by_k_n_c(counts: list[int]) -> None:
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    weights = class_weights(targets, len(counts)).double()
    expected = [sum(counts) / (len(counts) * count) for count in counts]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert float(weights[targets].mean()) == pytest.approx(1.0, rel=1e-5)


def test_a_class_that_does_not_occur_counts_for_nothing() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 2]), 4)
    assert weights.tolist() == pytest.approx([4 / 6, 0.0, 2.0, 0.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_weighted_loss_is_the_mean_of_weighted_cross_entropies(smoothing: float) -> None:
    logits = torch.randn((7, 3), generator=drawn(0))
    targets = torch.tensor([0, 1, 2, 2, 2, 2, 1])
    weights = torch.tensor([2.0, 0.5, 1.0])
    logs = torch.log_softmax(logits.double(), 1)
    aims = functional.one_hot(targets, 3).double() * (1 - smoothing) + smoothing / 3
    expected = float(-(weights[targets].double() * (aims * logs).sum(1)).sum() / 7)
    settings = recipe(label_smoothing=smoothing)
    found = TASK.weighted_loss(logits, targets, settings, weights)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    ones = TASK.weighted_loss(logits, targets, settings, torch.ones(3))
    assert float(ones) == pytest.approx(float(TASK.loss(logits, targets, settings)), rel=1e-6)


def test_the_sampler_draws_each_class_as_often() -> None:
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([600, 250, 50]))
    order = balanced_order(targets, drawn(3))
    assert len(order) == len(targets)
    counts = torch.bincount(targets[order], minlength=3).double()
    # Each count is binomial with n = 900 and p = 1/3: 4 deviations are 57.
    assert (counts - 300).abs().max() < 57
    within = torch.bincount(order, minlength=900).double()
    assert within[850:].mean() == pytest.approx(6.0, rel=0.2)  # 50 images share 300 draws
    assert int((within[850:] == 0).sum()) < 5
    assert torch.equal(order, balanced_order(targets, drawn(3)))
    assert not torch.equal(order, balanced_order(targets, drawn(4)))


def test_batches_are_balanced_and_as_many() -> None:
    targets = torch.tensor([0] * 30 + [1] * 3)
    images = Images(torch.arange(33, dtype=torch.uint8).view(33, 1, 1), targets)
    torch.rand(3)  # the global state does not enter
    parts = list(batches(images, 8, drawn(0), balanced=True))
    assert [len(wanted) for _, wanted in parts] == [8, 8, 8, 9]
    share = torch.cat([wanted for _, wanted in parts]).double().mean()
    assert 0.2 < float(share) < 0.8
    assert all(torch.equal(wanted, (p[:, 0, 0] >= 30).long()) for p, wanted in parts)
    again = batches(images, 8, drawn(0), balanced=True)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(parts, again, strict=True))


def trained(balance: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Any, list[Any]]:
    """One epoch on 8 images of class 0 and 2 of class 2: what came to each step."""
    torch.manual_seed(0)
    settings = recipe(balance=balance)
    card = Card("test_resnet", TASK.classes, (32, 32))
    subject = Trainer(TASK, TASK.network(settings), settings, card, 0, "cpu")
    pixels = torch.randint(0, 256, (10, 32, 32), dtype=torch.uint8, generator=drawn(1))
    images = Images(pixels, torch.tensor([0] * 8 + [2] * 2))
    seen: list[Any] = []
    real = Classify.weighted_loss

    def weighted(self: Classify, *args: torch.Tensor) -> torch.Tensor:
        seen.append(args)
        return real(self, *args)

    monkeypatch.setattr(Classify, "weighted_loss", weighted)
    epochs: list[Any] = []
    subject.fit(images, images, lambda epoch, state: epochs.append(epoch))
    return subject, (epochs[0], images), seen


def test_the_loop_weighs_training_by_trains_labels_and_val_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject, (epoch, images), seen = trained("class_weights", monkeypatch)
    assert len(seen) == 3
    for _, _, _, weights in seen:
        assert weights.tolist() == pytest.approx([10 / 16, 0.0, 2.5])
    losses = [
        float((functional.cross_entropy(o.detach(), t, reduction="none") * w[t]).sum())
        for o, t, _, w in seen
    ]
    assert epoch.train_loss == pytest.approx(sum(losses) / 10, rel=1e-5)
    net: nn.Module = subject.net.eval()
    with torch.no_grad():
        logits = net(subject._steps.normalise(images.pixels.float().unsqueeze(1)))
    plain = float(functional.cross_entropy(logits, images.targets))
    assert epoch.val_loss == pytest.approx(plain, rel=1e-4)
    assert trained("none", monkeypatch)[2] == []


def test_the_loop_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    real = Classify.loss

    def loss(self: Classify, outputs: torch.Tensor, targets: torch.Tensor, r: Any) -> Any:
        if r is not None:
            seen.append(targets)
        return real(self, outputs, targets, r)

    monkeypatch.setattr(Classify, "loss", loss)
    trained("sampler", monkeypatch)
    found = torch.cat(seen)
    expected = balanced_order(torch.tensor([0] * 8 + [2] * 2), drawn(0))
    assert found.tolist() == [0 if i < 8 else 2 for i in expected]


class Masks:
    """A task without classes."""

    score = "dice"


@pytest.mark.parametrize("balance", ["class_weights", "sampler"])
def test_masks_cannot_be_balanced(balance: str) -> None:
    with pytest.raises(ModelError, match=f"balance: expected none.*masks.*found {balance}"):
        check_balance(Masks(), recipe(balance=balance))
    check_balance(Masks(), recipe())
    check_balance(TASK, recipe(balance=balance))


def test_balance_is_searched_and_listed() -> None:
    wanted = recipe(balance={"choices": ["none", "sampler"]})
    assert [path for path, _ in searched_settings(wanted)] == ["balance"]
    values = {"backbone": "test_resnet", "test_resnet.balance": "sampler"}
    assert hyperparameters(resolve([wanted], values))["balance"] == "sampler"
    assert hyperparameters(recipe())["balance"] == "none"
    with pytest.raises(ValueError, match=r"'none', 'class_weights' or 'sampler'"):
        recipe(balance="weights")
    with pytest.raises(ValueError, match=r"'none', 'class_weights' or 'sampler'"):
        recipe(balance={"choices": ["none", "smote"]})
