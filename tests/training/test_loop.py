"""The training loop on a few phantoms: what moves, what stays, and resuming to the same bits.

About 12 seconds.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess
from raybench.models.backbones import backbone, trainable
from raybench.models.checkpoint import Card, load_checkpoint
from raybench.storage import Storage
from raybench.training.batches import Images, load_images
from raybench.training.loop import DivergedError, Trainer
from raybench.training.recipe import Recipe
from raybench.training.state import Epoch, State, newest
from raybench.training.task import Classify

Weights = dict[str, torch.Tensor]
TASK = Classify(("COVID-19", "Non-COVID", "Normal"))
BACKBONES = ("test_efficientnet", "test_resnet")
THREE_PHASES = [
    {"unfreeze": "head", "epochs": 1, "lr": 1e-2},
    {"unfreeze": "partial", "epochs": 2, "lr": 3e-3},
    {"unfreeze": "full", "epochs": 2, "lr": 1e-3},
]


@pytest.fixture(scope="module")
def data(_one_thread: None) -> tuple[Images, Images]:
    """13 phantoms to train on, so that with 4 a batch the last one is merged, and 6 for Val."""
    phantom = Phantom(name="phantom", n_train=5, n_val=2, n_test=1, size=64)
    records = phantom.records()
    train, val = (
        load_images(
            phantom, [r for r in records if r.split == split], Preprocess(), (48, 48), TASK.target
        )
        for split in ("Train", "Val")
    )
    return Images(train.pixels[:13], train.targets[:13]), val


def recipe(name: str = "test_resnet", **changes: Any) -> Recipe:
    settings = {"name": name, "weights": "none", "input_size": 48, "batch_size": 4}
    return Recipe.model_validate({**settings, "phases": THREE_PHASES, **changes})


def trainer(settings: Recipe, init: int = 0, seed: int = 7) -> Trainer:
    torch.manual_seed(init)
    card = Card(settings.name, TASK.classes, settings.size)
    return Trainer(TASK, TASK.network(settings), settings, card, seed, "cpu")


def weights(net: torch.nn.Module) -> Weights:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def moved(before: Weights, after: Weights) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def figures(epochs: list[Epoch]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(e).items() if k != "seconds"} for e in epochs]


def run(
    subject: Trainer, data: tuple[Images, Images], state: State | None = None
) -> tuple[list[Epoch], list[Weights], State]:
    """All epochs, the network after each, and the last state."""
    epochs: list[Epoch] = []
    after: list[Weights] = []

    def report(epoch: Epoch, state: State) -> None:
        epochs.append(epoch)
        after.append(weights(subject.net))

    return epochs, after, subject.fit(*data, report, state)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("name", BACKBONES)
def test_each_phase_moves_what_it_unfreezes_and_nothing_else(
    name: str, optimizer: str, data: tuple[Images, Images]
) -> None:
    subject = trainer(recipe(name, optimizer=optimizer, weight_decay=0.01))
    seen = [weights(subject.net), *run(subject, data)[1]]
    parameters = {n for n, _ in subject.net.named_parameters()}
    for before, after, unfreeze in (
        (seen[0], seen[1], "head"),
        (seen[1], seen[3], "partial"),
        (seen[3], seen[5], "full"),
    ):
        free = set(trainable(subject.net, backbone(name), unfreeze))
        assert moved(before, after) & parameters == free
        # A BatchNorm layer's statistics move with its weight, and only then.
        for buffer in set(before) - parameters:
            layer = buffer.rpartition(".")[0]
            assert (buffer in moved(before, after)) == (f"{layer}.weight" in free), buffer


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_recipe_and_seed_give_the_same_bits(
    name: str, data: tuple[Images, Images]
) -> None:
    settings = recipe(name, dropout=0.3, label_smoothing=0.1)
    first, second = (run(trainer(settings), data) for _ in range(2))
    assert figures(first[0]) == figures(second[0])
    assert moved(first[1][-1], second[1][-1]) == set()
    assert first[2].best == second[2].best
    other = run(trainer(settings, seed=8), data)
    assert figures(other[0]) != figures(first[0])


def test_each_epoch_has_an_order_and_changes_of_its_own(
    data: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[list[int]] = []

    def recorded(
        images: Images, batch_size: int, generator: torch.Generator, balanced: bool
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        orders.append(torch.randperm(13, generator=generator).tolist())
        return [(images.pixels, images.targets)]

    monkeypatch.setattr("raybench.training.loop.batches", recorded)
    run(trainer(recipe()), data)
    assert len({tuple(order) for order in orders}) == len(orders) == 5


class _Interrupted(Exception):
    """Stands for a machine that goes away."""


def interrupt(
    subject: Trainer, data: tuple[Images, Images], after: int, folder: Path
) -> list[Epoch]:
    """Train until `after` epochs are done, leaving the last one's state in the folder."""
    epochs: list[Epoch] = []

    def report(epoch: Epoch, state: State) -> None:
        epochs.append(epoch)
        state.write(folder)
        if len(epochs) == after:
            raise _Interrupted

    with pytest.raises(_Interrupted):
        subject.fit(*data, report)
    return epochs


@pytest.mark.parametrize(
    ("name", "optimizer"), [("test_efficientnet", "adamw"), ("test_resnet", "sgd")]
)
def test_interrupted_after_any_epoch_and_resumed_it_ends_with_the_same_bits(
    name: str, optimizer: str, data: tuple[Images, Images], tmp_path: Path
) -> None:
    settings = recipe(
        name,
        optimizer=optimizer,
        weight_decay=0.01,
        dropout=0.3,
        label_smoothing=0.1,
        plateau={"patience": 0, "factor": 0.1},
        phases=[
            {"unfreeze": "head", "epochs": 2, "lr": 1e-2},
            {"unfreeze": "full", "epochs": 4, "lr": 0.05},
        ],
    )
    epochs, after, state = run(trainer(settings), data)
    rates = [e.lr for e in epochs]
    assert len(set(rates[2:])) > 1  # the plateau's state matters in what follows
    for k in range(1, len(epochs)):
        folder = tmp_path / str(k)
        folder.mkdir()
        begun = interrupt(trainer(settings), data, k, folder)
        torch.rand(k)  # another process, another history of random numbers, another first net
        subject = trainer(settings, init=99)
        rest, _, resumed = run(subject, data, State.read(Storage(str(folder)), "."))
        assert figures(begun + rest) == figures(epochs)
        assert moved(after[-1], weights(subject.net)) == set()
        assert resumed.best == state.best
        assert (resumed.best_score, resumed.best_loss) == (state.best_score, state.best_loss)


def test_a_finished_state_has_nothing_left_to_do(
    data: tuple[Images, Images], tmp_path: Path
) -> None:
    settings = recipe(phases=[{"unfreeze": "full", "epochs": 2, "lr": 1e-3}])
    _, after, state = run(trainer(settings), data)
    state.write(tmp_path)
    subject = trainer(settings, init=1)
    epochs, _, again = run(subject, data, State.read(Storage(str(tmp_path)), "."))
    assert epochs == []
    assert again.best == state.best
    assert moved(after[-1], weights(subject.net)) == set()


def test_the_newest_whole_state_of_the_same_recipe_is_found(
    data: tuple[Images, Images], tmp_path: Path
) -> None:
    settings = recipe(phases=[{"unfreeze": "full", "epochs": 3, "lr": 1e-3}])
    other = recipe(phases=[{"unfreeze": "full", "epochs": 3, "lr": 2e-3}])
    assert newest(Storage(str(tmp_path)), ".", settings) is None

    def report(epoch: Epoch, state: State) -> None:
        folder = tmp_path / f"checkpoint_{epoch.epoch:06d}"
        folder.mkdir()
        state.write(folder)

    trainer(settings).fit(*data, report)

    def found() -> int | None:
        state = newest(Storage(str(tmp_path)), ".", settings)
        return None if state is None else state.epoch.epoch

    assert found() == 2
    assert newest(Storage(str(tmp_path)), ".", other) is None
    best = tmp_path / "checkpoint_000002" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    assert found() == 1
    state = tmp_path / "checkpoint_000001" / "state.pt"
    whole = state.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        state.write_bytes(whole[:cut])
        assert found() == 0, cut
    (tmp_path / "checkpoint_000000" / "state.pt").unlink()
    assert found() is None


def test_the_checkpoint_kept_is_that_of_the_best_epoch(
    data: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = iter([(1.0, 0.5), (0.9, 0.7), (0.8, 0.7), (0.85, 0.7), (0.1, 0.6)])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, images: next(script))
    subject = trainer(recipe())
    _, after, state = run(subject, data)
    net, card = load_checkpoint(state.best)
    assert card.scores == {"val_accuracy": 0.7, "val_loss": 0.8}
    assert (state.best_score, state.best_loss) == (0.7, 0.8)
    assert [moved(weights(net), w) == set() for w in after] == [False, False, True, False, False]


def test_figures_of_an_epoch_are_those_of_torch(data: tuple[Images, Images]) -> None:
    subject = trainer(recipe(phases=[{"epochs": 1, "lr": 1e-3}]))
    (epoch,), _, state = run(subject, data)
    train, val = data
    net, _ = load_checkpoint(state.best)
    facts = backbone("test_resnet")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (facts.mean, facts.std))
    with torch.no_grad():
        logits = net((val.pixels[:, None].expand(-1, 3, -1, -1) / 255 - mean) / std)
    assert epoch.val_loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, val.targets)), rel=1e-4
    )
    assert epoch.val_score * len(val) == int((logits.argmax(1) == val.targets).sum())
    assert (epoch.epoch, epoch.phase, epoch.unfreeze, epoch.lr) == (0, 0, "full", 1e-3)
    assert epoch.train_score * len(train) == pytest.approx(round(epoch.train_score * len(train)))


def test_a_few_images_can_be_learnt_by_heart(data: tuple[Images, Images]) -> None:
    train, _ = data
    phases = [{"unfreeze": "full", "epochs": 20, "lr": 5e-3}]
    subject = trainer(recipe(phases=phases, augment={"flip": False, "rotation": 0}))
    epochs, _, _ = run(subject, (train, train))
    assert epochs[-1].train_score == 1.0
    assert epochs[-1].train_loss < epochs[0].train_loss / 4


def test_a_plateau_lowers_the_rate_and_each_phase_starts_anew(
    data: tuple[Images, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0])
    monkeypatch.setattr(Trainer, "evaluate", lambda self, images: (next(losses), 0.5))
    settings = recipe(
        plateau={"patience": 1, "factor": 0.5},
        phases=[
            {"unfreeze": "head", "epochs": 5, "lr": 0.008},
            {"unfreeze": "full", "epochs": 3, "lr": 0.004},
        ],
    )
    epochs, _, _ = run(trainer(settings), data)
    # Patience 1: the rate falls after the second epoch in a row without a better loss.
    assert [e.lr for e in epochs] == [0.008, 0.008, 0.008, 0.004, 0.004, 0.004, 0.004, 0.004]
    assert [e.phase for e in epochs] == [0] * 5 + [1] * 3


@pytest.mark.parametrize(
    ("batch_size", "epochs", "lr"), [(4, 3, 1e6), (13, 1, 1e30)], ids=["train", "only Val shows it"]
)
def test_a_loss_that_is_no_number_stops_the_trial(
    batch_size: int, epochs: int, lr: float, data: tuple[Images, Images]
) -> None:
    settings = recipe(
        "test_efficientnet",
        optimizer="sgd",
        batch_size=batch_size,
        phases=[{"epochs": epochs, "lr": lr}],
    )
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf) in epoch \d; lower the"):
        run(trainer(settings), data)


def test_a_nan_in_the_weights_stops_the_trial(data: tuple[Images, Images]) -> None:
    subject = trainer(recipe())
    with torch.no_grad():
        subject.net.get_parameter("conv1.0.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(DivergedError, match="the loss became nan in epoch 1"):
        run(subject, data)
