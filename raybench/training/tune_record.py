"""Tune's notes of a search, beside the trials' own states: whether they are whole."""

from __future__ import annotations

import json
import logging
import pickletools

from raybench.errors import StorageError, UnavailableError
from raybench.storage import Storage

log = logging.getLogger(__name__)


def drop_if_torn(files: Storage, folder: str) -> None:
    """Remove Tune's notes where one is not whole, as a full disk or a kill can leave it.

    Tune would begin anew with an empty folder, or quietly do without the trials that it cannot
    read. Without its notes the search proposes the same trials again, from the same seed and the
    same scores, and each goes on from its own state on disk: nothing is trained twice.
    """
    torn = [name for name in files.sizes(folder) if not _is_whole(files, f"{folder}/{name}")]
    if torn:
        log.warning("Tune's record of the trials is torn (%s): it is made again", torn[0])
        drop(files, folder)


def drop(files: Storage, folder: str) -> None:
    """Remove Tune's notes; the trials' folders stay."""
    for name in files.sizes(folder):
        files.remove(f"{folder}/{name}")


def _is_whole(files: Storage, name: str) -> bool:
    """Whether a file is whole by its form; pickles are read through and not loaded."""
    try:
        data = files.read(name)
        if data[:1] == b"\x80" or name.endswith(".pkl"):  # some of its pickles are called .json
            for _ in pickletools.genops(data):
                pass
        elif name.endswith(".json"):
            json.loads(data)
    except UnavailableError:
        raise
    except (StorageError, ValueError):
        return False
    return True
