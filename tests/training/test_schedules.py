"""The four schedules of the study, from its sweep file, at 64 pixels: an epoch a phase, no weights.

The two small ones take about 8 seconds; VGG16 and ConvNeXt-Base, of 134 and 88 million parameters,
are `slow`.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from raybench.data.phantom import Phantom
from raybench.models.backbones import backbone, trainable
from raybench.models.checkpoint import Card
from raybench.training.batches import Images, load_images
from raybench.training.loop import Trainer
from raybench.training.recipe import Recipe
from raybench.training.state import Epoch, State
from raybench.training.task import Classify

SWEEP = Path(__file__).resolve().parents[2] / "sweeps" / "covid-qu-ex.yaml"
TASK = Classify(("COVID-19", "Non-COVID", "Normal"))
PHASES = {
    "vgg16": ["full"],
    "densenet121": ["head", "partial", "full"],
    "densenet201": ["head", "partial", "full"],
    "convnext_base": ["head", "partial", "full"],
}
LARGE = ("vgg16", "convnext_base")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def data() -> tuple[Images, Images]:
    phantom = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=64)
    settings = recipe("densenet121")
    train, val = (
        load_images(
            phantom,
            [r for r in phantom.records() if r.split == split],
            settings.preprocessing,
            (64, 64),
            TASK.target,
        )
        for split in ("Train", "Val")
    )
    return train, val


def recipe(name: str) -> Recipe:
    """As the file has it, but for size, weights and the length of its phases."""
    raw = next(r for r in yaml.safe_load(SWEEP.read_text())["backbones"] if r["name"] == name)
    raw |= {"weights": "none", "input_size": 64}
    raw["phases"] = [phase | {"epochs": 1} for phase in raw["phases"]]
    return Recipe.model_validate(raw)


def prints(net: nn.Module) -> dict[str, bytes]:
    """A digest of each parameter and buffer: a copy of every phase would not fit everywhere."""
    return {
        name: hashlib.blake2b(value.detach().numpy().tobytes()).digest()
        for name, value in net.state_dict().items()
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in PHASES],
)
def test_a_schedule_of_the_study_moves_what_each_phase_frees(
    name: str, data: tuple[Images, Images]
) -> None:
    settings = recipe(name)
    assert [phase.unfreeze for phase in settings.phases] == PHASES[name]
    torch.manual_seed(0)
    network = TASK.network(settings)
    card = Card(name, TASK.classes, settings.size)
    subject = Trainer(TASK, network, settings, card, 0, "cpu")
    seen: list[dict[str, bytes]] = [prints(subject.net)]
    epochs: list[Epoch] = []

    def report(epoch: Epoch, state: State) -> None:
        epochs.append(epoch)
        seen.append(prints(subject.net))

    state: Any = subject.fit(*data, report)
    assert [e.unfreeze for e in epochs] == PHASES[name]
    assert [e.lr for e in epochs] == [phase.lr for phase in settings.phases]
    assert len(state.best) > 4 * sum(p.numel() for p in subject.net.parameters())
    parameters = {n for n, _ in subject.net.named_parameters()}
    for before, after, unfreeze in zip(seen[:-1], seen[1:], PHASES[name], strict=True):
        free = set(trainable(subject.net, backbone(name), unfreeze))
        moved = {n for n in before if before[n] != after[n]}
        assert moved - free <= set(before) - parameters, "a frozen parameter moved"
        assert free <= moved, f"{unfreeze}: did not move: {sorted(free - moved)[:5]}"
        # A BatchNorm layer's statistics move with its weight, and only then.
        for buffer in set(before) - parameters:
            layer = buffer.rpartition(".")[0]
            assert (buffer in moved) == (f"{layer}.weight" in free), buffer
