"""What stands in a run folder: tables by parts, files written whole, and the names they take."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pandas as pd

from raybench.errors import StorageError
from raybench.storage import Storage
from raybench.tracking.parts import Parts, parquet_bytes
from raybench.tracking.stored_config import CONFIG_NAME

OWN_NAMES = (
    "events.jsonl",
    "events",
    "parts",
    "trials.csv",
    "trials_supervised.csv",
    "trials_lungs.csv",
    "scores.parquet",
    "leaderboard.csv",
    "comparisons.csv",
    "strata.csv",
    "faithfulness.csv",
    "faithfulness.parquet",
    "sanity.csv",
    "sanity.parquet",
    "stability.csv",
    "stability.parquet",
    "published.csv",
    "explainer_search.csv",
    "predictions.parquet",
    "figures",
    "checkpoints",
    "lungs",
    "report",
    "report.html",
    "mlflow.db",
    "mlflow.db-journal",
    "mlflow.db-shm",
    "mlflow.db-wal",
    "mlflow-artifacts",
)
"""What raybench writes at the top of a run folder, beside the names claimed with `claim`."""

LOCK = ".lock"
CLAIMED = ".claimed"


class RunTables:
    """The tables and figures of a run folder. Reading needs no lock.

    Args:
        storage: the files below the folder.
        copy: a local folder that gets what is written whole as well (tables, figures), where the
            folder itself is in a bucket.
    """

    def __init__(self, storage: Storage, copy: Storage | None = None) -> None:
        self.storage = storage
        self._copy = copy
        self._parts: dict[str, Parts] = {}

    def append(self, table: str, frame: pd.DataFrame) -> None:
        """Add rows to `parts/<table>`, all or none, as one Parquet part.

        Raises:
            StorageError: they cannot be written.
        """
        self._table(table).append(frame)

    def read(self, table: str) -> pd.DataFrame:
        """All rows of `parts/<table>` in the order of writing; empty where there are none.

        Raises:
            StorageError: a part cannot be read.
        """
        return self._table(table).read()

    def iterate(self, table: str, columns: Sequence[str] | None = None) -> Iterator[pd.DataFrame]:
        """The rows of `parts/<table>` part by part; only some columns where they are named.

        Raises:
            StorageError: a part cannot be read.
        """
        yield from self._table(table).iterate(columns)

    def compact(self, table: str) -> None:
        """Merge the parts of `table` into one; a kill neither loses nor doubles a row.

        Raises:
            StorageError: a part cannot be read or written.
        """
        self._table(table).compact()

    def claim(self, name: str) -> None:
        """Note that raybench writes `name` right below the folder: overwriting removes it.

        Raises:
            StorageError: it is not a plain name.
        """
        if not name or "/" in name or "\\" in name or name in {".", "..", CONFIG_NAME, LOCK}:
            raise StorageError(f"{name!r}: expected a plain name right below the run folder")
        if name not in OWN_NAMES and name not in (claimed := self._claimed()):
            if self.storage.is_local:
                self.storage.append_line(CLAIMED, name)
            else:
                self.storage.write(CLAIMED, "".join(f"{n}\n" for n in [*claimed, name]).encode())

    def write_csv(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as CSV, atomically, without its index.

        Raises:
            StorageError: it cannot be written.
        """
        self.claim(name)
        self._write(name, frame.to_csv(index=False).encode())

    def write_parquet(self, name: str, frame: pd.DataFrame) -> None:
        """Write a table as Parquet, atomically, without its index.

        Raises:
            StorageError: it cannot be written.
        """
        self.claim(name)
        self._write(name, parquet_bytes(frame, self.storage.path(name)))

    def write_figure(self, name: str, png: bytes) -> None:
        """Write `figures/<name>`, atomically. The name ends in `.png`.

        Raises:
            StorageError: the name is another, or the file cannot be written.
        """
        if not name.endswith(".png") or "/" in name:
            raise StorageError(f"{name!r}: a figure's name is plain and ends in .png")
        self._write(f"figures/{name}", png)

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        self.claim(name.split("/", 1)[0])
        self._write(name, data)

    def read_csv(self, name: str) -> pd.DataFrame:
        """A CSV table of this folder, `trial_id` as text; empty where there is none.

        Raises:
            StorageError: it cannot be read.
        """
        if not self.storage.exists(name):
            return pd.DataFrame()
        try:
            return pd.read_csv(io.BytesIO(self.storage.read(name)), dtype={"trial_id": str})
        except pd.errors.EmptyDataError:  # a frame without columns was written
            return pd.DataFrame()
        except ValueError as error:
            raise StorageError(f"{self.storage.path(name)}: not a CSV table ({error})") from error

    def read_parquet(self, name: str) -> pd.DataFrame:
        """A Parquet table of this folder; empty where there is none.

        Raises:
            StorageError: it cannot be read.
        """
        if not self.storage.exists(name):
            return pd.DataFrame()
        try:
            return pd.read_parquet(io.BytesIO(self.storage.read(name)))
        except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
            path = self.storage.path(name)
            raise StorageError(f"{path}: not a Parquet table ({error})") from error

    def _write(self, name: str, data: bytes) -> None:
        self.storage.write(name, data)
        if self._copy is not None:
            self._copy.write(name, data)

    def _table(self, table: str) -> Parts:
        return self._parts.setdefault(table, Parts(self.storage, table))

    def _claimed(self) -> list[str]:
        if not self.storage.exists(CLAIMED):
            return []
        return self.storage.read(CLAIMED).decode().splitlines()
