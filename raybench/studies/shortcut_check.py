"""A warning at the start of a sweep where the data let a classifier cheat."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from raybench.data.preprocess import Preprocess
from raybench.data.scan import Scan
from raybench.data.shortcuts import EVERYTHING, LEVEL, Evidence, look_for_shortcuts
from raybench.tracking.events import EventLog

log = logging.getLogger(__name__)

_CURES = {
    "size": "bring the files to one size and shape before the sweep",
    "grey levels": "set preprocess.clahe, or equalise exposures before the sweep",
    "file type": "write all files anew from originals of one kind",
}


def warn_of_shortcuts(events: EventLog, found: Scan, preprocess: Preprocess) -> None:
    """Note what statistics alone say of the class, and warn where that is more than chance.

    The event `shortcut_check` holds the figures of every family, whatever they are; a `warning`
    follows where one is a shortcut. Figures are all that is written: no image and no patient.
    """
    evidence = look_for_shortcuts(found.records, found.statistics)
    events.append(
        "shortcut_check",
        families=[
            {
                "family": e.family,
                "val_balanced_accuracy": round(e.score, 4),
                "chance": round(e.chance, 4),
                "p": round(e.p, 4),
                "is_shortcut": e.is_shortcut,
            }
            for e in evidence
        ],
    )
    if any(e.is_shortcut for e in evidence):
        message = _message(evidence, preprocess)
        events.append("warning", message=message)
        log.warning("%s", message)


def _message(evidence: Sequence[Evidence], preprocess: Preprocess) -> str:
    ruled_out = [e for e in evidence if e.is_shortcut]
    others = [e for e in evidence if not e.is_shortcut and e.p <= LEVEL]
    text = (
        "image statistics alone predict the class (balanced accuracy on Val, chance "
        f"{evidence[0].chance:.2f}): {_listed(ruled_out)}"
    )
    if others:
        text += f"; less surely, {_listed(others)}"
    cures = [
        _cure(e.family, preprocess) for e in [*ruled_out, *others] if e.family != EVERYTHING
    ] or ["compare how the images of each class were made"]
    return f"{text}. A classifier may learn this in place of disease. What to do: " + "; ".join(
        cures
    )


def _listed(evidence: Sequence[Evidence]) -> str:
    return ", ".join(f"{e.family} {e.score:.2f} (p {max(e.p, 1e-4):.2g})" for e in evidence)


def _cure(family: str, preprocess: Preprocess) -> str:
    if family == "border and corners":
        if preprocess.lung_masking:
            return "lung masking blackens the border: keep that on"
        return "set preprocess.lung_masking, or erase or crop the borders before the sweep"
    if family == "lung masks":
        if preprocess.lung_masking:
            return (
                "lung masking shows the masks' outline: compare with a sweep without it, and see "
                "that those of all classes were drawn in one way"
            )
        return "leave preprocess.lung_masking off: it would show the masks' outline"
    return _CURES[family]
