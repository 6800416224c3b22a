"""What the report's browser of images shows, gathered from maps, scores and the data set."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from raybench.data.preprocess import resize_gray
from raybench.explain import Explainer, Lime
from raybench.report.infection_map import infection_map, superpixel_map
from raybench.report.page import Picture, Row, Tile, embedded, plain
from raybench.report.tiles import BYTES, outline, photo
from raybench.scoring.cuts import Place, known
from raybench.scoring.overlap import iou
from raybench.studies.context import Context, Winners, explains, progress_bar, winners_for
from raybench.studies.cut_regions import regions_of
from raybench.studies.score_stage import cutter_of
from raybench.studies.supervised_stage import Supervised
from raybench.tracking.maps import NO_TRIAL, last_rows, superpixels_of, table_name, values_of
from raybench.types import ChestXray, Mask, XrayRecord

FOLDER = "report"
"""Beside the page, where pictures are too many to go into it."""

INLINE_BYTES = 12_000_000
"""Pictures of so many bytes go into the page; more are files beside it."""

_SHOWN = ("iou", "dice", "hausdorff", "hit_rate", "pixel_auroc")

Shown = Explainer | Supervised


@dataclass(frozen=True)
class Trial:
    """A classifier that is shown."""

    trial_id: str
    backbone: str
    explainers: tuple[Shown, ...]

    def table(self, explainer: Shown) -> str:
        """Where an explainer's maps of this classifier are."""
        if isinstance(explainer, Supervised):
            return explainer.table
        return table_name(self.trial_id if explainer.uses_model else NO_TRIAL, explainer.title)


def trials_shown(
    context: Context, shown: pd.DataFrame, winners: Winners, supervised: Supervised | None
) -> list[Trial]:
    """The classifiers of the leaderboard with all that explains them."""
    found = []
    for row in shown.to_dict("records"):
        trial_id = str(row["trial_id"])
        own: list[Shown] = [e for e in context.config.explain.explainers if explains(e, trial_id)]
        own += [w.explainer for w in winners_for(winners, trial_id)]
        own += [] if supervised is None else [supervised]
        found.append(Trial(trial_id, str(row["backbone"]), tuple(own)))
    return found


class Shelf:
    """Where pictures go: into the page, or beside it as files that are made once.

    Args:
        n: pictures that are to come.
    """

    def __init__(self, context: Context, n: int) -> None:
        self._run = context.run
        self.is_inline = n * BYTES <= INLINE_BYTES
        self._known = set() if self.is_inline else set(self._run.storage.names(FOLDER))

    def address(self, name: str, draw: Callable[[], bytes]) -> str:
        """The picture's address; one that is there already is not drawn again.

        Args:
            name: tells it from all others of this run.
        """
        if self.is_inline:
            return embedded(draw(), "image/jpeg")
        file = f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.jpg"
        if file not in self._known:
            self._run.write_file(f"{FOLDER}/{file}", draw())
            self._known.add(file)
        return f"{FOLDER}/{file}"


def rows(context: Context, trials: Sequence[Trial], scores: pd.DataFrame) -> list[Row]:
    """A row an explained image of Test and classifier; maps are read table by table.

    Raises:
        RaybenchError: an image cannot be read any more.
    """
    records = context.explained["Test"]
    n = len(records) * sum(1 + len(t.explainers) for t in trials)
    shelf, found = Shelf(context, n), []
    xrays = {r.image_id: context.source.load(r) for r in records}
    test = scores[scores.split == "Test"]
    bar = progress_bar(n, "report", "picture")
    for trial in trials:
        given, said = _scores(test, trial), _said(context, trial)
        drawn = _Drawn(context, trial, xrays, given, shelf)
        for explainer in trial.explainers:
            drawn.add(explainer)
            bar.update(len(records))
        for record in records:
            found.append(_row(context, trial, record, xrays[record.image_id], drawn, said, shelf))
            bar.update(1)
    bar.close()
    return found


_Key = tuple[str, str]
"""Explainer and image."""

_Given = Mapping[_Key, Mapping[str, Mapping[str, float | None]]]
"""By explainer and image, then by rule, then by score."""


class _Drawn:
    """The pictures of one classifier's maps, and the salient masks of what asks the model."""

    def __init__(
        self,
        context: Context,
        trial: Trial,
        xrays: Mapping[str, ChestXray],
        given: _Given,
        shelf: Shelf,
    ) -> None:
        self._context, self._trial, self._shelf = context, trial, shelf
        self._xrays, self._given = xrays, given
        self._regions = regions_of(context, xrays)
        preprocess = context.preprocess_of(trial.trial_id)
        self._images = {name: preprocess.apply(xray) for name, xray in xrays.items()}
        self._tiles: dict[_Key, Tile] = {}
        self._salient: dict[str, list[Mask]] = {}

    def add(self, explainer: Shown) -> None:
        """Draw the maps of one explainer."""
        for row in last_rows(self._context.run, self._trial.table(explainer)):
            name = str(row["image_id"])
            if name in self._xrays and pd.isna(row["error"]):
                self._tiles[explainer.title, name] = self._tile(explainer, row, name)
                mask = self._mask(explainer, row, name)
                if mask is not None:
                    self._salient.setdefault(name, []).append(mask)

    def tile(self, explainer: Shown, name: str) -> Tile:
        """What an explainer makes of an image."""
        nothing = Tile(explainer.title, "", "", self._told(explainer, name))
        return self._tiles.get((explainer.title, name), nothing)

    def disagreement(self, name: str) -> float | None:
        """See `Row`."""
        masks = self._salient.get(name, [])
        if len(masks) < 2:
            return None
        each = [iou(a, b) for a, b in itertools.combinations(masks, 2)]
        return plain(1 - float(np.mean(each)))

    def _told(self, explainer: Shown, name: str) -> dict[str, dict[str, float]]:
        of = self._given.get((explainer.title, name), {})
        return {
            rule: {k: v for k, v in scores.items() if k in _SHOWN and v is not None}
            for rule, scores in of.items()
        }

    def _tile(self, explainer: Shown, row: Mapping[Hashable, Any], name: str) -> Tile:
        image, values = self._images[name], values_of(row)
        where = f"{self._trial.trial_id}/{name}/{explainer.title}"

        def infected() -> bytes:
            shape = (values.shape[0], values.shape[1])
            return photo(infection_map(resize_gray(image, shape), values))

        drawn, regions = self._shelf.address(where, infected), ""
        found = superpixels_of(row) if isinstance(explainer, Lime) else None
        if found is not None:
            labels, weights = found
            grid = resize_gray(image, (labels.shape[0], labels.shape[1]))
            regions = self._shelf.address(
                f"{where}/regions", lambda: photo(superpixel_map(grid, labels, weights))
            )
        return Tile(explainer.title, drawn, regions, self._told(explainer, name))

    def _mask(self, explainer: Shown, row: Mapping[Hashable, Any], name: str) -> Mask | None:
        """The salient mask by the main rule, of what asks the model and has a figure by it."""
        if isinstance(explainer, Supervised) or not explainer.uses_model:
            return None
        rule = self._context.config.scoring.main_rule
        scores = self._given.get((explainer.title, name), {}).get(rule, {})
        threshold = scores.get("threshold")
        if threshold is None:
            return None
        place = Place(self._xrays[name].lung_mask, self._regions.get(name))
        return cutter_of(explainer).cut(values_of(row), known(rule, threshold), place)[1]


def _row(
    context: Context,
    trial: Trial,
    record: XrayRecord,
    xray: ChestXray,
    drawn: _Drawn,
    said: Mapping[str, tuple[str, float]],
    shelf: Shelf,
) -> Row:
    name = record.image_id
    predicted, confidence = said.get(name, ("unknown", math.nan))
    height, width = xray.image.shape
    return Row(
        sweep=context.config.name,
        backbone=trial.backbone,
        name=name,
        label=context.class_of(record),
        predicted=predicted,
        confidence=plain(confidence),
        xray=Picture(
            shelf.address(f"xray/{name}", lambda: photo(xray.image)),
            round(width / height, 4),
            outline(xray.lung_mask),
            outline(xray.infection_mask),
        ),
        disagreement=drawn.disagreement(name),
        tiles=tuple(drawn.tile(explainer, name) for explainer in trial.explainers),
    )


def _said(context: Context, trial: Trial) -> dict[str, tuple[str, float]]:
    """What the classifier says of each image, and how sure it is."""
    frame = context.run.read("predictions" if context.other is None else "predictions_explained")
    frame = frame[(frame.trial_id == trial.trial_id) & (frame.split == "Test")]
    sure = frame[[c for c in frame if str(c).startswith("p_")]].max(axis=1)
    triples = zip(frame.image_id, frame.predicted, sure, strict=True)
    return {str(i): (str(predicted), float(p)) for i, predicted, p in triples}


def _scores(test: pd.DataFrame, trial: Trial) -> _Given:
    """The figures of one classifier's maps, and of the U-Net's."""
    titles = [e.title for e in trial.explainers if isinstance(e, Supervised)]
    mine = test[(test.trial_id == trial.trial_id) | test.explainer.isin(titles)]
    found: dict[_Key, dict[str, dict[str, float | None]]] = {}
    for row in mine.to_dict("records"):
        of = {name: plain(row[name]) for name in (*_SHOWN, "threshold")}
        key = (str(row["explainer"]), str(row["image_id"]))
        found.setdefault(key, {})[str(row["threshold_rule"])] = of
    return found
