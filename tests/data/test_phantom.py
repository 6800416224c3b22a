"""Phantoms against what they promise: exact masks, classes told apart by their lesions alone.

The whole file takes about 35 seconds of one core, most of it the training of a small classifier.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from raybench.data.phantom import Phantom, marker_mask, write_phantoms
from raybench.data.phantom_draw import MIN_CHANGE, WHITE, draw_scene
from raybench.data.phantom_lesions import consolidation, ground_glass
from raybench.errors import BadImageError
from raybench.storage import Storage
from raybench.types import SPLITS, ChestXray, Dataset, XrayRecord

SMALL = Phantom(name="phantom", n_train=2, n_val=1, n_test=3)


def of(dataset: Phantom, cls: str, split: str = "Test") -> list[XrayRecord]:
    return [r for r in dataset.records() if r.label == cls and r.split == split]


def halves(xray: ChestXray) -> list[np.ndarray]:
    """The two lungs, told apart as the two largest pieces of the lung mask."""
    assert xray.lung_mask is not None
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(xray.lung_mask.astype(np.uint8))
    largest = np.argsort(stats[1:, cv2.CC_STAT_AREA])[::-1][:2] + 1
    return [pieces == i for i in largest]


def crop(mask: np.ndarray) -> np.ndarray:
    ys, xs = np.nonzero(mask)
    return mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def test_records_are_named_like_the_real_set_and_sorted() -> None:
    dataset: Dataset = Phantom(name="phantom", n_train=11, n_val=1, n_test=3)
    records = dataset.records()
    order = [(SPLITS.index(r.split), dataset.classes.index(r.label), r.image_id) for r in records]
    assert order == sorted(order)
    assert len(records) == 3 * (11 + 1 + 3)
    ids = {r.image_id for r in records}
    assert {
        "Test/COVID-19/covid_3.png",
        "Test/Non-COVID/non_COVID (3).png",
        "Test/Normal/Normal (3).png",
    } <= ids
    assert len({r.patient for r in records}) == len(records) == len(ids)
    base = "Infection Segmentation Data/Infection Segmentation Data/Test/COVID-19"
    record = next(r for r in records if r.image_id == "Test/COVID-19/covid_3.png")
    assert record.image == f"{base}/images/covid_3.png"
    assert record.lung_mask == f"{base}/lung masks/covid_3.png"
    assert record.infection_mask == f"{base}/infection masks/covid_3.png"


def test_loading_depends_on_the_record_alone() -> None:
    records = SMALL.records()
    forward = [SMALL.load(r) for r in records]
    more = SMALL.model_copy(update={"n_train": 7, "classes": ("Normal", "COVID-19", "Non-COVID")})
    for xray in reversed(forward):
        again = more.load(xray.record)
        np.testing.assert_array_equal(again.image, xray.image)
        np.testing.assert_array_equal(again.lung_mask, xray.lung_mask)
        np.testing.assert_array_equal(again.infection_mask, xray.infection_mask)
    assert len({x.image.tobytes() for x in forward}) == len(records)
    lungs = {x.lung_mask.tobytes() for x in forward if x.lung_mask is not None}
    assert len(lungs) == len(records) // 3
    other = SMALL.model_copy(update={"seed": 1}).records()[0]
    assert not np.array_equal(
        SMALL.model_copy(update={"seed": 1}).load(other).image, forward[0].image
    )


@pytest.mark.parametrize(("size", "contrast"), [(64, 1.0), (256, 1.0), (331, 0.2), (128, 1.5)])
def test_infection_mask_is_exactly_what_the_lesions_changed(size: int, contrast: float) -> None:
    ill = SMALL.model_copy(update={"size": size, "contrast": contrast, "marker": True})
    healthy = ill.model_copy(update={"lesions": False})
    for record in ill.records():
        xray, before = ill.load(record), healthy.load(record)
        assert xray.image.dtype == np.uint8
        assert xray.image.shape == (size, size)
        change = xray.image.astype(int) - before.image
        assert xray.lung_mask is not None
        assert xray.infection_mask is not None
        np.testing.assert_array_equal(xray.lung_mask, before.lung_mask)
        assert not before.infection_mask.any()  # type: ignore[union-attr]
        assert not (change != 0)[~xray.lung_mask].any()
        if record.label == "COVID-19":
            np.testing.assert_array_equal(change != 0, xray.infection_mask)
        else:
            assert not xray.infection_mask.any()
            assert (change != 0).any() == (record.label == "Non-COVID")
        assert change[change != 0].min(initial=255) >= MIN_CHANGE


def test_lesions_are_exact_before_rounding_and_never_clipped() -> None:
    for number in range(25):
        scene = draw_scene(128, np.random.default_rng([number, 0]))
        assert 0 <= scene.noisy.min() <= scene.noisy.max() <= WHITE
        for draw in (ground_glass, consolidation):
            change = draw(scene, np.random.default_rng([number, 1]), 1.5)
            assert change.dtype == np.float32
            assert ((change == 0) | (change >= MIN_CHANGE)).all()
            assert not change[~scene.lung_mask].any()
            assert (scene.noisy + change).max() <= 253


def test_classes_are_the_same_bodies() -> None:
    healthy = SMALL.model_copy(update={"lesions": False})
    for split in SPLITS:
        columns = [[healthy.load(r) for r in of(healthy, c, split)] for c in healthy.classes]
        for same in zip(*columns, strict=True):
            assert len({x.image.tobytes() for x in same}) == 1
    for same in zip(*([SMALL.load(r) for r in of(SMALL, c)] for c in SMALL.classes), strict=True):
        assert len({x.lung_mask.tobytes() for x in same if x.lung_mask is not None}) == 1


def test_where_the_lesions_are() -> None:
    dataset = Phantom(name="phantom", n_test=40, size=128)
    shares, zones = [], set()
    for record in of(dataset, "COVID-19"):
        xray = dataset.load(record)
        shares.append(xray.infection_mask.sum() / xray.lung_mask.sum())  # type: ignore[union-attr]
        assert all((xray.infection_mask & lung).any() for lung in halves(xray))
    assert 0.05 < min(shares) < 0.3
    assert 0.5 < max(shares) < 0.9
    healthy = dataset.model_copy(update={"lesions": False})
    for record in of(dataset, "Non-COVID"):
        xray = dataset.load(record)
        changed = xray.image != healthy.load(record).image
        ill = [bool((changed & lung).any()) for lung in halves(xray)]
        assert sum(ill) == 1
        lung = halves(xray)[ill.index(True)]
        rows = np.flatnonzero(lung.any(axis=1))
        place = (np.nonzero(changed)[0].mean() - rows[0]) / (rows[-1] - rows[0])
        zones.add(int(place * 3))
    assert zones == {0, 1, 2}


@pytest.mark.parametrize("size", [64, 97, 256])
def test_marker_tells_the_class_and_touches_no_lung(size: int) -> None:
    marked = Phantom(name="phantom", n_train=1, n_val=1, n_test=12, size=size, marker=True)
    plain = marked.model_copy(update={"marker": False})
    glyphs: dict[str, np.ndarray] = {}
    for record in marked.records():
        xray, mask = marked.load(record), marker_mask(marked, record)
        np.testing.assert_array_equal(mask, xray.image != plain.load(record).image)
        np.testing.assert_array_equal(mask, xray.image == 255)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not (near & xray.lung_mask).any()
        np.testing.assert_array_equal(glyphs.setdefault(record.label, mask), mask)
        assert not marker_mask(plain, record).any()
    shapes = [crop(mask) for mask in glyphs.values()]
    for i, shape in enumerate(shapes):
        for other in shapes[:i]:
            assert not np.array_equal(shape, other)
            assert not np.array_equal(shape[:, ::-1], other)
    assert not any(
        mask[size // 5 :].any() or mask[:, size // 5 :].any() for mask in glyphs.values()
    )


def test_written_phantoms_read_back_the_same(tmp_path: Path) -> None:
    dataset = SMALL.model_copy(update={"marker": True, "size": 96})
    write_phantoms(dataset, Storage(str(tmp_path)))
    assert len(list(tmp_path.rglob("*.png"))) == 3 * len(dataset.records())
    for record in dataset.records():
        xray = dataset.load(record)
        for path, truth in (
            (record.image, xray.image),
            (record.lung_mask, np.where(xray.lung_mask, 255, 0)),  # type: ignore[arg-type]
            (record.infection_mask, np.where(xray.infection_mask, 255, 0)),  # type: ignore[arg-type]
        ):
            back = cv2.imread(str(tmp_path / str(path)), cv2.IMREAD_UNCHANGED)
            assert back is not None
            assert back.dtype == np.uint8
            np.testing.assert_array_equal(back, truth)


def test_what_is_refused() -> None:
    for classes in (["COVID-19"], ["COVID-19", "COVID-19"], ["Non-COVID", "Normal"], ["Flu"]):
        with pytest.raises(ValidationError, match="classes"):
            Phantom.model_validate({"name": "phantom", "classes": classes})
    pair = Phantom(name="phantom", classes=("COVID-19", "Normal"), n_train=1, n_val=1, n_test=1)
    assert {r.label for r in pair.records()} == {"COVID-19", "Normal"}
    foreign = [
        of(SMALL, "Non-COVID")[0],
        of(SMALL, "Normal")[1],
        SMALL.model_copy(update={"seed": 5}).records()[0],
    ]
    for record in foreign:
        with pytest.raises(BadImageError, match="this phantom data set") as caught:
            pair.load(record)
        assert str(record.patient) not in str(caught.value)


def arrays(dataset: Phantom, split: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lung-masked images `[N, side, side]`, labels, and mean and deviation inside the lungs."""
    images, labels, moments = [], [], []
    for record in (r for r in dataset.records() if r.split == split):
        xray = dataset.load(record)
        masked = xray.image * xray.lung_mask
        images.append(cv2.resize(masked, (side, side), interpolation=cv2.INTER_AREA))
        labels.append(dataset.classes.index(record.label))
        inside = xray.image[xray.lung_mask]
        moments.append((inside.mean(), inside.std()))
    return np.stack(images), np.array(labels), np.array(moments)


def as_input(images: np.ndarray) -> torch.Tensor:
    scaled = (torch.from_numpy(images).float() / 255 - 0.25) / 0.25
    return scaled[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def trained(images: np.ndarray, labels: np.ndarray, epochs: int) -> torch.nn.Module:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    net.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    inputs, targets = as_input(images), torch.from_numpy(labels)
    steps = epochs * -(-len(inputs) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps, pct_start=0.1)
    for _ in range(epochs):
        for index in torch.randperm(len(inputs)).split(16):
            mirrored = torch.rand(len(index), 1, 1, 1) < 0.5
            batch = torch.where(mirrored, inputs[index].flip(-1), inputs[index])
            loss = torch.nn.functional.cross_entropy(net(batch), targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def probabilities(net: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.softmax(net(as_input(images)), 1).numpy()


@pytest.fixture(scope="module")
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_small_classifier_needs_the_lesions_and_learns_them() -> None:
    dataset = Phantom(name="phantom", n_train=80, n_val=1, n_test=30)
    images, labels, moments = arrays(dataset, "Train", 64)
    held_out, truth, held_out_moments = arrays(dataset, "Test", 64)
    net = trained(images, labels, epochs=10)
    answers = probabilities(net, held_out)
    accuracy = float((answers.argmax(1) == truth).mean())
    assert accuracy > 0.9

    trivial = make_pipeline(StandardScaler(), LogisticRegression(C=10)).fit(moments, labels)
    assert trivial.score(held_out_moments, truth) < accuracy - 0.2

    # The same bodies without lesions: the three classes are one and the same image.
    healthy = dataset.model_copy(update={"lesions": False})
    bare, _, _ = arrays(healthy, "Test", 64)
    blind = probabilities(net, bare)
    assert float((blind.argmax(1) == truth).mean()) == pytest.approx(1 / 3)
    # Taking the lesions away takes the COVID-19 probability with them.
    covid = truth == dataset.classes.index("COVID-19")
    assert answers[covid, 0].mean() - blind[covid, 0].mean() > 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_nothing_is_learnt_without_lesions() -> None:
    dataset = Phantom(name="phantom", n_train=80, n_val=1, n_test=60, lesions=False)
    images, labels, _ = arrays(dataset, "Train", 64)
    # Held-out bodies of their own for each class: twenty numbers each, so that answers can differ.
    held_out, truth, _ = arrays(dataset, "Test", 64)
    own = np.concatenate([np.flatnonzero(truth == c)[c * 20 : c * 20 + 20] for c in range(3)])
    net = trained(images, labels, epochs=10)
    correct = int((probabilities(net, held_out[own]).argmax(1) == truth[own]).sum())
    assert 10 <= correct <= 30  # 99.9% of a binomial of 60 draws at 1/3 lies within


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_hiding_the_lesions_matters_more_than_hiding_as_much_of_the_lungs() -> None:
    dataset = Phantom(name="phantom", n_train=80, n_val=1, n_test=30)
    net = trained(*arrays(dataset, "Train", 64)[:2], epochs=10)
    drops: dict[str, list[float]] = {"lesions": [], "elsewhere": []}
    for record in of(dataset, "COVID-19"):
        xray = dataset.load(record)
        assert xray.lung_mask is not None
        assert xray.infection_mask is not None
        free = np.flatnonzero(xray.lung_mask & ~xray.infection_mask)
        count = min(len(free), int(xray.infection_mask.sum()))
        elsewhere = np.zeros(xray.image.size, np.bool_)
        elsewhere[free[:count]] = True
        masked = xray.image * xray.lung_mask
        level = np.uint8(np.median(xray.image[xray.lung_mask & ~xray.infection_mask]))
        views = [masked.copy() for _ in range(3)]
        views[1][xray.infection_mask] = level
        views[2][elsewhere.reshape(masked.shape)] = level
        small = [cv2.resize(v, (64, 64), interpolation=cv2.INTER_AREA) for v in views]
        whole, hidden, other = probabilities(net, np.stack(small))[:, 0]
        drops["lesions"].append(whole - hidden)
        drops["elsewhere"].append(whole - other)
    assert np.mean(drops["lesions"]) > 0.3
    assert np.mean(drops["lesions"]) > np.mean(drops["elsewhere"]) + 0.2
