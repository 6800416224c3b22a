"""What a trial leaves behind after each epoch, and how it is found again."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from raybench.errors import StorageError
from raybench.storage import Storage
from raybench.training.recipe import Recipe

log = logging.getLogger(__name__)

BEST = "best.safetensors"
_STATE = "state.pt"
_UNREADABLE: tuple[type[Exception], ...] = (
    OSError,
    StorageError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave. Losses and scores (in [0, 1]) are means over images.

    The training loss is the one that is minimised: with augmentation, and smoothed labels where the
    recipe asks for them; the loss on Val is plain.

    Attributes:
        score: what the task calls its score: `accuracy`.
    """

    epoch: int
    phase: int
    unfreeze: str | int
    lr: float
    train_loss: float
    train_score: float
    val_loss: float
    val_score: float
    seconds: float
    score: str = "accuracy"

    def figures(self) -> dict[str, Any]:
        """The same with the scores under the task's name: `train_accuracy`, `val_accuracy`."""
        row = asdict(self)
        name = row.pop("score")
        return dict(zip(self.names(name), row.values(), strict=True))

    @classmethod
    def names(cls, score: str) -> list[str]:
        """The keys of `figures` for a task's score."""
        plain = [f.name for f in fields(cls) if f.name != "score"]
        return [name.replace("_score", f"_{score}") for name in plain]


def digest(recipe: Recipe) -> str:
    """Names a resolved recipe: a state of another one is of no use to it."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


@dataclass(slots=True)
class State:
    """All that the loop needs to go on after an epoch.

    `net` and `optimizer` are the loop's own tensors, which the next epoch changes: write them.

    Attributes:
        recipe: digest of the recipe it belongs to.
        epoch: figures of the epoch it stands after.
        best: the checkpoint kept so far, as safetensors.
        passes: `Stepper.state`: pieces of a batch and the scale of float16's gradients.
    """

    recipe: str
    epoch: Epoch
    net: dict[str, Any]
    optimizer: dict[str, Any]
    plateau: dict[str, Any] | None
    best_score: float
    best_loss: float
    best: bytes
    passes: dict[str, Any] = field(default_factory=dict)

    @property
    def next_epoch(self) -> int:
        """Number of the epoch to be trained next."""
        return self.epoch.epoch + 1

    def write(self, folder: Path) -> None:
        """Two files: `best.safetensors`, the checkpoint kept, and `state.pt`, all the rest."""
        (folder / BEST).write_bytes(self.best)
        rest = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "best"}
        rest["epoch"] = asdict(self.epoch)
        rest["best_digest"] = hashlib.sha256(self.best).hexdigest()
        torch.save(rest, folder / _STATE)

    @classmethod
    def read(cls, files: Storage, folder: str) -> State:
        """The state that `write` left in a folder.

        Raises:
            StorageError, RuntimeError, ValueError, ...: there is none, or not a whole one.
        """
        rest = torch.load(
            io.BytesIO(files.read(f"{folder}/{_STATE}")), weights_only=True, map_location="cpu"
        )
        best = files.read(f"{folder}/{BEST}")
        if hashlib.sha256(best).hexdigest() != rest.pop("best_digest"):
            raise ValueError(f"{files.path(folder)}/{BEST} is not the file that was written")
        return cls(**rest | {"epoch": Epoch(**rest["epoch"])}, best=best)


def newest(files: Storage, folder: str, recipe: Recipe) -> State | None:
    """The furthest state of a recipe among a trial's checkpoints; None where there is none.

    Tune notes its trials about once a second, and after a kill names a checkpoint that can be
    older than what lies on disk, or removed by then. The files themselves are asked instead. A kill
    can leave one half-written, and with trials side by side another trial may have had this
    one's number before: neither counts.

    Args:
        files: of the run folder, local or in a bucket.
        folder: of the trial, with a folder `checkpoint_*` for each one kept.
    """
    wanted = digest(recipe)
    found: State | None = None
    for own in (folder, *_named_after(files, folder)):
        kept = [name for name in files.names(own) if name.startswith("checkpoint_")]
        for name in reversed(kept):
            try:
                state = State.read(files, f"{own}/{name}")
            except _UNREADABLE as error:
                log.info("%s is not a whole checkpoint: %s", name, error)
                continue
            if state.recipe == wanted:
                if found is None or state.next_epoch > found.next_epoch:
                    found = state
                break
    return found


def _named_after(files: Storage, folder: str) -> list[str]:
    """Folders that Tune made of a trial when a kill had left one of its name: `t0001_40f1`."""
    parent, _, own = folder.rpartition("/")
    names = [name for name in files.names(parent) if name.startswith(f"{own}_")] if own else []
    return [f"{parent}/{name}" if parent else name for name in names]
