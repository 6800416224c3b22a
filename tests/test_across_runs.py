"""Whole sweeps over two data sets, in this process, their training replaced by a fresh network.

Killed, resumed, resumed once more, with a search over settings and neighbours. About 10 s.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from pycocotools import mask as coco
from rich.console import Console

from raybench import track
from raybench.cli import report
from raybench.config import SweepConfig
from raybench.data import Phantom
from raybench.data.across import ExplainedPhantom, has_same_patients
from raybench.data.images import encode_png
from raybench.errors import DataError
from raybench.models.build import build
from raybench.models.checkpoint import Card, save_checkpoint
from raybench.storage import Storage
from raybench.studies import train_stage
from raybench.studies.checks import look
from raybench.studies.sweep_study import Options, run_sweep
from raybench.tracking.run_folder import RunFolder
from raybench.training.tune import TrialJob, TrialResult

CLASSES = ("COVID-19", "Non-COVID", "Normal")
OUTER = Phantom(name="phantom", n_train=3, n_val=2, n_test=2, size=64, seed=1)
INNER = Phantom(name="phantom", n_train=1, n_val=3, n_test=3, size=64, seed=7)
PATIENT = 987_650
"""Patient numbers begin here; none may be found in what is written."""


def write_outer(root: Path) -> dict[str, Any]:
    """A folder without infection masks: only labels are needed of it."""
    storage, lines = Storage(str(root)), ["image,label,split,patient"]
    for number, record in enumerate(OUTER.records()):
        name = f"{record.split}_{number % 7}_{record.label}.png"
        storage.write(name, encode_png(OUTER.load(record).image))
        lines.append(f"{name},{record.label},{record.split},p{number}")
    storage.write("index.csv", "\n".join(lines).encode())
    return {"name": "folder", "root": str(root), "infection_class": "COVID-19"}


def write_chexlocalize(root: Path) -> dict[str, Any]:
    """CheXlocalize's layout, images that are not square, masks by pycocotools."""
    number = PATIENT
    for split in ("Val", "Test"):
        table = {}
        for record in INNER.records():
            if record.split != split or record.label == "Normal":
                continue
            xray, number = INNER.load(record), number + 1
            lower = split.lower()
            path = root / f"CheXpert/{lower}/patient{number}/study1/view1_frontal.jpg"
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), cv2.resize(xray.image, (90, 70)))
            assert xray.infection_mask is not None
            drawn = xray.infection_mask.astype(np.uint8)
            drawn = cv2.resize(drawn, (90, 70), interpolation=cv2.INTER_NEAREST)
            rle = coco.encode(np.asfortranarray(drawn))
            size = [int(side) for side in rle["size"]]
            table[f"patient{number}_study1_view1_frontal"] = {
                "Consolidation": {"size": size, "counts": rle["counts"].decode()}
            }
        (root / f"gt_segmentations_{lower}.json").write_text(json.dumps(table))
    inner = {"name": "chexlocalize", "root": str(root), "findings": ["Consolidation"]}
    return inner | {"class_map": {"Finding": "COVID-19"}}


def write_same_ids(root: Path, outer: Path) -> dict[str, Any]:
    """Another folder, its files named as the outer one's, its pixels others."""
    storage, lines = Storage(str(root)), ["image,label,split,patient,infection_mask"]
    records = {(r.split, r.label): r for r in INNER.records()}
    for line in (outer / "index.csv").read_text().splitlines()[1:]:
        name, label, split, patient = line.split(",")
        xray = INNER.load(records[split, label])  # type: ignore[index]
        shifted = np.roll(xray.image, len(lines), axis=1)
        storage.write(name, encode_png(shifted))
        storage.write(f"masks/{name}", encode_png(np.roll(xray.infection_mask, len(lines), axis=1)))
        lines.append(f"{name},{label},{split},{patient},masks/{name}")
    storage.write("index.csv", "\n".join(lines).encode())
    return {"name": "folder", "root": str(root), "infection_class": "COVID-19"}


def config_of(tmp_path: Path, output: str, inner: dict[str, Any], **more: Any) -> SweepConfig:
    raw: dict[str, Any] = {
        "name": "across",
        "output": str(tmp_path / output),
        "data": {**write_outer(tmp_path / "outer"), "explain": inner},
        "preprocess": {"lung_masking": False},
        "backbones": [
            {
                "name": "test_efficientnet",
                "weights": "none",
                "input_size": 64,
                "phases": [{"epochs": 1, "lr": 1e-3}],
            }
        ],
        "search": {"trials_per_backbone": 1},
        "explain": {
            "target": "true",
            "panels": 1,
            "explainers": [
                {"name": "grad_cam"},
                {"name": "lime", "n_samples": 20, "fill": "neighbour", "superpixels": "grid"},
            ],
        },
        "explainer_search": {"n_trials": 2},
        "execution": {"mode": "local"},
        "tracking": {"live": False, "uri": f"sqlite:///{tmp_path}/mlflow.db"},
        **more,
    }
    return SweepConfig.model_validate(raw)


@pytest.fixture(autouse=True)
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Ray Tune: one trial, a fresh network whose answers move."""

    def search(job: TrialJob, _: Any, gpus: float, files: Storage, *__: Any) -> list[TrialResult]:
        torch.manual_seed(0)
        net = build("test_efficientnet", 3)
        with torch.no_grad():
            net.get_classifier().weight.mul_(40)
        data = save_checkpoint(net, Card("test_efficientnet", CLASSES, (64, 64)))
        files.write("tune/t0000.safetensors", data)
        name = "tune/t0000.safetensors"
        return [TrialResult("t0000", job.recipes[0], "finished", 1, None, name)]

    monkeypatch.setattr(train_stage, "search", search)
    monkeypatch.setattr(train_stage, "room_for", lambda *_: (0.0, 1))


def run(config: SweepConfig, **options: bool) -> str:
    said = io.StringIO()
    run_sweep(config, Options(**options), Console(file=said, width=110), lambda: None)
    return said.getvalue()


def results(config: SweepConfig) -> dict[str, pd.DataFrame]:
    folder = RunFolder(config.run_folder)
    found = {
        "scores": folder.read_parquet("scores.parquet"),
        "search": folder.read_csv("explainer_search.csv"),
        "leaderboard": folder.read_csv("leaderboard.csv"),
    }
    return {name: frame.drop(columns="seconds") for name, frame in found.items()}


def kill_at(patch: pytest.MonkeyPatch, prefix: str, nth: int) -> None:
    """End the process, as far as the sweep can tell, before the nth part of some tables."""
    append, seen = RunFolder.append, [0]

    def killing(folder: RunFolder, table: str, frame: pd.DataFrame) -> None:
        seen[0] += table.startswith(prefix)
        if seen[0] == nth and table.startswith(prefix):
            raise KeyboardInterrupt
        append(folder, table, frame)

    patch.setattr(RunFolder, "append", killing)


def test_chexlocalize_through_a_sweep_killed_twice_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = write_chexlocalize(tmp_path / "localize")
    config = config_of(tmp_path, "whole", inner)
    run(config)
    whole = results(config)
    scores = whole["scores"]
    assert scores.error.isna().all()
    assert set(scores.label) == {"COVID-19"}
    assert set(scores.explainer) == {"grad_cam", "lime", "grad_cam_tuned", "lime_tuned"}
    assert scores.groupby(["split", "explainer"]).image_id.nunique().min() == 3
    assert (scores[scores.explainer == "lime"].n_forward > 0).all()
    killed = config_of(tmp_path, "killed", inner)
    for prefix, nth in (("search_", 2), ("maps_", 1)):
        with monkeypatch.context() as patch:
            kill_at(patch, prefix, nth)
            with pytest.raises(KeyboardInterrupt):
                run(killed, resume=prefix == "maps_")
    run(killed, resume=True)
    for name, frame in results(killed).items():
        pd.testing.assert_frame_equal(frame, whole[name], check_exact=True, obj=name)
    events = (Path(killed.run_folder) / "events.jsonl").read_bytes()
    assert "is finished; this is its result" in run(killed, resume=True)
    assert (Path(killed.run_folder) / "events.jsonl").read_bytes() == events
    for path in (tmp_path / "mlflow.db", *(tmp_path / "whole").rglob("*")):
        assert path.is_dir() or b"patient9876" not in path.read_bytes(), path


def test_in_a_bucket_killed_and_resumed_it_equals_the_local_one(
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Images, run folder, checkpoints and answers in a bucket; nothing else is shared."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    inner = write_same_ids(tmp_path / "same", Path(write_outer(tmp_path / "outer")["root"]))
    near = config_of(tmp_path, "near", inner)
    run(near)
    for folder in ("outer", "same"):
        files = Storage(str(tmp_path / folder))
        for name in files.walk():
            Storage(f"{s3}/data/{folder}").write(name, files.read(name))
    raw = near.model_dump(mode="json") | {"output": f"{s3}/runs", "tracking": {"live": False}}
    raw["data"]["root"] = f"{s3}/data/outer"
    raw["data"]["explain"]["root"] = f"{s3}/data/same"
    far = SweepConfig.model_validate(raw)
    with monkeypatch.context() as patch:
        kill_at(patch, "maps_", 2)
        with pytest.raises(KeyboardInterrupt):
            run(far)
    said = run(far, resume=True)
    assert f"Everything lies in {s3}/runs/across/" in said
    for name, frame in results(far).items():
        pd.testing.assert_frame_equal(frame, results(near)[name], check_exact=True, obj=name)
    names = Storage(f"{s3}/runs/across").names()
    assert {"checkpoints", "figures", "parts", "events", "leaderboard.csv"} <= set(names)
    assert not {".lock", "tune", "mlflow.db"} & set(names)
    assert Storage(f"{s3}/runs/answers").names(), "answers lie beside the runs"
    beside = RunFolder(far.run_folder).path
    assert (beside / "mlflow.db").exists()
    assert f"sqlite:///{beside}/mlflow.db" in said
    assert track.main([far.run_folder]) == 0
    _expect_report(near, far, tmp_path, capsys)


def _expect_report(
    near: SweepConfig, far: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page that the sweep wrote is made again from the run folder, and of both together."""
    files = Storage(near.run_folder)
    written = files.read("report.html")
    files.remove("report.html")
    assert report.main([near.run_folder]) == 0
    assert files.read("report.html") == written
    assert Storage(far.run_folder).exists("report.html")
    page = tmp_path / "both.html"
    assert report.main([near.run_folder, far.run_folder, "--output", str(page)]) == 0
    rows = json.loads(_rows_of(page.read_bytes()))
    assert len(rows) == 2 * len(json.loads(_rows_of(written)))
    assert {len(row["tiles"]) for row in rows} == {4}, "and the winners of the search"
    assert all(tile["map"] for row in rows for tile in row["tiles"])
    stored = files.read("config.yaml")
    uri = f"sqlite:///{tmp_path}/mlflow.db".encode()
    assert uri in stored
    files.write("config.yaml", stored.replace(uri, b"https://me:hush@tracking.example"))
    assert report.main([near.run_folder]) == 0
    assert b"https://me:***@tracking.example" in files.read("report.html")
    assert b"hush" not in files.read("report.html"), "a page is passed on"
    capsys.readouterr()
    files.write("config.yaml", stored + b"none_such: 1\n")
    assert report.main([near.run_folder]) == 2
    assert "are not those of this version of raybench (1 differ)" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err


def _rows_of(page: bytes) -> str:
    return page.decode().split('id="rows">', 1)[1].split("</script>", 1)[0]


def test_equal_image_ids_of_two_data_sets_are_two_images(tmp_path: Path) -> None:
    write_outer(tmp_path / "outer")
    inner = write_same_ids(tmp_path / "same", tmp_path / "outer")
    config = config_of(tmp_path, "runs", inner, explainer_search=None)
    run(config)
    folder = RunFolder(config.run_folder)
    trained, explained = (folder.read(f"predictions{t}") for t in ("", "_explained"))
    assert set(explained.image_id) < set(trained.image_id)
    both = explained.merge(trained, on=["image_id", "split"], suffixes=("", "_trained"))
    assert len(both) == len(explained)
    assert (both["p_COVID-19"] != both["p_COVID-19_trained"]).all()
    scores = folder.read_parquet("scores.parquet")
    expected = explained.set_index("image_id").predicted
    assert (scores.predicted == scores.image_id.map(expected)).all()


def leaking(tmp_path: Path) -> tuple[dict[str, Any], str, str]:
    """The folder of equal names; a Val image of it is one of Train, a Test patient another one.

    Returns:
        Its settings, and the names of the two images.
    """
    outer, same = tmp_path / "outer", tmp_path / "same"
    write_outer(outer)
    inner = write_same_ids(same, outer)
    lines = (same / "index.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    train = next(row for row in rows if row[2] == "Train")
    image = next(row for row in rows if row[1:3] == ["COVID-19", "Val"])
    patient = next(row for row in rows if row[1:3] == ["COVID-19", "Test"])
    (same / image[0]).write_bytes((outer / train[0]).read_bytes())
    rows = [row for row in rows if row[2] != "Train"]
    patient[3] = train[3]
    (same / "index.csv").write_text("\n".join([lines[0], *map(",".join, rows)]))
    return inner, image[0], patient[0]


@pytest.mark.parametrize("same_patients", [None, True])
def test_what_classifiers_were_trained_on_is_not_explained(
    tmp_path: Path, same_patients: bool | None
) -> None:
    inner, image, patient = leaking(tmp_path)
    inner |= {"same_patients": same_patients}
    config = config_of(tmp_path, "runs", inner)
    with pytest.raises(DataError, match="images cannot be used") as caught:
        look(config, resume=False)
    said = {problem.partition(":")[0]: problem for problem in caught.value.problems}
    assert set(said) == {image, patient} if same_patients else {image}
    assert "pixel for pixel Train_0_COVID-19.png of the Train split" in said[image]
    assert "patient" not in said[image]
    if same_patients:
        assert said[patient].endswith(
            "of a patient in the Train split that classifiers are trained on"
        )
    found = look(config_of(tmp_path, "runs", inner, on_bad_image="skip"), resume=False)
    assert found.bad == caught.value.problems
    kept = {record.image_id for record in found.of_explained.records}
    assert image not in kept
    assert (patient in kept) is (same_patients is None)
    assert len(found.trained.records) == len(OUTER.records())


def test_patients_of_one_root_are_the_same(tmp_path: Path) -> None:
    """Val and Test of the same folder, explained: they share no patient with Train, nor pixels."""
    outer = write_outer(tmp_path / "outer")
    config = config_of(tmp_path, "runs", outer)
    classified, explained = config.data, config.data.explain
    assert explained is not None
    assert has_same_patients(classified, explained)
    apart = explained.model_copy(update={"same_patients": False})
    assert not has_same_patients(classified, apart)
    phantom = ExplainedPhantom(name="phantom")
    assert not has_same_patients(phantom, phantom)
