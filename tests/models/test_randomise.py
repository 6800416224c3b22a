"""Which parameters are drawn anew, and that all others stay."""

from __future__ import annotations

import pytest
import torch

from raybench.errors import ModelError
from raybench.models.backbones import backbone
from raybench.models.build import build
from raybench.models.checkpoint import Card, read_parts, save_checkpoint
from raybench.models.randomise import Depth, depth_of, randomised, with_depth
from raybench.models.runtime import split_key

NAME = "test_resnet"


def _trained() -> bytes:
    """Parameters that no draw would give."""
    net = build(NAME, 3)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.add_(1)
    return save_checkpoint(net, Card(NAME, ("a", "b", "c"), (64, 64), scores={"val_accuracy": 1}))


@pytest.mark.parametrize(
    ("depth", "drawn"),
    [
        ("head", ("fc.",)),
        ("partial", ("layer4.", "fc.")),
        (1, ("layer4.", "fc.")),
        (2, ("layer3.", "layer4.", "fc.")),
        ("full", ("",)),
    ],
)
def test_exactly_what_is_meant_is_drawn_anew(depth: Depth, drawn: tuple[str, ...]) -> None:
    data = _trained()
    before = bytes(data)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = randomised(data, depth, 1)
    assert data == before
    assert torch.equal(torch.get_rng_state(), state), "torch's own draws go on as they were"
    (_, trained), (card, tensors) = (read_parts(d, "x", "classifier") for d in (data, found))
    assert card.scores == {}
    assert tensors.keys() == trained.keys()
    for name, value in tensors.items():
        assert torch.equal(value, trained[name]) != name.startswith(drawn), name


def test_a_seed_is_a_draw_and_deeper_ones_go_on_from_shallower_ones() -> None:
    data = _trained()
    assert randomised(data, "full", 3) == randomised(data, "full", 3)
    _, one = read_parts(randomised(data, "full", 3), "x", "classifier")
    _, other = read_parts(randomised(data, "full", 4), "x", "classifier")
    _, shallow = read_parts(randomised(data, "head", 3), "x", "classifier")
    assert torch.equal(one["fc.weight"], shallow["fc.weight"])
    assert not torch.equal(one["fc.weight"], other["fc.weight"])
    assert one["layer1.0.bn1.running_var"].eq(1).all()


def test_keys_name_checkpoint_depth_seed_and_precision() -> None:
    for depth in ("head", "partial", 2, "full"):
        key = with_depth("t0003@bfloat16", depth, 17)
        assert split_key(key) == ("t0003", "bfloat16")
        assert depth_of(key) == (depth, 17)
        assert split_key(with_depth("t0003", depth, 17)) == ("t0003", None)
    assert depth_of("t0003@bfloat16") is None
    with pytest.raises(ModelError, match="expected head, partial, full"):
        depth_of("t0003~deep.1")
    with pytest.raises(ModelError, match="1 to"):
        randomised(_trained(), len(backbone(NAME).stages) + 1, 0)
