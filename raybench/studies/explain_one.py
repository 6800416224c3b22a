"""One classifier, one X-ray, several explainers: maps, scores and a picture of them.

For notebooks and scripts; nothing here is part of a sweep. Without a checkpoint and an X-ray of
your own it trains a very small classifier on phantoms first, and explains a phantom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from raybench.data.images import read_gray, read_mask
from raybench.data.preprocess import Preprocess, resize_gray
from raybench.errors import ExplainError
from raybench.explain import Explainer
from raybench.models.checkpoint import load_checkpoint
from raybench.models.classifier import Classifier
from raybench.report.infection_map import infection_map
from raybench.report.panel import PanelCell, PanelRow, explanation_panel
from raybench.report.weights import weights_figure
from raybench.scoring.binarise import binarise, oriented
from raybench.scoring.metrics import localisation_scores
from raybench.scoring.ranking import map_scores
from raybench.storage import Storage
from raybench.studies.context import progress_bar
from raybench.studies.practice import practice_checkpoint
from raybench.types import AttributionMap, ChestXray, Gray, XrayRecord

_ACROSS = 4
"""Maps in a row of the picture."""


@dataclass(frozen=True)
class Opened:
    """A classifier that is ready to be explained.

    Attributes:
        model: the classifier.
        preprocess: what its training images went through, and the X-ray has to as well.
        said: what it is, for the reader.
    """

    model: Classifier
    preprocess: Preprocess
    said: str

    def seen(self, xray: ChestXray) -> Gray:
        """The X-ray as the classifier is to see it, uint8 `[H, W]`, at its own resolution.

        Raises:
            DataError: lungs are to be masked, and the X-ray has no lung mask.
        """
        return self.preprocess.apply(xray)

    def probabilities(self, xray: ChestXray) -> pd.Series[float]:
        """What it says of an X-ray, by class."""
        answer = self.model.predict(self.seen(xray)[None])[0].astype(np.float64)
        names = self.model.classes or tuple(f"class {i}" for i in range(len(answer)))
        return pd.Series(answer, index=list(names), name="probability")


def open_checkpoint(path: str | None = None) -> Opened:
    """A checkpoint that a sweep wrote; for None a small classifier, trained on phantoms now.

    Args:
        path: `runs/<name>/checkpoints/<trial>.safetensors`; its JSON file is not needed.

    Raises:
        StorageError: there is no such file.
        ModelError: it is no checkpoint of raybench.
    """
    data = practice_checkpoint() if path is None else _bytes_of(path)
    card = load_checkpoint(data, path or "checkpoint")[1]
    model = Classifier.from_checkpoint(data, where=path or "checkpoint")
    accuracy = card.scores.get("val_accuracy", math.nan)
    what = "trained on phantoms just now" if path is None else path
    said = f"{card.backbone}, {what}; accuracy on Val {accuracy:.2f}"
    return Opened(model, Preprocess.model_validate(card.preprocess), said)


def read_xray(
    image: str, lung_mask: str | None = None, infection_mask: str | None = None
) -> ChestXray:
    """An X-ray of your own, and its masks where there are any.

    Args:
        image: path of a PNG or JPEG file; colour becomes grey.
        lung_mask, infection_mask: files of the same size, 0 and 255.

    Raises:
        BadImageError: a file is not there or does not open, or is no mask of the image's size.
    """
    grey = read_gray(*_at(image))
    shape = (grey.shape[0], grey.shape[1])
    lungs, infection = (
        None if path is None else read_mask(*_at(path), shape)
        for path in (lung_mask, infection_mask)
    )
    record = XrayRecord(_at(image)[1], "Test", "", image, lung_mask, infection_mask)
    return ChestXray(record, grey, lungs, infection)


@dataclass(frozen=True)
class Explained:
    """One explainer's map of the X-ray.

    Attributes:
        explainer: its settings.
        map: what it found.
    """

    explainer: Explainer
    map: AttributionMap


@dataclass(frozen=True)
class Explanations:
    """What several explainers say of one X-ray.

    Attributes:
        xray: the X-ray with its masks.
        seen: as the classifier saw it, uint8 `[H, W]`.
        target: the class explained, by name.
        each: in the order of the explainers.
    """

    xray: ChestXray
    seen: Gray
    target: str
    each: tuple[Explained, ...]

    def table(self) -> pd.DataFrame:
        """A row an explainer: cost, and scores where there is an infection mask.

        Masks for IoU and Dice are cut at the explainer's own threshold; a sweep chooses one on Val.
        """
        rows = [self._row(one) for one in self.each]
        return pd.DataFrame(rows).set_index("explainer")

    def picture(self) -> Figure:
        """The X-ray and all maps, blue weak and red strong, under one heading each."""
        table = self.table()
        scores = dict(zip(table.index, table.iou, strict=True)) if "iou" in table else {}
        cells = [
            PanelCell(
                one.explainer.title,
                infection_map(self.seen, oriented(one.map.values, one.explainer.sign)),
                scores.get(one.explainer.title),
            )
            for one in self.each
        ]
        across = min(_ACROSS, len(cells))
        # The last row is filled up with the X-ray as the classifier sees it.
        plain = PanelCell("as the model sees it", np.repeat(self.seen[..., None], 3, axis=2))
        cells += [plain] * (-len(cells) % across)
        rows = [
            PanelRow(
                self.xray.record.image_id,
                self.xray.image,
                self.xray.lung_mask,
                self.xray.infection_mask,
                tuple(cells[start : start + across]),
            )
            for start in range(0, len(cells), across)
        ]
        return explanation_panel(rows, f"What speaks for {self.target}")

    def weights(self, title: str) -> Figure:
        """The superpixels of one of the LIME family, and its weights with standard errors.

        Raises:
            ExplainError: there is no such map, or it is not made of superpixels.
        """
        found = {e.explainer.title: e.map for e in self.each if "uncertainty" in e.map.extras}
        if title not in found:
            raise ExplainError(
                f"expected an explainer that fits weights to superpixels, one of "
                f"{', '.join(found) or 'none here'}, found {title!r}"
            )
        extras = found[title].extras
        labels = extras["superpixels"]
        image = resize_gray(self.seen, (labels.shape[0], labels.shape[1]))
        told = f"{title}: r2 {extras['r2']:.2f}, from {found[title].n_forward} forward passes"
        return weights_figure(image, labels, extras["weights"], extras["uncertainty"], told)

    def _row(self, one: Explained) -> dict[str, float | str]:
        row: dict[str, float | str] = {"explainer": one.explainer.title}
        truth, lungs = self.xray.infection_mask, self.xray.lung_mask
        if truth is not None:
            values = oriented(one.map.values, one.explainer.sign)
            clip = lungs if one.explainer.clip_to_lungs else None
            stretch = not one.explainer.is_probability
            cut, median = one.explainer.threshold, one.explainer.median_filter
            salient = binarise(values, cut, clip, median, stretch)
            scores = localisation_scores(salient, truth) | map_scores(values, truth, lungs)
            wanted = ("iou", "dice", "hit_rate", "pixel_auroc", "outside_lungs")
            row |= {name: scores[name] for name in wanted}
        return row | {
            "forward_passes": one.map.n_forward,
            "seconds": round(float(one.map.extras["seconds"]), 2),
        }


def explain_one(
    opened: Opened,
    xray: ChestXray,
    explainers: Sequence[Explainer],
    target: str | None = None,
) -> Explanations:
    """Explain one X-ray by several explainers, with a bar.

    Args:
        opened: the classifier.
        explainers: under different titles (`label` gives one another).
        target: class to explain; None: the one that the classifier predicts.

    Raises:
        ExplainError: no such class, two titles are the same, or an explainer fails.
        DataError: lungs are to be masked, and the X-ray has no lung mask.
    """
    titles = [e.title for e in explainers]
    if not titles or len(set(titles)) < len(titles):
        raise ExplainError(
            f"explainers: expected at least one, each under a title of its own, found {titles}; "
            "give one of two alike another `label`"
        )
    likely = opened.probabilities(xray)
    names = [str(name) for name in likely.index]
    if target is not None and target not in names:
        raise ExplainError(f"target: expected one of {', '.join(names)}, found {target!r}")
    index = names.index(target) if target is not None else int(likely.to_numpy().argmax())
    seen = opened.seen(xray)
    found = []
    with progress_bar(len(explainers), "explaining", "map") as bar:
        for explainer in explainers:
            one = explainer.attribute(opened.model, seen, index, xray.lung_mask)
            found.append(Explained(explainer, one))
            bar.update(1)
    return Explanations(xray, seen, names[index], tuple(found))


def _at(path: str) -> tuple[Storage, str]:
    folder, _, name = path.replace("\\", "/").rpartition("/")
    return Storage(folder or ("/" if path.startswith("/") else ".")), name


def _bytes_of(path: str) -> bytes:
    storage, name = _at(path)
    return storage.read(name)
