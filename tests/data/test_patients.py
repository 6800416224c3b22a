"""Dealing patients to splits."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raybench.data.patients import Shares, deal

IMAGES = st.lists(st.tuples(st.integers(0, 25), st.sampled_from("abc")), min_size=1, max_size=120)
SHARES = st.builds(
    Shares, val=st.floats(0.05, 0.4), test=st.floats(0.05, 0.4), seed=st.integers(0, 5)
)


@settings(deadline=None, max_examples=80)
@given(IMAGES, SHARES, st.randoms(use_true_random=False))
def test_a_patient_is_in_one_split(images: list[tuple[int, str]], shares: Shares, rng) -> None:  # type: ignore[no-untyped-def]
    patients, labels = [f"p{p}" for p, _ in images], [label for _, label in images]
    found = deal(patients, labels, shares)
    where = defaultdict(set)
    for patient, split in zip(patients, found, strict=True):
        where[patient].add(split)
    assert all(len(splits) == 1 for splits in where.values())
    order = list(range(len(images)))
    rng.shuffle(order)
    again = deal([patients[i] for i in order], [labels[i] for i in order], shares)
    assert again == [found[i] for i in order], "whatever the order of the images"


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=40), st.integers(1, 40), SHARES)
def test_classes_are_spread_as_well_as_patients_allow(
    sizes: list[int], n_single: int, shares: Shares
) -> None:
    """Patients of one class each: a class of images that belong together, one that do not."""
    patients = [f"p{i}" for i, n in enumerate(sizes) for _ in range(n)]
    patients += [f"q{i}" for i in range(n_single)]
    labels = ["grouped"] * sum(sizes) + ["single"] * n_single
    found = Counter(zip(labels, deal(patients, labels, shares), strict=True))
    due = {"Val": shares.val, "Test": shares.test, "Train": 1 - shares.val - shares.test}
    for split, share in due.items():
        assert found["grouped", split] > 0
        assert abs(found["grouped", split] - share * sum(sizes)) <= 2 * max(sizes)
        assert (found["single", split] > 0) or n_single < 3
        assert abs(found["single", split] - share * n_single) < 2


def test_the_seed_decides_who() -> None:
    patients, labels = [f"p{i // 2}" for i in range(80)], ["ab"[i // 40] for i in range(80)]
    deals = [deal(patients, labels, Shares(seed=seed)) for seed in (0, 0, 1)]
    assert deals[0] == deals[1] != deals[2]
    for found in deals:
        assert Counter(found) == {"Train": 56, "Val": 12, "Test": 12}
    # A patient more leaves most where they are.
    more = deal([*patients, "new"], [*labels, "a"], Shares())
    moved = sum(a != b for a, b in zip(more, deals[0], strict=False))
    assert moved <= 16


def test_patients_with_several_classes() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{i}" for i in rng.integers(0, 300, 1500)]
    labels = [str(label) for label in rng.choice(["a", "b", "c"], 1500, p=[0.7, 0.25, 0.05])]
    found = Counter(zip(labels, deal(patients, labels, Shares(val=0.1, test=0.2)), strict=True))
    for label, n in Counter(labels).items():
        for split, share in (("Val", 0.1), ("Test", 0.2), ("Train", 0.7)):
            assert found[label, split] == pytest.approx(share * n, abs=5)


def test_shares_that_leave_nothing() -> None:
    with pytest.raises(ValidationError, match="must leave a share for Train"):
        Shares(val=0.5, test=0.5)
    for wrong in ({"val": 0.0}, {"test": 1.0}):
        with pytest.raises(ValidationError):
            Shares.model_validate(wrong)
