"""The plan of the full study, counted by file names alone. About 5 seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raybench.config import SweepConfig, load_config
from raybench.data.lungs import WithLungs
from raybench.studies.caching import is_cached
from raybench.studies.plan import Plan, make_plan, plan_lines
from raybench.studies.sweep_study import plan_sweep
from raybench.sweep import main

SWEEP = Path(__file__).resolve().parents[2] / "sweeps" / "covid-qu-ex.yaml"
COUNTS = {
    "Train": {"COVID-19": 1864, "Non-COVID": 932, "Normal": 932},
    "Val": {"COVID-19": 466, "Non-COVID": 233, "Normal": 233},
    "Test": {"COVID-19": 583, "Non-COVID": 292, "Normal": 291},
}
NAMES = {"COVID-19": "covid_{}.png", "Non-COVID": "non_COVID ({}).png", "Normal": "Normal ({}).png"}
RECIPE: dict[str, Any] = {"name": "resnet18", "phases": [{"epochs": 1, "lr": 1e-3}]}
BACKBONES = ["vgg16", "densenet121", "densenet201", "convnext_base"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The infection subset by name: 17,478 empty files. Opening any of them would fail."""
    root = tmp_path_factory.mktemp("covid-qu-ex")
    outer = root / "Infection Segmentation Data" / "Infection Segmentation Data"
    for split, classes in COUNTS.items():
        for cls, n in classes.items():
            for kind in ("images", "lung masks", "infection masks"):
                folder = outer / split / cls / kind
                folder.mkdir(parents=True)
                for number in range(1, n + 1):
                    (folder / NAMES[cls].format(number)).touch()
    return root


def study(root: Path, *overrides: tuple[str, str]) -> SweepConfig:
    return load_config(SWEEP, [("data.root", str(root)), *overrides])


@pytest.fixture(scope="module")
def plan(root: Path) -> Plan:
    return plan_sweep(study(root))


def test_images_of_every_split_and_class(plan: Plan) -> None:
    assert plan.images == COUNTS
    assert plan.explained == {"Val": 466, "Test": 583}


def test_forward_passes_of_the_published_study(plan: Plan) -> None:
    assert [r.name for r in plan.config.backbones] == BACKBONES
    lime, covid, predicted, *references = plan.config.explain.explainers
    assert [e.name for e in (lime, covid, predicted)] == ["lime", "grad_cam", "grad_cam"]
    assert plan.passes(lime, "Test") == 583 * 1000
    assert plan.passes(lime, "Val") == 466 * 1000
    assert plan.passes(covid, "Test") == 583
    assert all(plan.passes(e, "Test") == 0 for e in references)
    # Four models, one trial each: LIME, and Grad-CAM twice.
    assert (plan.n_trials, plan.n_full) == (4, 4)
    assert plan.n_forward == 4 * (583 + 466) * (1000 + 1 + 1)
    # LIME: superpixels once and 16 chunks of 64 a model; a reference once for all models.
    assert plan.n_units == (583 + 466) * (4 * (1 + 16) + 4 * 2 + 3)


def test_trials_that_are_not_the_best_get_the_cheap_explainers_on_val(root: Path) -> None:
    plan = plan_sweep(study(root, ("search.trials_per_backbone", "3")))
    assert (plan.n_trials, plan.n_full) == (12, 4)
    assert plan.n_forward == 4 * (583 + 466) * 1002 + 8 * 466 * 2
    everything = plan_sweep(
        study(root, ("search.trials_per_backbone", "3"), ("explain.trials", "all"))
    )
    assert everything.n_forward == 12 * (583 + 466) * 1002


def test_limits_and_known_infections_are_counted(root: Path) -> None:
    config = study(root, ("explain.n_val", "10"), ("explain.n_test", "9999"))
    records = config.data.records()
    assert make_plan(config, records).explained == {"Val": 10, "Test": 583}
    drawn = frozenset(r.image_id for r in records if r.image_id.endswith("_7.png"))
    assert make_plan(config, records, drawn).explained == {"Val": 1, "Test": 1}


def test_the_lines_say_what_it_costs(plan: Plan) -> None:
    text = " ".join("\n".join(plan_lines(plan)).split())
    for words in (
        "Train 3,728 1,864 COVID-19, 932 Non-COVID, 932 Normal",
        "Test 1,166 583 COVID-19, 292 Non-COVID, 291 Normal",
        "Training: 4 trials, 1 a backbone",
        "vgg16: 20 epochs (full 20)",
        "convnext_base: 25 epochs (head 5, partial 10, full 10)",
        "583 COVID-19 images with infection masks on Test, and 466 on Val to choose thresholds",
        "lime: Test 583 x 1,000 = 583,000 forward passes a model; "
        "Val, for its threshold, 466 x 1,000 = 466,000",
        "grad_cam_predicted: Test 583 x 1 = 583",
        "whole_lung: no model, 1,049 images once",
        "in all at most 4,204,392 forward passes in 82,871 units of work",
        "checkpoints/ (4 files and cards)",
    ):
        assert words in text


def test_every_checkpoint_is_counted(root: Path) -> None:
    unet = "{name: test_resnet, weights: none, phases: [{epochs: 1, lr: 1.0e-3}]}"
    more = ("sanity.shuffled_labels", "true"), ("supervised.recipe", unet)
    text = "\n".join(plan_lines(plan_sweep(study(root, *more))))
    assert "checkpoints/ (5 files and cards, 4 of permuted labels)" in text


def test_two_classes_are_a_study_of_their_own(root: Path) -> None:
    plan = plan_sweep(study(root, ("data.classes", "[COVID-19, Non-COVID]")))
    assert plan.images["Test"] == {"COVID-19": 583, "Non-COVID": 292}
    assert plan.explained == {"Val": 466, "Test": 583}


def test_a_dry_run_prints_configuration_and_plan_and_does_nothing(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [str(SWEEP), "--data.root", str(root), "--dry-run", "--search.trials_per_backbone=2"]
    assert main([*argv, "--backbones.vgg16.phases.0.lr", "{low: 1e-6, high: 1e-4, log: true}"]) == 0
    out = capsys.readouterr().out
    shown, said = out.split("# plan")
    resolved = SweepConfig.model_validate(yaml.safe_load(shown))
    assert resolved == study(
        root,
        ("search.trials_per_backbone", "2"),
        ("backbones.0.phases.0.lr", "{low: 1e-6, high: 1e-4, log: true}"),
    )
    assert "vgg16: 20 epochs (full 20); searched: phases.0.lr" in said
    assert "Training: 8 trials, 2 a backbone" in said
    assert "583 x 1,000 = 583,000" in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_what_is_not_there_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(SWEEP), "--data.root", str(tmp_path / "nowhere"), "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "nowhere: expected the data set's root, found nothing" in said.err


def test_the_plan_says_what_decoded_images_take(plan: Plan) -> None:
    # 4,660 images of Train and Val, one byte a pixel: ConvNeXt-Base, as all four, at 224 x 224.
    (line,) = [line for line in plan_lines(plan) if "decoded once into" in line]
    assert f"{(3728 + 932) * 224 * 224 / 1e6:.1f} MB for each preprocessing" in line
    assert "at most 20 GB" in line
    assert str(Path("runs/cache").absolute()) in line
    raw = plan.config.model_dump(mode="json")
    raw["training"]["cache_gb"] = 0
    off = replace(plan, config=SweepConfig.model_validate(raw))
    assert not any("decoded" in line for line in plan_lines(off))


def test_where_a_lung_mask_is_missing_the_plan_counts_no_cache(plan: Plan) -> None:
    raw = plan.config.model_dump(mode="json") | {"lungs": {"recipe": RECIPE}}
    asked = replace(plan, config=SweepConfig.model_validate(raw))
    assert any("decoded once into" in line for line in plan_lines(asked)), "none is missing"
    test, train = (next(r for r in plan.records if r.split == s) for s in ("Test", "Train"))
    for lacking, kept in ((test, True), (train, False)):
        records = [replace(r, lung_mask=None) if r is lacking else r for r in plan.records]
        found = list(plan_lines(replace(asked, records=records)))
        assert any("decoded once into" in line for line in found) == kept
        assert is_cached(asked.config, [r for r in records if r.split != "Test"]) == kept
    assert (
        "  decoded by each trial anew: lung masks of 1 image of Train and Val are predicted (lungs)"
    ) in found
    named = [*WithLungs.named(records)]
    assert not is_cached(asked.config, named), "predicted by now, and still without a name"
    assert is_cached(plan.config, records), "nothing is predicted where nobody asks"
