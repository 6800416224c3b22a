"""Backends, batch sizes, and what happens where memory is out.

About 10 seconds; compiling a real backbone is `slow`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from raybench.errors import ModelError
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.models.runtime import (
    Runtime,
    best_batch_size,
    check_backend,
    is_out_of_memory,
)
from tests.models.runtime_nets import Tiny, question, shares, steep


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return steep()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_openvino_agrees_with_torch(name: str) -> None:
    pytest.importorskip("openvino")
    module, asked = steep(name), question(21)
    torch_answers = Classifier(module, (64, 64)).predict_perturbed(*asked)
    runtime = Runtime("openvino", n_threads=1)
    answers = Classifier(module, (64, 64), runtime=runtime).predict_perturbed(*asked)
    assert not np.array_equal(answers, torch_answers), "torch answered"
    np.testing.assert_allclose(answers, torch_answers, atol=1e-4)


def test_compile_agrees_with_torch() -> None:
    module, asked = Tiny().eval(), question(21)
    expected = Classifier(module, (64, 64)).predict_perturbed(*asked)
    torch._dynamo.utils.counters.clear()
    classifier = Classifier(module, (64, 64), runtime=Runtime("compile"))
    np.testing.assert_allclose(classifier.predict_perturbed(*asked), expected, atol=1e-4)
    # 21 images in batches of 16: the short one is filled up, or it would be compiled again.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
def test_a_compiled_backbone_agrees_with_torch(net: nn.Module) -> None:
    expected = Classifier(net, (64, 64)).predict_perturbed(*question(21))
    classifier = Classifier(net, (64, 64), runtime=Runtime("compile"))
    np.testing.assert_allclose(classifier.predict_perturbed(*question(21)), expected, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_bfloat16_is_close(net: nn.Module, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    asked = question(21)
    expected = Classifier(net, (64, 64)).predict_perturbed(*asked)
    runtime = Runtime(backend, "bfloat16", n_threads=1)
    answers = Classifier(net, (64, 64), runtime=runtime).predict_perturbed(*asked)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, atol=0.02)
    if backend == "torch":  # OpenVINO takes float32 where the CPU has no such arithmetic
        assert abs(answers - expected).max() > 1e-6


@pytest.mark.parametrize("backend", ["torch", "compile", "openvino"])
def test_modes_are_left_as_they_were_found(backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    module = Tiny().train()
    module.conv.eval()
    modes = {name: part.training for name, part in module.named_modules()}
    classifier = Classifier(module, (64, 64), runtime=Runtime(backend))
    classifier.predict_perturbed(*question(3))
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    # Gradients go through the module itself, whatever answers.
    classifier.net(classifier.prepare(question()[0][None])).sum().backward()
    assert module.conv.weight.grad is not None


class Small(Tiny):
    """Says that memory is out above a number of images, as torch does on a GPU."""

    def __init__(self, most: int, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self.most, self.error = most, error

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(batch))
        if len(batch) > self.most:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_where_memory_is_out_the_batch_is_halved_and_stays_so(
    error: Callable[[str], Exception],
) -> None:
    asked = question(21)
    expected = Classifier(Tiny(), (64, 64)).predict_perturbed(*asked)
    small = Small(5, error)
    classifier = Classifier(small, (64, 64))
    np.testing.assert_allclose(classifier.predict_perturbed(*asked), expected, atol=1e-6)
    assert small.seen == [16, 8, 4, 4, 4, 4, 4, 1]
    assert classifier.batch_size == 4
    small.seen.clear()
    classifier.predict_perturbed(*asked)
    assert max(small.seen) == 4


def test_memory_that_does_not_hold_one_image_is_an_error_that_says_so() -> None:
    small = Small(0, torch.OutOfMemoryError)
    with pytest.raises(ModelError, match="memory is out with a single image a pass; take a"):
        Classifier(small, (64, 64)).predict_perturbed(*question(3))
    assert small.seen == [3, 3, 3, 2, 1]


def test_other_errors_are_not_taken_for_memory() -> None:
    small = Small(0, lambda _: RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Classifier(small, (64, 64)).predict_perturbed(*question(3))
    assert small.seen == [3]
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("speeds", "best"),
    [
        ({16: 100, 32: 180, 64: 300, 128: 305, 256: 900}, 64),
        ({16: 100, 32: 104, 64: 90}, 32),
        ({16: 100, 32: 200}, 32),  # memory is out at 64
        ({}, 16),  # and here from the start: the passes halve it
    ],
)
def test_the_batch_size_is_doubled_until_it_gains_little(
    speeds: dict[int, float], best: int
) -> None:
    def throughput(size: int) -> float:
        if size not in speeds:
            raise torch.OutOfMemoryError("out of memory")
        return speeds[size]

    assert best_batch_size(throughput) == best


def test_on_a_cpu_the_batch_size_is_fixed(net: nn.Module) -> None:
    assert Classifier(net, (64, 64)).batch_size == 16
    assert Classifier(net, (64, 64), runtime=Runtime(batch_size=7)).batch_size == 7


def identity(
    data: bytes, monkeypatch: pytest.MonkeyPatch | None = None, **runtime: object
) -> str | None:
    return Classifier.from_checkpoint(data, runtime=Runtime(**runtime)).identity  # type: ignore[arg-type]


def test_the_identity_changes_with_each_thing_that_decides_the_answers(net: nn.Module) -> None:
    def card(size: int = 64) -> Card:
        return Card("test_resnet", ("a", "b", "c"), (size, size))

    data = save_checkpoint(net, card())
    with torch.no_grad():
        other = steep()
        other.get_classifier().bias.add_(1e-3)
    ids = [
        identity(data),
        identity(save_checkpoint(other, card())),
        identity(save_checkpoint(net, card(96))),
        identity(data, precision="bfloat16"),
        identity(data, backend="compile"),
    ]
    plain = {"net": net, "input_size": (64, 64), "checkpoint": "0" * 64}
    ids += [
        Classifier(**plain).identity,
        Classifier(**plain | {"input_size": (64, 96)}).identity,
        Classifier(**plain | {"mean": (0, 0, 0)}).identity,
        Classifier(**plain | {"std": (1, 1, 1)}).identity,
        Classifier(**plain | {"net": steep().to("meta"), "device": "meta"}).identity,
        Classifier(**plain | {"checkpoint": "1" * 64}).identity,
    ]
    assert len(set(ids)) == len(ids)
    assert all(i is not None and len(i) == 64 for i in ids)
    assert identity(data) == identity(data, batch_size=3, n_threads=1) == ids[0]
    assert Classifier(net, (64, 64)).identity is None


def test_a_backend_that_cannot_run_here_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, net: nn.Module
) -> None:
    with pytest.raises(ModelError, match=r"openvino runs on CPUs only.*torch or compile"):
        check_backend("openvino", "cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r'pip install "raybench\[openvino\]"'):
        Classifier(net, (64, 64), runtime=Runtime("openvino"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ModelError, match=r"no 'no-such-compiler'; install one"):
        Classifier(net, (64, 64), runtime=Runtime("compile"))
    check_backend("compile", "cuda")


@pytest.mark.parametrize(
    ("settings_", "said"),
    [
        (
            {"backend": "onnx"},
            "backend: expected one of auto, torch, folded, compile, openvino, found 'onnx'",
        ),
        ({"precision": "float16"}, "precision: expected one of float32, bfloat16"),
        ({"batch_size": 0}, "batch_size: expected a number of at least 1"),
        ({"n_threads": -1}, "n_threads: expected a number of at least 1"),
    ],
)
def test_a_runtime_refuses_what_it_does_not_know(settings_: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Runtime(**settings_)  # type: ignore[arg-type]


def _part(drawn: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return drawn[start:stop]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 64), (96, 80)])
def test_a_gpu_answers_as_a_cpu_does(size: tuple[int, int]) -> None:
    asked = question(40, size)
    expected = Classifier(steep(), (64, 64)).predict_perturbed(*asked)
    classifier = Classifier(steep(), (64, 64), device="cuda")
    # Resized images may differ by a grey level here and there.
    atol = 1e-3 if size == (64, 64) else 0.02
    np.testing.assert_allclose(classifier.predict_perturbed(*asked), expected, atol=atol)
    assert classifier.batch_size >= 16
    blended = [
        model.predict_blended(*asked[:2], 9, partial(_part, shares(9, size, model.device.type)))
        for model in (Classifier(steep(), (64, 64)), classifier)
    ]
    np.testing.assert_allclose(blended[1], blended[0], atol=1e-3)
    rough = Classifier(steep(), (64, 64), device="cuda", runtime=Runtime(precision="bfloat16"))
    np.testing.assert_allclose(rough.predict_perturbed(*asked), expected, atol=0.05)
