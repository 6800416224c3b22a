"""Tracking URIs: which are known, who answers, where files go. Imports no MLflow."""

from __future__ import annotations

import socket
import sqlite3
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from raybench.errors import TrackingError
from raybench.masking import masked

_SQL_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_KNOWN = "http://host:port, https://..., sqlite:////absolute/path.db, postgresql://..., mysql://..."
_SECONDS = 5.0


def default(folder: Path) -> str:
    """The store that a run folder holds itself."""
    return f"sqlite:///{folder / 'mlflow.db'}"


shown = masked
"""Text without passwords."""


def home(uri: str, folder: Path) -> Path:
    """The folder of a sqlite store; the run folder for any other."""
    return _sqlite_path(uri).parent if uri.startswith("sqlite:") else folder


def artifacts(uri: str, folder: Path) -> str | None:
    """Where a new experiment keeps its files: None leaves it to the server.

    Without a server MLflow's own choice would be `./mlruns` wherever the command happens to run.
    """
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    return (home(uri, folder).absolute() / "mlflow-artifacts").as_uri()


def reach(uri: str) -> None:
    """See that somebody can be there, in a few seconds and without MLflow.

    Raises:
        TrackingError: the scheme is unknown, or nobody answers.
    """
    scheme = uri.split(":", 1)[0].split("+")[0] if ":" in uri else ""
    if scheme in {"http", "https"}:
        within(_SECONDS + 1, lambda: _ask(uri), uri)
    elif scheme == "sqlite":
        _look(uri)
    elif scheme in _SQL_PORTS:
        within(_SECONDS + 1, lambda: _knock(uri, _SQL_PORTS[scheme]), uri)
    elif scheme != "databricks" and uri != "databricks":
        raise TrackingError(
            f"{shown(uri)!r}: not a tracking URI that raybench knows; expected one of {_KNOWN}"
        )


def within(seconds: float, call: Callable[[], object], uri: str) -> None:
    """Run `call` in a thread and wait so long at most: looking up a name has no timeout of its own.

    Raises:
        TrackingError: it takes longer. Whatever `call` raises is raised.
    """
    failure: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=work, name="raybench-tracking-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TrackingError(f"{shown(uri)}: no answer within {seconds:.0f} s; is the server up?")
    if failure:
        raise failure[0]


def _ask(uri: str) -> None:
    parts = urlsplit(uri)
    netloc = parts.netloc.rsplit("@", 1)[-1]
    context = ssl.create_default_context()
    # Only whether somebody is there; MLflow itself checks the certificate, by the user's settings.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}/health"
    try:
        urllib.request.urlopen(address, timeout=_SECONDS, context=context).close()
    except urllib.error.HTTPError:
        return  # an answer, if not this one: MLflow's own call says more
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"{shown(uri)}: no tracking server answers ({reason}); start it, correct the URI, or "
            f"leave the URI out to keep MLflow's store in the run folder"
        ) from error


def _knock(uri: str, port: int) -> None:
    parts = urlsplit(uri)
    if parts.hostname is None:
        return  # a local socket, named in the query
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=_SECONDS).close()
    except OSError as error:
        raise TrackingError(
            f"{shown(uri)}: no database answers ({error}); start it or correct the URI"
        ) from error


def _sqlite_path(uri: str) -> Path:
    path = uri.split("?", 1)[0].removeprefix("sqlite:///")
    if path == uri.split("?", 1)[0] or not path or path == ":memory:":
        raise TrackingError(f"{shown(uri)!r}: expected a file, sqlite:////absolute/path.db")
    return Path(path)


def _look(uri: str) -> None:
    path = _sqlite_path(uri)
    if not path.parent.is_dir():
        raise TrackingError(f"{uri}: there is no folder {path.parent}; make it or correct the URI")
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise TrackingError(f"{uri}: not a sqlite database ({error}); name another") from error
