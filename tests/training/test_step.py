"""Steps in pieces, in low precision and compiled: the same gradients, the same bits after a stop.

About 9 seconds.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.checkpoint import Card, load_checkpoint
from raybench.storage import Storage
from raybench.training.batches import Images, ahead, on_device
from raybench.training.loop import DivergedError, Trainer
from raybench.training.recipe import Recipe
from raybench.training.state import Epoch, State
from raybench.training.step import PLAIN, Arithmetic, Stepper, settle_precision
from raybench.training.task import Classify, Network

TASK = Classify(("a", "b", "c"))
CPU = torch.device("cpu")
PHASES = [
    {"unfreeze": "head", "epochs": 1, "lr": 1e-2},
    {"unfreeze": "full", "epochs": 2, "lr": 1e-2},
]


class Tight(nn.Module):
    """A network without BatchNorm on a device that holds so many images and no more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.passes = most, []
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.passes.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return self.head(torch.relu(self.conv(batch)).amax(dim=(2, 3)))


def recipe(**changes: Any) -> Recipe:
    raw = {"name": "test_resnet", "weights": "none", "input_size": 48, "batch_size": 6}
    return Recipe.model_validate({**raw, "phases": PHASES, **changes})


def stepper(most: int, **changes: Any) -> Stepper:
    torch.manual_seed(0)
    net = Network(Tight(most), (0.5,) * 3, (0.2,) * 3, lambda _: [])
    return Stepper(TASK, net, recipe(**changes), CPU, PLAIN)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(1)
    return torch.rand((n, 1, 12, 12), generator=drawn) * 255, torch.arange(n) % 3


def gradients(subject: Stepper, n: int) -> tuple[list[torch.Tensor], float, float]:
    optimizer = torch.optim.SGD(subject.net.parameters(), lr=0.0)
    loss, score = subject.train(optimizer, *batch(n))
    found = [p.grad.clone() for p in subject.net.parameters() if p.grad is not None]
    return found, float(loss), float(score)


@pytest.mark.parametrize("balance", ["none", "class_weights"])
@pytest.mark.parametrize(("most", "passes"), [(6, [11, 6, 5]), (2, [11, 6, 3, 2, 2, 2, 2, 2, 1])])
def test_pieces_give_the_whole_batchs_gradients(
    most: int, passes: list[int], balance: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, pieces = (stepper(m, label_smoothing=0.1, balance=balance) for m in (11, most))
    if balance == "class_weights":
        whole.weights = pieces.weights = torch.tensor([0.5, 1.0, 3.0])
    with caplog.at_level(logging.WARNING):
        expected, found = gradients(whole, 11), gradients(pieces, 11)
    for a, b in zip(expected[0], found[0], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)
        assert a.abs().max() > 1e-3
    assert found[1:] == pytest.approx(expected[1:], abs=1e-6)
    assert pieces.net.passes == passes
    assert f"batches of 11 are trained in pieces of {most}" in caplog.text
    # Remembered: no further batch is tried whole, and nothing is told again.
    caplog.clear()
    pieces.net.passes.clear()
    gradients(pieces, 11)
    assert pieces.net.passes == [n for n in passes if n <= most]
    assert caplog.text == ""


def test_a_failure_in_the_middle_leaves_no_gradient_behind() -> None:
    """The second piece fails: what the first has added must not be added again."""
    pieces, whole = stepper(99), stepper(99)
    pieces.micro_batch = 4
    forward, calls = pieces.net.forward, []

    def failing(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return forward(images)

    pieces.net.forward = failing
    found, expected = gradients(pieces, 8), gradients(whole, 8)
    assert calls == [4, 4, 2, 2, 2, 2]
    for a, b in zip(expected[0], found[0], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_no_room_for_one_image_is_an_error_and_other_errors_are_not_hidden() -> None:
    with pytest.raises(ModelError, match="memory is out with a single image; take a smaller"):
        gradients(stepper(0), 5)
    tight = stepper(0)
    tight.net.eval()
    with pytest.raises(ModelError, match="memory is out with a single image"):
        tight.evaluate(batch(3)[0].squeeze(1), batch(3)[1])
    broken = stepper(9)
    broken.net.head = nn.Linear(5, 3)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        gradients(broken, 4)
    assert broken.micro_batch is None


def test_val_is_evaluated_in_pieces_too() -> None:
    pixels, targets = batch(21)
    images = pixels.squeeze(1).to(torch.uint8)
    whole, pieces = stepper(21), stepper(3)
    for subject in (whole, pieces):
        subject.net.eval()
    assert pieces.evaluate(images, targets) == pytest.approx(whole.evaluate(images, targets))
    assert pieces.eval_batch == 3
    assert pieces.net.passes == [21, 11, 6] + [3] * 7


def images(n: int) -> Images:
    drawn = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (n, 48, 48), generator=drawn, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % 3)


def trainer(arithmetic: Arithmetic, init: int = 0, **changes: Any) -> Trainer:
    torch.manual_seed(init)
    settings = recipe(**changes)
    card = Card(settings.name, TASK.classes, settings.size)
    return Trainer(TASK, TASK.network(settings), settings, card, 7, "cpu", arithmetic)


def fit(
    subject: Trainer, state: State | None = None, folder: Path | None = None
) -> tuple[list[Epoch], State]:
    """All epochs; with a folder, the state after the second lies there."""
    epochs: list[Epoch] = []

    def report(epoch: Epoch, state: State) -> None:
        epochs.append(epoch)
        if folder is not None and epoch.epoch == 1:
            state.write(folder)

    return epochs, subject.fit(images(12), images(6), report, state)


def same_after_a_stop(arithmetic: Arithmetic, folder: Path, **changes: Any) -> tuple[Any, ...]:
    subject = trainer(arithmetic, **changes)
    epochs, state = fit(subject, folder=folder)
    other = trainer(arithmetic, init=99, **changes)
    rest, resumed = fit(other, State.read(Storage(str(folder)), "."))
    assert [e.val_loss for e in rest] == [e.val_loss for e in epochs[2:]]
    assert resumed.passes == state.passes
    assert resumed.best == state.best
    for name, value in subject.net.state_dict().items():
        assert torch.equal(value, other.net.state_dict()[name]), name
    return epochs, state, subject


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_learns_and_resumes_to_the_same_bits(precision: Any, tmp_path: Path) -> None:
    changes = {"dropout": 0.2, "augment": {"flip": False, "rotation": 0}}
    epochs, state, subject = same_after_a_stop(Arithmetic(precision), tmp_path, **changes)
    plain, _ = fit(trainer(PLAIN, **changes))
    assert epochs[0].train_loss == pytest.approx(plain[0].train_loss, rel=0.05)
    assert epochs[0].train_loss != plain[0].train_loss
    assert {v.dtype for v in subject.net.parameters()} == {torch.float32}
    assert (state.passes["scaler"] is None) == (precision == "bfloat16")
    net, _ = load_checkpoint(state.best)
    assert {v.dtype for v in net.parameters()} == {torch.float32}
    phases = [{"epochs": 12, "lr": 5e-3}]
    learnt, _ = fit(trainer(Arithmetic(precision), phases=phases, **changes))
    assert learnt[-1].train_loss < learnt[0].train_loss / 2


SCALER = {
    "scale": 1024.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 9,
}


def test_the_scale_of_float16_is_part_of_the_state(tmp_path: Path) -> None:
    first, second = (trainer(Arithmetic("float16")) for _ in range(2))
    first._steps.load_state({"micro_batch": 5, "eval_batch": 7, "scaler": SCALER})
    _, state = fit(first)
    assert state.passes["scaler"]["scale"] == 1024.0  # and not where a fresh one begins
    assert state.passes["scaler"]["_growth_tracker"] == 9 + 3 * 2
    state.write(tmp_path)
    second._steps.load_state(State.read(Storage(str(tmp_path)), ".").passes)
    assert second._steps.state() == first._steps.state()


def test_auto_is_float32_on_a_cpu() -> None:
    assert settle_precision("auto", CPU) == torch.float32
    assert settle_precision("bfloat16", CPU) == torch.bfloat16


def test_pieces_are_remembered_through_a_stop(tmp_path: Path) -> None:
    tried: dict[int, list[int]] = {}

    def squeezed(init: int) -> Trainer:
        subject = trainer(PLAIN, init)
        inner = subject.net.forward

        def forward(batch: torch.Tensor) -> torch.Tensor:
            if subject.net.training:
                tried.setdefault(init, []).append(len(batch))
            if len(batch) > 3 and subject.net.training:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return inner(batch)

        subject.net.forward = forward
        return subject

    first, second = squeezed(0), squeezed(99)
    epochs, state = fit(first, folder=tmp_path)
    assert state.passes == {"micro_batch": 3, "eval_batch": 32, "scaler": None}
    rest, resumed = fit(second, State.read(Storage(str(tmp_path)), "."))
    assert tried == {0: [6] + [3] * 12, 99: [3] * 4}
    assert [e.train_loss for e in rest] == [e.train_loss for e in epochs[2:]]
    assert resumed.best == state.best


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_keeps_its_names_its_phases_and_its_bits(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []

    def compile_with(net: nn.Module, **options: Any) -> Any:
        compiled.append(net)
        return real(net, backend=backend, **options)

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_with)
    epochs, state, subject = same_after_a_stop(Arithmetic(compile=True), tmp_path)
    assert compiled.count(subject.net) == 2  # once a phase
    assert not any("_orig_mod" in name for name in state.net)
    net, _ = load_checkpoint(state.best)
    assert list(net.state_dict()) == list(subject.net.state_dict())
    plain, _ = fit(trainer(PLAIN))
    for a, b in zip(plain, epochs, strict=True):
        assert a.val_loss == pytest.approx(b.val_loss, rel=0.05)
    head = trainer(Arithmetic(compile=True), phases=PHASES[:1])
    before = {n: p.detach().clone() for n, p in head.net.named_parameters()}
    fit(head)
    moved = {n for n, p in head.net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(head._trains("head"))


def test_a_loss_that_is_seldom_looked_at_still_stops_the_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: the sum of an epoch's losses is looked at, and nothing is reported."""
    monkeypatch.setattr("raybench.training.loop.looks_after", lambda device: 64)
    subject = trainer(PLAIN, phases=[{"epochs": 3, "lr": 1e-3}])
    with torch.no_grad():
        next(subject.net.parameters())[0] = float("nan")
    reported: list[Epoch] = []
    with pytest.raises(DivergedError, match="the loss became nan in epoch 1"):
        subject.fit(images(12), images(6), lambda epoch, state: reported.append(epoch))
    assert reported == []


def test_batches_made_ahead_are_the_same_in_the_same_order() -> None:
    parts = [(torch.full((2, 3, 3), n, dtype=torch.uint8), torch.tensor([n, n])) for n in range(5)]
    assert [int(wanted[0]) for _, wanted in ahead(iter(parts))] == list(range(5))
    for (pixels, wanted), n in zip(on_device(iter(parts), CPU), range(5), strict=True):
        assert (pixels.shape, pixels.dtype) == ((2, 1, 3, 3), torch.float32)
        assert pixels.unique().tolist() == wanted.unique().tolist() == [n]

    def broken() -> Any:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(ahead(broken()))


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_on_a_gpu_it_learns_resumes_and_looks_at_the_loss_in_the_end(
    optimizer: str, tmp_path: Path
) -> None:
    def on_gpu(init: int) -> Trainer:
        torch.manual_seed(init)
        phases = [{"epochs": 12, "lr": 5e-3}]
        settings = recipe(phases=phases, optimizer=optimizer, augment={"rotation": 5})
        card = Card(settings.name, TASK.classes, settings.size)
        network = TASK.network(settings)
        return Trainer(TASK, network, settings, card, 7, "cuda", Arithmetic("auto"))

    epochs, state = fit(on_gpu(0), folder=tmp_path)
    assert epochs[-1].train_loss < epochs[0].train_loss
    rest, _ = fit(on_gpu(1), State.read(Storage(str(tmp_path)), "."))
    assert [e.epoch for e in rest] == list(range(2, 12))
    assert rest[0].val_loss == pytest.approx(epochs[2].val_loss, rel=0.1)
    parts = [(t.pixels, t.targets) for t in (images(5), images(3))]
    for (pixels, wanted), (there, told) in zip(
        parts, on_device(iter(parts), torch.device("cuda")), strict=True
    ):
        assert torch.equal(there.cpu(), pixels.float().unsqueeze(1))
        assert torch.equal(told.cpu(), wanted)
    broken = on_gpu(0)
    with torch.no_grad():
        next(broken.net.parameters())[0] = float("nan")
    with pytest.raises(DivergedError, match="the loss became nan in epoch 1"):
        fit(broken)
    assert load_checkpoint(state.best)[1].backbone == "test_resnet"
