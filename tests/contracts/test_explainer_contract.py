"""What every explainer must do; whoever joins `AnyExplainer` is held to it."""

from __future__ import annotations

import contextlib
import pickle
from typing import Annotated, Any, get_args

import numpy as np
import pytest
import timm
import torch
from nets import FAMILIES, FIXED, awake
from nets import classifier_of as family_classifier
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from raybench.data.phantom import Phantom
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ExplainError, ModelError
from raybench.explain import AnyExplainer, Explainer
from raybench.explain.given import wrap
from raybench.models.backbones import backbone
from raybench.models.classifier import Classifier
from raybench.types import Arrays, AttributionMap, ChestXray, Gray, Subject, Unit
from tests import walkthrough

BRIGHTEN = walkthrough.load().Brighten
FAMILY: tuple[type[Explainer], ...] = get_args(get_args(AnyExplainer)[0])
MEMBERS: tuple[type[Explainer], ...] = (*FAMILY, BRIGHTEN)
USERS = [member for member in MEMBERS if member.uses_model]
NETS = {
    "test_efficientnet": "blocks.4",
    "test_convnext": "stages.2.blocks.1",
    "vgg16": "features.28",
}
NEED_RELU = ("deep_lift", "lrp", "guided_backprop")
"""What the first two nets cannot be explained by; the third, which is slower, is theirs alone."""
QUICK = {"n_samples": 40, "n_masks": 40, "cells": 6, "window": 2, "chunk": 16}
QUICK |= {"n_channels": 20, "n_steps": 8}
GRID = (64, 64)
ADAPTER: TypeAdapter[Explainer] = TypeAdapter(
    Annotated[get_args(AnyExplainer)[0] | BRIGHTEN, Field(discriminator="name")]
)

NO_DEEP_LIFT = r"(deep_lift|lrp): captum has no rule for what this network does.*choose integr"
NO_RELU = r"guided_backprop: needs ReLU modules .*choose saliency"
REFUSED: dict[tuple[str, str], str] = {
    **{
        (name, family): NO_DEEP_LIFT
        for name in ("deep_lift", "lrp")
        for family in ("test_convnext", "test_efficientnet", "swin", "test_vit")
    },
    **{
        ("guided_backprop", family): NO_RELU
        for family in ("test_convnext", "test_efficientnet", "swin", "test_vit")
    },
}
"""What each explainer cannot do: its name and the family of backbones, and what it says."""


def name_of(member: type[Explainer]) -> str:
    return str(member.model_fields["name"].default)


each_member = pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
each_user = pytest.mark.parametrize("member", USERS, ids=lambda m: m.__name__)
each_net = pytest.mark.parametrize("net_name", NETS)


def quick(member: type[Explainer], **settings: Any) -> Explainer:
    """A member that asks little of the model; settings that it does not have are left out."""
    wanted = {**QUICK, **settings}
    return member(**{key: wanted[key] for key in wanted if key in member.model_fields})


def classifier_of(net_name: str) -> Classifier:
    if net_name in FAMILIES and net_name not in timm.list_models("test_*"):
        return family_classifier(net_name)
    torch.manual_seed(0)
    net = awake(timm.create_model(net_name, num_classes=3)).eval()
    with torch.no_grad():  # so that the answers move
        net.get_classifier().weight.mul_(10)
    facts = backbone(net_name)
    return Classifier(net, GRID, facts.mean, facts.std, cam_layer=NETS[net_name])


@pytest.fixture(scope="module")
def xray() -> ChestXray:
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=96)
    return data.load(data.records()[0])


@pytest.fixture(scope="module")
def image(xray: ChestXray) -> Gray:
    return resize_gray(Preprocess().apply(xray), GRID)


@pytest.fixture
def subject(xray: ChestXray, image: Gray) -> Subject:
    """An image whose map is wanted at another, non-square shape."""
    assert xray.lung_mask is not None
    lungs = xray.lung_mask[:90, 10:80]
    return Subject("Test/a.png", image, lungs, (90, 70), neighbours=near(image))


def near(image: Gray) -> np.ndarray:
    """Images that stand for a patient's neighbours."""
    return np.stack([np.roll(image[:, ::-1], number, axis=0) for number in range(5)])


@pytest.fixture(autouse=True)
def _skip_what_is_refused(request: pytest.FixtureRequest) -> None:
    """The fine-grained tests run on two nets; refusals are tested with the families."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    member, net_name = params.get("member"), params.get("net_name")
    fine = member is not None and "net_name" in params
    if fine and (name_of(member) in NEED_RELU) != (net_name == "vgg16"):
        pytest.skip("refused, as test_every_family says, or held to it on the other nets")


def finish(explainer: Explainer, subject: Subject, classifier: Classifier) -> dict[str, Arrays]:
    done: dict[str, Arrays] = {}
    while units := explainer.plan(subject, done):
        done |= {unit.name: explainer.run(unit, classifier) for unit in units}
    return done


def explain(explainer: Explainer, subject: Subject, classifier: Classifier) -> AttributionMap:
    return explainer.merge(subject, finish(explainer, subject, classifier))


@each_member
@each_net
@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize(("grid", "shape"), [(GRID, GRID), (GRID, (90, 70)), ((80, 60), (50, 96))])
def test_shape_dtype_finite(
    member: type[Explainer],
    net_name: str,
    target: int | None,
    grid: tuple[int, int],
    shape: tuple[int, int],
    xray: ChestXray,
) -> None:
    assert xray.lung_mask is not None
    picture = resize_gray(Preprocess().apply(xray), grid)
    lungs = xray.lung_mask[: shape[0], : shape[1]]
    asked = Subject("Test/a.png", picture, lungs, shape, target, near(picture))
    explainer, classifier = quick(member), classifier_of(net_name)
    found = explain(explainer, asked, classifier)
    assert found.values.shape == shape
    assert found.values.dtype == np.float32
    assert np.isfinite(found.values).all()
    assert np.ptp(found.values) > 0
    if member.uses_model:
        predicted = int(classifier.predict(picture[None])[0].argmax())
        assert found.target == (predicted if target is None else target)
    else:
        assert found.target is None


@each_member
@each_net
def test_same_seed_same_map(member: type[Explainer], net_name: str, subject: Subject) -> None:
    classifier = classifier_of(net_name)
    first, second = (explain(quick(member), subject, classifier) for _ in range(2))
    np.testing.assert_array_equal(first.values, second.values)
    if "seed" in member.model_fields:  # coins: of few superpixels other designs ask all patterns
        one, other = (
            explain(quick(member, seed=seed, design="independent"), subject, classifier)
            for seed in (0, 1)
        )
        # Where all patterns were asked some say that nothing is left to chance, and so it must be.
        certain = not np.any(one.extras.get("uncertainty", np.inf))
        assert np.array_equal(one.values, other.values) == certain


@each_member
@each_net
def test_units_are_counted_deterministic_and_named_once(
    member: type[Explainer], net_name: str, subject: Subject
) -> None:
    explainer, classifier = quick(member), classifier_of(net_name)
    done: dict[str, Arrays] = {}
    units: list[Unit] = []
    while planned := explainer.plan(subject, done):
        again = explainer.plan(subject, dict(reversed(done.items())))
        assert [unit.name for unit in again] == [unit.name for unit in planned]
        assert pickle.dumps(again) == pickle.dumps(planned)
        units += planned
        done |= {unit.name: explainer.run(unit, classifier) for unit in planned}
    assert len({unit.name for unit in units}) == len(units) > 0
    found = explainer.merge(subject, done)
    assert sum(unit.n_forward for unit in units) == found.n_forward
    assert found.n_forward <= explainer.n_forward_planned()
    assert all(unit.needs_model for unit in units if unit.n_forward)
    assert any(unit.needs_model for unit in units) == member.uses_model


@each_member
@each_net
def test_shipped_units_give_the_same_map(
    member: type[Explainer], net_name: str, subject: Subject
) -> None:
    """Explainer, units and answers travel by pickle, and answers come back in any order."""
    explainer, classifier = quick(member), classifier_of(net_name)
    direct = explain(explainer, subject, classifier)
    done: dict[str, Arrays] = {}
    while units := explainer.plan(subject, done):
        parcels = [pickle.dumps((explainer, unit)) for unit in units]
        for unit, parcel in reversed(list(zip(units, parcels, strict=True))):
            worker, received = pickle.loads(parcel)
            model = classifier if received.needs_model else None
            done[unit.name] = pickle.loads(pickle.dumps(worker.run(received, model)))
    shipped = pickle.loads(pickle.dumps(explainer)).merge(subject, done)
    np.testing.assert_array_equal(direct.values, shipped.values)
    assert (direct.target, direct.n_forward) == (shipped.target, shipped.n_forward)


@each_user
def test_a_missing_classifier_and_a_class_that_is_not_are_refused(
    member: type[Explainer], subject: Subject, image: Gray
) -> None:
    classifier = classifier_of("test_efficientnet")
    with pytest.raises(ExplainError, match="needs a classifier"):
        finish(quick(member), subject, None)  # type: ignore[arg-type]
    for target in (-1, 3):
        with pytest.raises(ExplainError, match=f"target {target}: the model has classes 0 to 2"):
            quick(member).attribute(classifier, image, target, neighbours=near(image))


class AnswersAlone(nn.Module):
    """Neither layers nor gradients can be had of it, as of several networks at once."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.hidden = [body]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.from_numpy(self.hidden[0](x).numpy())


@each_user
def test_an_explainer_says_whether_answers_alone_will_do(
    member: type[Explainer], image: Gray
) -> None:
    classifier = Classifier(AnswersAlone(classifier_of("test_efficientnet").net), GRID)
    if member.looks_inside:
        with pytest.raises((ExplainError, ModelError, RuntimeError)):  # torch has none to give
            quick(member).attribute(classifier, image)
    else:
        found = quick(member).attribute(classifier, image, neighbours=near(image))
        assert np.isfinite(found.values).all()


class BreaksForward(nn.Module):
    """Raises after all layers have been through."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.body(x)
        raise RuntimeError("broken on purpose")


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken on purpose")


class BreaksBackward(BreaksForward):
    """Answers, but has no gradients to give."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Refuse.apply(self.body(x))


def hooks(net: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)


def condition(net: nn.Module) -> dict[str, Any]:
    """All that an explainer could leave changed."""
    return {
        "hooks": hooks(net),
        "modes": [module.training for module in net.modules()],
        "asks": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.sum().item() for p in net.parameters()],
        "grad_ids": [id(p.grad) for p in net.parameters() if p.grad is not None],
        "state": {name: t.detach().numpy().tobytes() for name, t in net.state_dict().items()},
        "grad_mode": torch.is_grad_enabled(),
    }


@each_member
@each_net
@pytest.mark.parametrize("wrapper", [None, BreaksForward, BreaksBackward])
def test_the_model_is_left_as_it_was_found(
    member: type[Explainer],
    net_name: str,
    wrapper: type[BreaksForward] | None,
    subject: Subject,
) -> None:
    """In the midst of training: modes mixed, some parameters frozen, some with gradients."""
    whole = classifier_of(net_name)
    net = whole.net.train()
    modules = list(net.modules())
    for module in modules[len(modules) // 2 :]:
        module.training = False
    for number, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        if number % 3 == 0:
            parameter.grad = torch.full_like(parameter, float(number))
    if wrapper is not None:
        net = wrapper(net)
    path = NETS[net_name] if wrapper is None else f"body.{NETS[net_name]}"
    classifier = Classifier(net, GRID, cam_layer=path)
    before = condition(net)
    if wrapper is BreaksForward and member.uses_model:
        with pytest.raises(RuntimeError, match="broken on purpose") as caught:
            explain(quick(member), subject, classifier)
        # The error's traceback still holds the explainer's frames: nothing is tidied by chance.
        assert caught.tb is not None
    else:
        with contextlib.suppress(RuntimeError):
            explain(quick(member), subject, classifier)
    assert condition(net) == before


@each_member
@each_net
def test_attribute_takes_a_classifier_or_a_bare_module(
    member: type[Explainer], net_name: str, xray: ChestXray, image: Gray
) -> None:
    assert xray.lung_mask is not None
    explainer, classifier = quick(member, layer=NETS[net_name]), classifier_of(net_name)
    lungs = xray.lung_mask[: GRID[0], : GRID[1]]
    beside = near(image)
    found = explainer.attribute(classifier, image, 1, lungs, neighbours=beside)
    bare = explainer.attribute(classifier.net, image, 1, lungs, neighbours=beside)
    direct = explain(explainer, Subject("image", image, lungs, GRID, 1, beside), classifier)
    np.testing.assert_array_equal(found.values, direct.values)
    np.testing.assert_array_equal(bare.values, direct.values)
    assert (found.target, found.n_forward) == (direct.target, direct.n_forward)
    assert found.extras["seconds"] > 0

    full = Preprocess().apply(xray)
    whole = explainer.attribute(classifier, full, None, xray.lung_mask, neighbours=near(full))
    assert whole.values.shape == full.shape
    for bad in (image.astype(np.float32), np.repeat(image[:, :, None], 3, axis=2)):
        with pytest.raises(ExplainError, match=r"expected a uint8 \[H, W\] image"):
            explainer.attribute(classifier, bad, None, lungs)
    for wrong in (lungs[:50], lungs.astype(np.uint8)):
        with pytest.raises(ExplainError, match="expected a bool lung mask"):
            explainer.attribute(classifier, image, None, wrong)


def test_a_bare_module_stays_on_its_device() -> None:
    net = nn.Conv2d(3, 3, 1, device="meta")
    assert wrap(net, GRID).device.type == "meta"
    assert net.weight.is_meta


@each_member
def test_settings_round_trip_and_refuse_unknown_keys(member: type[Explainer]) -> None:
    explainer = quick(member, seed=3)
    for again in (
        member.model_validate(explainer.model_dump()),
        ADAPTER.validate_python(explainer.model_dump()),
        ADAPTER.validate_json(explainer.model_dump_json()),
    ):
        assert type(again) is member
        assert again == explainer
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ADAPTER.validate_python({**explainer.model_dump(), "n_sample": 1})
    with pytest.raises(ValidationError, match="frozen"):
        explainer.label = "other"  # type: ignore[misc]
    for field in member.model_fields:
        assert member.model_fields[field].description or field in ("name",), field


def test_the_walkthrough_is_short_and_whole() -> None:
    """The docs' own text joins the family like any member, in under 40 lines of code."""
    lines = [line for line in walkthrough.example().splitlines() if line.strip()]
    assert 20 < len(lines) < 40
    assert BRIGHTEN not in FAMILY
    assert type(ADAPTER.validate_python({"name": "brighten", "cells": 3})) is BRIGHTEN


def test_names_are_unique_and_are_the_titles() -> None:
    names = [quick(member).title for member in MEMBERS]
    assert len(set(names)) == len(names) >= 5
    assert [quick(member, label="mine").title for member in MEMBERS] == ["mine"] * len(names)


@each_member
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(member: type[Explainer], family: str, xray: ChestXray) -> None:
    """Frozen and not, square and not: the same map, and the network as it was found."""
    assert xray.lung_mask is not None
    explainer = quick(member)
    for size in ((64, 64),) if family in FIXED else ((64, 64), (64, 96)):
        classifier = family_classifier(family, size)
        picture = resize_gray(Preprocess().apply(xray), size)
        lungs = xray.lung_mask[:90, 10:80]
        asked = Subject("Test/a.png", picture, lungs, (90, 70), 1, near(picture))
        if (name_of(member), family) in REFUSED:
            with pytest.raises(ExplainError, match=REFUSED[name_of(member), family]):
                explain(explainer, asked, classifier)
            continue
        before = condition(classifier.net)
        found = explain(explainer, asked, classifier)
        assert condition(classifier.net) == before
        assert found.values.shape == (90, 70)
        assert np.isfinite(found.values).all()
        assert found.n_forward <= explainer.n_forward_planned()
        classifier.net.requires_grad_(False)
        np.testing.assert_array_equal(explain(explainer, asked, classifier).values, found.values)
