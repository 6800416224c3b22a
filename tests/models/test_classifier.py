"""The classifier: checkpoints, weights from files, and prediction against plain torch.

About 3 seconds.
"""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from raybench.errors import ModelError
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import (
    Card,
    load_checkpoint,
    read_card,
    save_checkpoint,
    save_tensors,
)
from raybench.models.classifier import Classifier
from raybench.models.predict import Batch, Predict
from raybench.models.runtime import Runtime

CLASSES = ("COVID-19", "Non-COVID", "Normal")
CARD = Card("test_resnet", CLASSES, (64, 64), {"lung_masking": True}, {"val_accuracy": 0.5})


def noise(n: int, size: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size), dtype=np.uint8)


def grown(name: str = "test_resnet") -> nn.Module:
    """A network whose BatchNorm statistics are not those of a fresh one."""
    torch.manual_seed(0)
    net = build(name, 3).train()
    with torch.no_grad():
        net(torch.randn(8, 3, 64, 64))
    return net.eval()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.from_checkpoint(save_checkpoint(grown(), CARD))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_checkpoint_gives_the_same_classifier_back(name: str, tmp_path: Path) -> None:
    net, card = grown(name), Card(name, CLASSES, (64, 64), {"clahe": False}, {"val_loss": 1.5})
    data = save_checkpoint(net, card)
    again, found = load_checkpoint(data)
    assert found == card
    assert not again.training
    assert list(again.state_dict()) == list(net.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    facts = backbone(name)
    before = Classifier(net, (64, 64), facts.mean, facts.std, CLASSES)
    net.to(memory_format=torch.channels_last)
    after = Classifier.from_checkpoint(data)
    np.testing.assert_array_equal(after.predict(noise(5)), before.predict(noise(5)))
    assert (after.classes, after.input_size, after.cam_layer) == (
        CLASSES,
        (64, 64),
        facts.cam_layer,
    )
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert read_card(str(path)) == card


def with_card(**changes: object) -> bytes:
    raw = {"backbone": "test_resnet", "classes": CLASSES, "input_size": [64, 64], **changes}
    return bytes(
        safetensors.torch.save(grown().state_dict(), metadata={"raybench": json.dumps(raw)})
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" * 40, "not a checkpoint"),
        ((2).to_bytes(8, "little") + b"[]", "it carries no card"),
        (safetensors.torch.save({"a": torch.zeros(2)}), "it carries no card"),
        (save_checkpoint(grown(), CARD)[:-8], "not a checkpoint that fits"),
        (with_card(classes=["a", "b"]), "the head is one for 3 classes, not for 2"),
        (with_card(backbone="test_efficientnet"), r"missing \(conv_stem.weight, .* more\)"),
        (with_card(backbone="test_resnett"), "timm has no such backbone"),
        (with_card(since="later"), "its card"),
        (with_card(classes=3), "its card"),
    ],
    ids=[
        "empty",
        "png",
        "list",
        "cardless",
        "cut",
        "classes",
        "backbone",
        "unknown",
        "key",
        "type",
    ],
)
def test_what_is_no_checkpoint_that_fits_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=said) as error:
        load_checkpoint(data, "t0003.safetensors")
    message = str(error.value)
    assert said == "timm has no such backbone" or message.startswith("t0003.safetensors: ")
    assert len(message) < 700
    assert "\n" not in message


def test_weights_from_a_file_are_loaded(imagenet_weights: Path) -> None:
    stored = safetensors.torch.load_file(imagenet_weights)
    torch.manual_seed(0)
    net = build("tf_efficientnet_lite0", 3, str(imagenet_weights))
    drawn = build("tf_efficientnet_lite0", 3)
    for name, value in net.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(value, stored[name]), name
    assert net.get_parameter("classifier.weight").shape == (3, 1280)
    assert not torch.equal(
        net.state_dict()["conv_stem.weight"], drawn.state_dict()["conv_stem.weight"]
    )
    with pytest.raises(
        ModelError, match=r"does not fit .*unexpected \(blocks\.0.* weights made for test_resnet"
    ):
        build("test_resnet", 3, str(imagenet_weights))


def test_the_head_beside_weights_from_a_file_is_drawn_from_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "five.safetensors"
    safetensors.torch.save_file(build("test_resnet", 5).state_dict(), path)
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(build("test_resnet", 3, str(path)).get_parameter("fc.weight"))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def _write_other(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, path)


def _write_half(path: Path) -> None:
    state = {k: v for k, v in build("test_resnet", 3).state_dict().items() if "layer4" not in k}
    safetensors.torch.save_file(state, path)


def _write_pickle(path: Path) -> None:
    path.with_suffix(".pth").write_bytes(pickle.dumps(Path))


@pytest.mark.parametrize(
    ("write", "suffix", "said"),
    [
        (lambda p: p.write_bytes(b"no weights at all"), ".safetensors", "does not fit"),
        (lambda p: p.write_bytes(b""), ".pth", "does not fit"),
        (lambda p: torch.save([1, 2], p), ".pth", "does not fit"),
        (_write_pickle, ".pth", "does not fit"),
        (
            _write_other,
            ".safetensors",
            r"missing \(conv1\..* more\); 1 unexpected \(a\)\); give weights made for",
        ),
        (
            _write_half,
            ".safetensors",
            r"\(15 missing \(layer4\.0\.conv1\.weight, .* and 10 more\)\)",
        ),
    ],
    ids=["garbage", "empty", "list", "pickle", "other", "half"],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_without_these_weights_is_refused_and_never_passed_over(
    write: object, suffix: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    assert callable(write)
    write(path)
    with pytest.raises(ModelError, match=said) as error:
        build("test_resnet", 3, str(path))
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


def reshaped(names: dict[str, str], **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """A network's tensors under other names, some of them replaced."""
    state = {names.get("", "") + key: value for key, value in grown().state_dict().items()}
    return {**state, **tensors}


FC = {"fc.weight": torch.zeros(5, 96), "fc.bias": torch.zeros(5)}
HEAD = (
    "2 of another shape (fc.weight: expected [3, 96], found [5, 96], fc.bias: expected [3], "
    "found [5]); the head is one for 5 classes, not for 3"
)
CONV = {"layer1.0.conv1.weight": torch.zeros(32, 32, 1, 1)}
SHAPE = "(layer1.0.conv1.weight: expected [32, 32, 3, 3], found [32, 32, 1, 1])"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (reshaped({}, **FC), HEAD),
        (reshaped({}, **CONV), f"1 of another shape {SHAPE}"),
        (reshaped({}, **FC, **CONV), f"3 of another shape {SHAPE[:-1]}, fc.weight: expected"),
        (reshaped({}, extra=torch.zeros(1)), "1 unexpected (extra)"),
        (reshaped({"": "module."}), "every name begins with 'module.': take it off"),
        (reshaped({"": "net.model."}), "every name begins with 'net.model.': take it off"),
    ],
    ids=["head", "shape", "both", "unexpected", "prefix", "prefixes"],
)
def test_a_checkpoint_that_does_not_fit_says_which_tensors_and_why(
    tensors: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(ModelError) as error:
        load_checkpoint(save_tensors(tensors, CARD), "theirs.safetensors")
    start = "theirs.safetensors: not a checkpoint that fits test_resnet with 3 classes: "
    assert str(error.value).startswith(start)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert ("take it off" in str(error.value)) == ("take it off" in said)
    assert ("the head" in str(error.value)) == ("the head" in said)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (reshaped({}, **CONV, **FC), f"(1 of another shape {SHAPE})"),
        (reshaped({"": "model."}), "every name begins with 'model.': take it off"),
    ],
    ids=["shape", "prefix"],
)
def test_weights_from_a_file_that_do_not_fit_are_named(
    tensors: dict[str, torch.Tensor], said: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w{suffix}"
    write = torch.save if suffix == ".pth" else safetensors.torch.save_file
    write(tensors, path)
    with pytest.raises(ModelError) as error:
        build("test_resnet", 3, str(path))
    assert said in str(error.value)
    assert "fc." not in str(error.value), "the head is drawn anew, whatever the file holds"


def test_the_lines_of_the_readme_load_a_checkpoint_with_timm_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (lines,) = [
        block.partition("```")[0]
        for block in readme.split("```python\n")[1:]
        if "checkpoint_path" in block.partition("```")[0]
    ]
    assert len([line for line in lines.splitlines() if line]) == 3
    assert "raybench" not in lines
    net = grown("test_efficientnet")
    folder = tmp_path / "runs" / "quickstart" / "checkpoints"
    folder.mkdir(parents=True)
    data = save_checkpoint(net, Card("test_efficientnet", CLASSES, (64, 64)))
    (folder / "t0000.safetensors").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    known: dict[str, nn.Module] = {}
    exec(lines, known)
    assert not known["model"].training
    batch = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(known["model"](batch), net(batch))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(
        ModelError, match=r"test_resnet: no weights file 'gone\.pth'.*`hub`.*`none`"
    ):
        build("test_resnet", 3, "gone.pth")


def test_without_a_network_the_hub_gives_one_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.perf_counter()
    with pytest.raises(ModelError) as error:
        build("test_resnet", 3, "hub")
    assert time.perf_counter() - started < 20
    for words in ("test_resnet.r160_in1k", "the hub", "weights: FILE", "weights: none"):
        assert words in str(error.value)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "tf_efficientnet_lite0"])
def test_prediction_is_a_plain_forward_pass_of_the_normalised_image(name: str) -> None:
    facts, net, images = backbone(name), grown(name), noise(3)
    mean, std = (np.array(v, np.float32) for v in (facts.mean, facts.std))
    scaled = (np.repeat(images[..., None], 3, axis=3).astype(np.float32) / 255 - mean) / std
    with torch.no_grad():
        expected = net(torch.from_numpy(scaled.transpose(0, 3, 1, 2))).softmax(1).numpy()
    found = Classifier(net, (64, 64), facts.mean, facts.std).predict(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 9), batch_size=st.integers(1, 10), seed=st.integers(0, 99))
def test_batch_size_does_not_matter(
    classifier: Classifier, n: int, batch_size: int, seed: int
) -> None:
    images = noise(n, seed=seed)
    whole = Classifier(classifier.net, (64, 64), runtime=Runtime(batch_size=100)).predict(images)
    parts = Classifier(classifier.net, (64, 64), runtime=Runtime(batch_size=batch_size)).predict(
        images
    )
    assert parts.shape == (n, 3)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    np.testing.assert_allclose(parts.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [64, 100, 40])
def test_grey_and_the_same_in_colour_are_one(classifier: Classifier, size: int) -> None:
    grey = noise(4, size)
    colour = np.repeat(grey[..., None], 3, axis=3)
    np.testing.assert_array_equal(classifier.predict(colour), classifier.predict(grey))


def test_modes_and_gradients_are_left_as_they_were_found(classifier: Classifier) -> None:
    net = grown()
    net.train()
    net.get_submodule("layer1").eval()
    subject = Classifier(net, (64, 64))
    modes = {name: module.training for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    subject.predict(noise(3))
    with pytest.raises(RuntimeError):
        Classifier(net, (1, 1)).predict(np.zeros((1, 1, 1, 7), np.uint8))
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_prediction_as_a_unit_of_work(classifier: Classifier) -> None:
    batch = Batch(("a", "b", "c"), noise(3))
    (unit,) = Predict().plan(batch, {})
    assert unit.n_forward == 3
    done = {unit.name: Predict().run(unit, classifier)}
    assert Predict().plan(batch, done) == []
    np.testing.assert_array_equal(Predict().merge(batch, done), classifier.predict(batch.pixels))
    with pytest.raises(ModelError, match="needs a classifier"):
        Predict().run(unit, None)
