"""The event log: one JSON object a line, only ever added to, and seen onto the disk each time.

In a bucket it is a folder `events/` of such lines (`tracking.segments`).

Kinds that the studies write, with their fields beside `time` and `kind`:

- `sweep_started`, `sweep_resumed`: version, config_digest, data_digest
- `shortcut_check`: families (each with its balanced accuracy on Val, chance, p and is_shortcut)
- `trial_started`: trial_id, backbone, hyperparameters (flat name to value)
- `epoch`: trial_id, backbone, epoch (0-based, counted over all phases), phase, unfreeze, lr,
  train_loss, train_accuracy, val_loss, val_accuracy, seconds; task (of a U-Net), micro_batch
- `trial_finished`: trial_id, status (`finished`, `stopped`, `failed` or `ensemble`), error
- `ensemble_made`: members (trial ids), not_explained_by (titles of explainers)
- `stage_started`: stage; `stage_finished`: stage, seconds and counts
- `precision_chosen`: trial_id, precision (`float32` or `bfloat16`), ious (of the salient masks of a
  few Val images under both), errors
- `centre_prior`: source (`train`: the mean of its infection masks, or `gaussian`, where Train has
  none), n_masks
- `lungs`: predicted (masks), val_dice (of the U-Net), empty (images without lungs found)
- `compared`: sentences (of the comparison of explainers, for people)
- `warning`: message
- `sweep_finished`

After a resume an epoch of a trial may occur twice: the last one counts.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from raybench.errors import StorageError
from raybench.storage import Storage
from raybench.tracking.segments import Segments

Event = dict[str, Any]


class EventLog:
    """One JSON-lines file of a folder. Threads may share a log; one process writes.

    Args:
        storage: where the file lies.
        name: the file's name below it.
        copy: a local folder that gets every event too, where `storage` is a bucket.
    """

    def __init__(
        self, storage: Storage, name: str = "events.jsonl", copy: Storage | None = None
    ) -> None:
        self.storage = storage
        self.name = name
        self._copy = copy
        stem = name.removesuffix(".jsonl")
        self._segments = None if storage.is_local else Segments(storage, stem)
        self._lock = threading.Lock()
        self._ends_cleanly = False

    def append(self, kind: str, **fields: Any) -> Event:
        """Write one event; it is on the disk when this returns.

        `time` (Unix seconds) is now, unless the fields name another. JSON knows no NaN and no
        infinity: they are written as the strings "NaN", "Infinity" and "-Infinity", which `float`
        turns back. NumPy scalars and arrays become plain numbers and lists, paths become strings.

        Returns:
            The event as it was written.

        Raises:
            StorageError: the file cannot be written.
            TypeError: a field holds something that JSON cannot say.
        """
        event: Event = {"time": time.time(), "kind": kind}
        event.update({key: _plain(value) for key, value in fields.items()})
        line = json.dumps(event, allow_nan=False)
        with self._lock:
            if self._segments is not None:
                self._segments.append(line)
                if self._copy is not None:
                    self._copy.append_line(self.name, line)
                return event
            if not self._ends_cleanly:
                self._mend()
            # A write that fails may leave half a line: the next one has to look again.
            self._ends_cleanly = False
            self.storage.append_line(self.name, line)
            self._ends_cleanly = True
        return event

    def read(self) -> list[Event]:
        """All events in the order of writing; none where there is no file.

        A last line without its end is what a process killed while writing leaves: it is passed
        over, unless it is whole but for the line break.

        Raises:
            StorageError: any other line is not an event; the message names the file and the line.
        """
        whole, tail = _split(self.text())
        events = []
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            event = _parse(line)
            if event is None:
                raise StorageError(
                    f"{self.storage.path(self.name)}, line {number}: expected an event (a JSON "
                    f"object with a `kind`), found {line[:60]!r}; the file was damaged from "
                    f"outside: mend or remove that line"
                )
            events.append(event)
        last = _parse(tail)
        return [*events, last] if last is not None else events

    def text(self) -> bytes:
        """All lines as they lie there; the last one may lack its end."""
        if self._segments is not None:
            with self._lock:
                return self._segments.read()
        return self.storage.read(self.name) if self.storage.exists(self.name) else b""

    def _mend(self) -> None:
        """Make the file end with a line break, without the half line of a killed process."""
        if not self.storage.exists(self.name):
            return
        whole, tail = _split(self.storage.read(self.name))
        if tail:
            self.storage.write(self.name, whole + (tail + b"\n" if _parse(tail) else b""))


def _split(data: bytes) -> tuple[bytes, bytes]:
    """What ends with a line break, and the rest."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None


def _plain(value: Any) -> Any:
    """`value` in the types of strict JSON."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value
