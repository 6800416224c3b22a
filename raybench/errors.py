"""Every error that raybench raises on purpose.

Each message names the file or key, says what was expected and what was found, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from raybench.masking import masked


class RaybenchError(Exception):
    """The root: a person can read the message and act on it; no traceback is needed.

    Passwords and keys of addresses are masked in every message.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(message))


class ConfigError(RaybenchError):
    """The sweep file or the command line does not say something raybench can run.

    Args:
        problems: one line a mistake, each beginning with the path of its key.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(masked, problems))
        count = len(self.problems)
        head = "1 mistake" if count == 1 else f"{count} mistakes"
        lines = [f"{head} in the configuration:", *(f"  {p}" for p in problems)]
        super().__init__("\n".join(lines))


class DataError(RaybenchError):
    """The data set is not what it should be.

    Args:
        message: what is wrong.
        problems: one line a bad item, where there are several.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([message, *(f"  {p}" for p in problems)]))


class BadImageError(DataError):
    """One image or mask cannot be used. The scan collects these."""


class ModelError(RaybenchError):
    """A backbone is unknown, or its weights cannot be had or do not fit."""


class StorageError(RaybenchError):
    """A file or folder cannot be read or written."""


class UnavailableError(StorageError):
    """Nothing can be stored for now (a bucket that refuses, a full disk), whoever asks.

    What was being done need not be wrong: it is not recorded as failed, and the sweep ends.
    """


class RunFolderError(RaybenchError):
    """The output folder holds something that this sweep must not touch."""


class TrackingError(RaybenchError):
    """The tracking server cannot be reached or refuses."""


class ExplainError(RaybenchError):
    """An explainer cannot explain this image with this model."""


class ExecutionError(RaybenchError):
    """The work cannot be run here (no such resources, or every worker died)."""
