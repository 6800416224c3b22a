"""Segmentation as a task: loss and score in closed form, settings, the loop around it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raybench.data.phantom import Phantom
from raybench.errors import DataError
from raybench.models.unet import Segmenter
from raybench.scoring.overlap import dice
from raybench.training.recipe import AugmentDomains, PreprocessDomains, Recipe
from raybench.training.segment import LungSegmentation, Segment, Segmentation
from raybench.training.state import Epoch, State
from raybench.training.tune import TrialJob, train_one

TASK = Segment("infection")
RECIPE: dict[str, Any] = {
    "name": "test_resnet",
    "weights": "none",
    "input_size": 64,
    "phases": [{"epochs": 1, "lr": 1e-3}],
}


def test_the_loss_is_cross_entropy_and_dice_image_by_image() -> None:
    logit = math.log(3)  # probability 3/4
    outputs = torch.full((2, 1, 2, 4), logit)
    targets = torch.zeros(2, 2, 4, dtype=torch.uint8)
    targets[0, 0] = 1
    entropy = (4 * -math.log(0.75) + 12 * -math.log(0.25)) / 16
    soft = [(2 * 3 + 1) / (6 + 4 + 1), 1 / (6 + 1)]
    wanted = entropy + 1 - sum(soft) / 2
    assert float(TASK.loss(outputs, targets, None)) == pytest.approx(wanted, rel=1e-6)


def test_the_loss_of_a_sure_right_answer_is_nothing_and_has_a_slope_where_the_mask_is_empty() -> (
    None
):
    targets = torch.zeros(1, 4, 4, dtype=torch.uint8)
    outputs = torch.full((1, 1, 4, 4), -30.0)
    assert float(TASK.loss(outputs, targets, None)) == pytest.approx(0, abs=1e-6)
    unsure = torch.zeros(1, 1, 4, 4, requires_grad=True)
    TASK.loss(unsure, targets, None).backward()
    assert unsure.grad is not None
    assert (unsure.grad > 1 / 32).all()  # more than cross-entropy's own (1/2) / 16


def test_the_score_is_dice_at_one_half_and_two_empty_masks_agree() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((5, 8, 8)) < 0.4
    marked = rng.random((5, 8, 8)) < 0.4
    truth[1] = marked[1] = False
    truth[2] = False
    marked[3] = False
    outputs = torch.from_numpy(np.where(marked, 0.01, -0.01)).float()[:, None]
    found = TASK.hits(outputs, torch.from_numpy(truth.astype(np.uint8)))
    wanted = [dice(m, t) for m, t in zip(marked, truth, strict=True)]
    assert found.tolist() == pytest.approx(wanted)
    assert found[1:4].tolist() == [1, 0, 0]


def test_the_target_is_the_mask_and_a_missing_one_is_an_error() -> None:
    data = Phantom(name="phantom", n_train=1, n_val=1, n_test=1, size=64)
    xray = data.load(data.records()[0])
    assert xray.infection_mask is not None
    np.testing.assert_array_equal(TASK.target(xray).numpy(), xray.infection_mask)
    np.testing.assert_array_equal(Segment("lungs").target(xray).numpy(), xray.lung_mask)
    with pytest.raises(DataError, match="expected a mask of its infection"):
        TASK.target(replace(xray, infection_mask=None))


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        (Segmentation, {"dropout": 0.1}, "dropout: a U-Net has no such setting"),
        (Segmentation, {"label_smoothing": {"choices": [0.0, 0.1]}}, "label_smoothing: a U-Net"),
        (Segmentation, {"name": "test_vit", "input_size": None}, "cannot be the encoder"),
        (LungSegmentation, {"preprocess": {"lung_masking": True}}, "expected false, found true"),
    ],
)
def test_settings_that_a_u_net_has_not_are_refused(kind: Any, changes: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        kind.model_validate({"recipe": {**RECIPE, **changes}})


def test_lungs_are_never_masked_before_they_are_found() -> None:
    recipe = LungSegmentation.model_validate({"recipe": RECIPE}).filled(
        PreprocessDomains(lung_masking=True, clahe=True), AugmentDomains(rotation=3)
    )
    assert (recipe.preprocessing.lung_masking, recipe.preprocessing.clahe) == (False, True)
    assert recipe.augmentation.rotation == 3


def test_the_loop_trains_it_and_keeps_the_epoch_with_the_highest_dice() -> None:
    data = Phantom(name="phantom", n_train=4, n_val=2, n_test=1, size=64)
    train, val = (tuple(r for r in data.records() if r.split == s) for s in ("Train", "Val"))
    recipe = Recipe.model_validate(
        {**RECIPE, "batch_size": 4, "phases": [{"epochs": 3, "lr": 3e-3}]}
    )
    epochs: list[Epoch] = []

    def report(epoch: Epoch, state: State) -> None:
        epochs.append(epoch)

    job = TrialJob(data, train, val, (recipe,), Segment("lungs"), 0, 1)
    segmenter = Segmenter(train_one(job, recipe, report).best)
    best = max(epochs, key=lambda e: (e.val_score, -e.val_loss))
    assert set(epochs[0].figures()) >= {"train_dice", "val_dice"}
    assert segmenter.card.scores == {"val_dice": best.val_score, "val_loss": best.val_loss}
    preprocess = recipe.preprocessing
    images = [data.load(r) for r in val]
    maps = segmenter.predict([preprocess.apply(image) for image in images])
    found = [dice(m > 0.5, i.lung_mask) for m, i in zip(maps, images, strict=True)]
    assert np.mean(found) == pytest.approx(best.val_score, abs=0.01)
