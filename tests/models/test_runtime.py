"""Perturbed images composed on the device, the backends, and what happens where memory is out.

About 20 seconds; compiling a real backbone is `slow`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from raybench.data.preprocess import resize_gray
from raybench.errors import ModelError
from raybench.explain.perturbation import render
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.models.classifier import Classifier
from raybench.models.perturbed import Composer, resize_matrices
from raybench.models.runtime import (
    Runtime,
    best_batch_size,
    check_backend,
    is_out_of_memory,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def steep(name: str = "test_resnet") -> nn.Module:
    """A network whose answers move: a fresh head says 1/3 to everything."""
    torch.manual_seed(0)
    net = build(name, 3).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 64, 64))
        net.get_classifier().weight.mul_(40)
    return net.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return steep()


class Tiny(nn.Module):
    """Compiles in seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, 3)
        self.seen: list[int] = []

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(batch)).mean(dim=(2, 3))) * 4


Question = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32], NDArray[np.bool_]]


def question(n: int = 20, size: tuple[int, int] = (64, 64), seed: int = 0) -> Question:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, size, dtype=np.uint8)
    fill = rng.integers(0, 256, size, dtype=np.uint8)
    superpixels = rng.integers(0, 9, size).astype(np.int32)
    superpixels.flat[:9] = np.arange(9)
    return image, fill, superpixels, rng.random((n, 9)) > 0.5


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 12),
    batch_size=st.integers(1, 7),
    size=st.sampled_from([(64, 64), (96, 80), (40, 64), (64, 100), (33, 47)]),
    n_fills=st.sampled_from([0, 1, 1, 3]),
    seed=st.integers(0, 999),
)
def test_composed_answers_are_those_to_the_rendered_images_to_the_bit(
    net: nn.Module, n: int, batch_size: int, size: tuple[int, int], n_fills: int, seed: int
) -> None:
    """Black, one image, or three that take turns."""
    classifier = Classifier(net, (64, 64), runtime=Runtime(batch_size=batch_size))
    image, fill, superpixels, keep = question(n, size, seed)
    fills = np.stack([fill * n_fills, fill + 9, fill // 2])[: max(n_fills, 1)]
    which = np.random.default_rng(seed).integers(0, len(fills), n) if n_fills > 1 else None
    found = classifier.predict_perturbed(image, fills, superpixels, keep, which)
    expected = classifier.predict(render(image, fills, superpixels, keep, which))
    assert (found.dtype, found.shape) == (np.float32, (n, 3))
    np.testing.assert_array_equal(found, expected)


def shares(n: int, size: tuple[int, int], device: str = "cpu") -> torch.Tensor:
    """How much of each pixel is shown: all, nothing, and anything between."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand((n, *size), generator=generator)
    drawn[0], drawn[1] = 1, 0
    return drawn.to(device)


@pytest.mark.parametrize("size", [(64, 64), (96, 80), (40, 64)])
def test_blends_are_those_of_grey_levels(net: nn.Module, size: tuple[int, int]) -> None:
    classifier = Classifier(net, (64, 64), runtime=Runtime(batch_size=3))
    image, fill, _, _ = question(1, size)
    shown = shares(8, size)
    found = classifier.predict_blended(image, fill, 8, lambda start, stop: shown[start:stop])
    weight = shown.double().numpy()
    rows, columns = resize_matrices(size, (64, 64))
    grey = rows @ (weight * image + (1 - weight) * fill) @ columns
    batch = (grey[:, None] - classifier._inputs._mean.numpy()) / classifier._inputs._std.numpy()
    with torch.no_grad():
        expected = torch.softmax(classifier.net(torch.from_numpy(batch).float()), dim=1)
    assert (found.dtype, found.shape) == (np.float32, (8, 3))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found, axis=0).max() > 1e-2
    if size == (64, 64):  # at the ends a blend is the image or the fill itself
        np.testing.assert_allclose(
            found[:2], classifier.predict(np.stack([image, fill])), atol=1e-6
        )


def test_answers_differ_between_perturbations(net: nn.Module) -> None:
    # Or the equality above would say nothing.
    answers = Classifier(net, (64, 64)).predict_perturbed(*question(20))
    assert len(np.unique(answers[:, 0])) == 20


def test_a_batch_is_composed_channels_last_and_whole() -> None:
    image, fill, superpixels, keep = question(5, (8, 6))
    tensors = [torch.from_numpy(a)[None, None].expand(1, 3, 8, 6) for a in (image, fill)]
    batch = Composer(torch.cat(tensors), superpixels, keep)(1, 4)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = render(image, fill, superpixels, keep[1:4])
    for channel in range(3):
        np.testing.assert_array_equal(batch[:, channel].numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 99),
)
def test_resizing_by_matrices_is_resize_gray_within_a_grey_level(
    shape: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    rows, columns = resize_matrices(shape, size)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(columns.sum(axis=0), 1, atol=1e-5)
    found = (rows @ image.astype(np.float32) @ columns).round()
    expected = resize_gray(image, size).astype(np.float32)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1


def test_resizing_on_the_device_is_that_of_the_host(net: nn.Module) -> None:
    """The GPU's way, on CPU tensors, at the study's 256 against 224."""
    classifier = Classifier(net, (224, 224))
    image, fill, superpixels, keep = question(6, (256, 256))
    both = np.stack([image, fill])
    found = classifier._inputs.resizing(both, superpixels, keep, None)(1, 6)
    expected = classifier.prepare(render(image, fill, superpixels, keep[1:6]))
    level = classifier.prepare(np.ones((1, 224, 224), np.uint8)) - classifier.prepare(
        np.zeros((1, 224, 224), np.uint8)
    )
    steps = (found - expected) / level
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert abs(steps).max() <= 1.001
    assert (abs(steps) > 0.5).float().mean() < 0.02


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, np.zeros((64, 64, 3), np.uint8), "image: expected uint8"),
        (0, np.zeros((64, 64), np.float32), "image: expected uint8"),
        (1, np.zeros((64, 63), np.uint8), r"fill: expected uint8 \[64, 64\], found .*64, 63"),
        (2, np.zeros((64, 63), np.int32), "superpixels: expected whole numbers"),
        (2, np.zeros((64, 64), np.float32), "superpixels: expected whole numbers"),
        (2, np.full((64, 64), 9, np.int32), r"labels 0 to 8 .*found 9 to 9"),
        (2, np.full((64, 64), -1, np.int32), r"labels 0 to 8 .*found -1"),
        (3, np.zeros((0, 9), np.bool_), r"keep: expected bool \[n, K\]"),
        (3, np.zeros((4, 9), np.uint8), r"keep: expected bool \[n, K\]"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    net: nn.Module, at: int, value: np.ndarray, said: str
) -> None:
    arrays = list(question())
    arrays[at] = value
    with pytest.raises(ModelError, match=said):
        Classifier(net, (64, 64)).predict_perturbed(*arrays)


@pytest.mark.parametrize(
    ("n_fills", "which", "said"),
    [
        (2, None, "which: expected the fill of each row, for there are 2"),
        (2, np.zeros(3, np.intp), r"which: expected whole numbers \[4\], found int64 \[3\]"),
        (2, np.zeros(4), "which: expected whole numbers"),
        (2, np.array([0, 1, 2, 0]), "which: expected 0 to 1, found 0 to 2"),
        (1, np.array([0, 0, -1, 0]), "which: expected 0 to 0, found -1 to 0"),
    ],
)
def test_a_fill_that_is_not_there_is_refused(
    net: nn.Module, n_fills: int, which: np.ndarray | None, said: str
) -> None:
    image, fill, superpixels, keep = question(4)
    with pytest.raises(ModelError, match=said):
        Classifier(net, (64, 64)).predict_perturbed(
            image, np.stack([fill] * n_fills), superpixels, keep, which
        )


def test_features_are_timms_and_a_network_without_them_is_refused(net: nn.Module) -> None:
    image = question()[0]
    classifier = Classifier(net, (64, 64), runtime=Runtime(batch_size=2))
    found = classifier.embed(np.stack([image, image // 2, image]))
    with torch.no_grad():
        prepared = classifier.prepare(np.stack([image, image // 2]))
        expected = net.forward_head(net.forward_features(prepared), pre_logits=True)
    np.testing.assert_allclose(found[:2], expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    with pytest.raises(ModelError, match="embedding: pixels"):
        Classifier(nn.Flatten(), (64, 64)).embed(image[None])


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


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "tf_efficientnet_lite0", "densenet121"]
)
def test_a_folded_network_gives_the_same_answers_and_leaves_the_first_alone(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=3)
    with torch.no_grad():  # statistics that a fresh network does not have
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = Classifier(net, (64, 64), runtime=Runtime(backend="folded", batch_size=4))
    plain = Classifier(net, (64, 64), runtime=Runtime(batch_size=4))
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64), dtype=np.uint8)
    np.testing.assert_allclose(folded.predict(images), plain.predict(images), atol=1e-5)
    assert folded.runtime.backend == "folded"
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_auto_folds_where_it_can_and_says_so() -> None:
    resnet = timm.create_model("test_resnet", num_classes=3)
    convnext = timm.create_model("test_convnext", num_classes=3)  # no batch normalisation
    auto = Runtime(backend="auto")
    assert Classifier(resnet, (64, 64), runtime=auto).runtime.backend == "folded"
    assert Classifier(convnext, (64, 64), runtime=auto).runtime.backend == "torch"
    with pytest.raises(ModelError, match=r"torch\.fx can trace.*choose auto or torch"):
        Classifier(convnext, (64, 64), runtime=Runtime(backend="folded"))


class _TwoWays(nn.Module):
    """A trace goes another way than a tensor does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sign = 1 if isinstance(x, torch.Tensor) else -1
        return sign * self.norm(self.conv(x)).mean((2, 3))


def test_a_trace_that_missed_a_turn_is_not_used() -> None:
    auto = Classifier(_TwoWays(), (8, 8), runtime=Runtime(backend="auto"))
    assert auto.runtime.backend == "torch"
