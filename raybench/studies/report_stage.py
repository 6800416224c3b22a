"""The report of a sweep, of one that ended long ago, or of several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import yaml

from raybench.config import SweepConfig
from raybench.data.lungs import WithLungs
from raybench.errors import RaybenchError, RunFolderError
from raybench.report.page import Chart, Part, board_of, render
from raybench.report.page.tables import Table, heading, table_of
from raybench.storage import Storage
from raybench.studies.context import Context, Winners
from raybench.studies.lungs_stage import LUNGS
from raybench.studies.reading import config_of, references_of
from raybench.studies.report_rows import FOLDER, Trial, rows, trials_shown
from raybench.studies.search_stage import found_before
from raybench.studies.supervised_stage import Supervised
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.tracking_uri import shown
from raybench.training.segment import SUPERVISED

NAME = "report.html"

_CHARTS = (
    ("explainers", "Explainers", "Mean IoU and Dice on Test by threshold rule, with intervals."),
    (
        "distributions",
        "Image by image",
        "IoU of every image of Test; boxes hold the middle half.",
    ),
    ("cost", "Cost", "Mean IoU against the work that an image takes."),
    ("faithfulness", "Faithfulness", "What the classifier says as pixels come and go."),
    ("sanity", "Sanity", "How alike maps stay as the model is randomised."),
    ("stability", "Stability", "How alike maps are over seeds and a little noise."),
    ("severity", "Severity", "Share of the lungs infected: found against drawn."),
    ("pareto", "Explainers' settings", "Every setting tried: IoU on Val against forward passes."),
    ("trials_front", "Trials", "Accuracy and localisation on Val of every trial."),
    ("training_curves", "Training", "Loss and accuracy by epoch; the best trials stand out."),
    ("roc", "ROC", "Test."),
    ("precision_recall", "Precision and recall", "Test."),
    ("confusion", "Confusion matrix", "Test."),
    ("reliability", "Reliability", "Test: how often it is right against how sure it is."),
)
"""Beginnings of the figures' names, in the order they are shown, and what they say."""

_SCORES = ("accuracy", "precision", "recall", "f1", "macro_auc", "average_precision", "ece")


def write_report(
    context: Context, best: pd.DataFrame, winners: Winners, supervised: Supervised | None
) -> None:
    """Write `report.html` of a sweep whose tables and figures are there.

    Args:
        best: trials that stand on the leaderboard.
        winners: of the search over settings.
        supervised: the U-Net, where there is one.
    """
    trials = trials_shown(context, best, winners, supervised)
    part = _part(context.run, context.config, context, trials)
    context.run.write_file(NAME, render([part], context.config.name).encode())


def compare_runs(runs: Sequence[RunFolder], title: str = "") -> bytes:
    """The page of finished sweeps, as they lie there.

    Where pictures are too many to go into the page they are left in the run folders, and the page
    has to stand in the one that is reported on; of several sweeps it shows no such pictures.

    Raises:
        RunFolderError: one is no run folder, or holds no leaderboard yet.
    """
    parts = [_of_run(run, alone=len(runs) == 1) for run in runs]
    return render(parts, title or ", ".join(part.name for part in parts)).encode()


def _of_run(run: RunFolder, alone: bool) -> Part:
    config = config_of(run)
    if not run.storage.exists("leaderboard.csv") or not run.storage.exists("scores.parquet"):
        raise RunFolderError(
            f"{run.where}: expected a sweep that got as far as its leaderboard, found none; go on "
            "with it (--resume), then report on it"
        )
    try:
        context = _context_of(run, config)
        trials = _trials_of(run, context)
        part = _part(run, config, context, trials)
    except RaybenchError as error:
        return replace(_part(run, config, None, []), no_images=f"no images are shown: {error}")
    if not alone and any(r.xray.source.startswith(FOLDER) for r in part.rows):
        why = f"its images are too many for a page of several sweeps: see {run.where}/{NAME}"
        return replace(part, rows=(), no_images=why)
    return part


def _context_of(run: RunFolder, config: SweepConfig) -> Context:
    """A sweep's context without a scan: its explained images by their ids in the scores.

    Raises:
        RaybenchError: the data set is not where it was, or an image is missing.
    """
    config = config.located()
    data, other = config.data, config.data.explain
    source: Any = other or data
    wanted = set(run.read_parquet("scores.parquet").image_id)
    records = tuple(r for r in source.records() if r.image_id in wanted)
    lungs = run.storage.exists(LUNGS)
    if lungs:
        folder = "explained" if other is not None else "data"
        source = WithLungs(source, Storage(run.storage.path(f"{LUNGS}/{folder}")))
        records = WithLungs.named(records)
    missing = wanted - {r.image_id for r in records}
    if missing:
        raise RunFolderError(f"{len(missing)} of the explained images are not in the data set now")
    test = tuple(r for r in records if r.split == "Test")
    explained: Any = {"Val": tuple(r for r in records if r.split == "Val"), "Test": test}
    dataset = source if lungs and other is None else data
    inner = source if other is not None else None
    return Context(config, run, dataset, (), explained, inner)


def _trials_of(run: RunFolder, context: Context) -> list[Trial]:
    """What the leaderboard shows, and what the search found, with the settings it found."""
    scores = run.read_parquet("scores.parquet")
    test = scores[scores.split == "Test"]
    learned = test[test.explainer == SUPERVISED]
    supervised = None
    if len(learned):
        one = learned.iloc[0]
        supervised = Supervised(str(one.trial_id), str(one.backbone))
    best = test[test.explainer != SUPERVISED].drop_duplicates("trial_id")
    shown = best[["trial_id", "backbone"]]
    return trials_shown(context, shown, found_before(context), supervised)


def _part(
    run: RunFolder, config: SweepConfig, context: Context | None, trials: Sequence[Trial]
) -> Part:
    board, events = run.read_csv("leaderboard.csv"), run.events.read()
    pairs = run.read_csv("comparisons.csv")
    words = [
        (str(r["backbone"]), str(r["threshold_rule"]), str(r["sentence"]), bool(r["significant"]))
        for r in (pairs[pairs.metric == "iou"].to_dict("records") if len(pairs) else [])
    ]
    said = [e["sentences"] for e in events if e["kind"] == "compared"][-1:]
    scores = run.read_parquet("scores.parquet")
    return Part(
        name=config.name,
        sentences=said[0] if said else [],
        board=board_of(board, references_of(config), SUPERVISED),
        tables=_tables(run, config.scoring.main_rule),
        charts=list(_charts(run)),
        facts=_facts(run, config, events),
        warnings=list(dict.fromkeys(str(e["message"]) for e in events if e["kind"] == "warning")),
        words=words,
        # A page is passed on: no password of a tracking server goes with it.
        config=shown(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)),
        rows=tuple(rows(context, trials, scores)) if context is not None else (),
        main_rule=config.scoring.main_rule,
    )


def _charts(run: RunFolder) -> list[Chart]:
    names, found = [n for n in run.storage.names("figures") if n.endswith(".png")], []
    for begin, title, text in _CHARTS:
        for name in names:
            whose = name.removesuffix(".png").removeprefix(begin).strip("_")
            if name == f"{begin}.png" or (name.startswith(f"{begin}_") and "_" not in whose):
                heading = f"{title}, {whose}" if whose else title
                found.append(Chart(heading, text, run.storage.read(f"figures/{name}")))
    return found


def _tables(run: RunFolder, main_rule: str) -> list[Table]:
    trials = run.read_csv("trials.csv")
    found = []
    names_of = [str(column) for column in trials]
    classes = sorted(c[len("test_f1_") : -len("_low")] for c in names_of if _is_class(c))
    names = {"trial_id": "Trial", "backbone": "Backbone", "val_accuracy~": "Val accuracy"}
    names |= {f"test_{s}~": heading(s) for s in _SCORES}
    chosen = trials[trials.test_accuracy.notna()] if "test_accuracy" in trials else trials
    text = "The trials that were chosen on Val, on Test, with 95% bootstrap intervals."
    found.append(table_of("Classification", text, chosen, names))
    by_class = {"trial_id": "Trial", "backbone": "Backbone"}
    by_class |= {
        f"test_{s}_{c}~": f"{heading(s)} {c}"
        for s in ("precision", "recall", "f1")
        for c in classes
    }
    if classes:
        found.append(table_of("By class", "On Test.", chosen, by_class))
    every = {"trial_id": "Trial", "backbone": "Backbone", "status": "Status", "best": "Best"}
    every |= {"n_epochs": "Epochs", "val_accuracy": "Val accuracy", "val_macro_auc": "Val AUC"}
    found.append(table_of("Trials", "All of them, by Val alone.", trials, every))
    for name, title, text in _MORE:
        frame = run.read_csv(name)
        if len(frame):
            plain = [str(c) for c in frame if not str(c).endswith(("_low", "_high"))]
            columns = {f"{c}~" if f"{c}_low" in frame else c: heading(c) for c in plain}
            found.append(replace(table_of(title, text, frame, columns), main_rule=main_rule))
    return found


_MORE = (
    ("published.csv", "Published", "What the study published, where the data set is its own."),
    ("strata.csv", "By kind of image", "Means over images with large or small lesions, and so on."),
    ("faithfulness.csv", "Faithfulness", "Of the chosen trials on Test."),
    ("stability.csv", "Stability", "Of maps over seeds and small changes of the image."),
    ("sanity.csv", "Sanity", "How alike maps stay as the model is randomised."),
)


def _is_class(column: str) -> bool:
    return column.startswith("test_f1_") and column.endswith("_low") and column != "test_f1_low"


def _facts(run: RunFolder, config: SweepConfig, events: Sequence[dict[str, Any]]) -> dict[str, str]:
    first = next((e for e in events if e["kind"] == "sweep_started"), {})
    ended = [e for e in events if e["kind"] == "stage_finished" and e["stage"] != "reporting"]
    stages = {e["stage"]: e["seconds"] for e in ended}
    resumed = sum(e["kind"] == "sweep_resumed" for e in events)
    versions: dict[str, Any] = {}
    for name in run.storage.names("checkpoints"):
        if name.endswith(".json"):
            versions = json.loads(run.storage.read(f"checkpoints/{name}")).get("versions", {})
            break
    facts = {
        "Run folder": run.where.rstrip("/").rsplit("/", 1)[-1],
        "Configuration": f"digest {run.digest}",
        "Data": f"{config.data.name}, digest {first.get('data_digest', 'unknown')}",
        "Seed": str(config.seed),
        "raybench": str(first.get("version", "unknown")),
        "Libraries": ", ".join(f"{name} {v}" for name, v in versions.items()) or "unknown",
        "Stages": ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in stages.items()),
        "Interrupted": f"{resumed} times" if resumed else "never",
        "To make this page again": f"python -m raybench.report {config.run_folder}",
    }
    return {name: text for name, text in facts.items() if text}
