"""How long a bucket that refuses is waited for: a while, where it has done the same thing before.

Clients of buckets try again for as long as their makers chose, from not at all (403) to minutes
(a server that never answers). Here the clients try once, and this does the rest: calls to a bucket
that has answered are repeated for `PATIENCE` seconds since its first refusal, then given up; and
every further call is given up at once until one goes through, so that a sweep ends soon then. What
never worked is told at once, or, where only the network may be slow to come, after `FIRST` seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from raybench.errors import StorageError, UnavailableError

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that a bucket may refuse what it has done before."""

FIRST = 5.0
"""Seconds that it may refuse what it has not done yet."""

_LONGEST_PAUSE = 5.0
_WRITING = 15.0
_SLOWEST = 2**19
"""Seconds that a try of writing may take, and beside them bytes a second."""

_ANSWERS = (FileNotFoundError, NotADirectoryError, FileExistsError, StorageError)
_MISTAKES = (ValueError, TypeError, AttributeError, NotImplementedError)
_Found = TypeVar("_Found")

_lock = threading.Lock()
_known: set[tuple[str, str]] = set()
"""Buckets, and what each has done for this process."""

_since: dict[str, float] = {}
"""When a bucket began to refuse, seconds of `time.monotonic`."""


def patiently(
    where: str, what: str, call: Callable[[], _Found], before: Callable[[], None]
) -> _Found:
    """What `call` returns, though the bucket refuses for a while.

    Args:
        where: the object's URL.
        what: participle of what is done to it (`written`), for the message.
        call: may be called several times, also where its answer alone was lost.
        before: called before each try; what it raises ends them.

    Raises:
        UnavailableError: the bucket refused for too long.
        FileNotFoundError, NotADirectoryError, FileExistsError, StorageError: as `call`.
    """
    bucket, pause = "/".join(where.split("/")[:3]), 0.1
    while True:
        before()
        try:
            found = call()
        except _ANSWERS:
            _answered(bucket, what)
            raise
        except Exception as error:
            passed, left = _refused(bucket, what, error)
            if left <= 0:
                waited = f"; {_ADVICE.format(passed)}" if (bucket, what) in _known else ""
                raise UnavailableError(
                    f"{where}: cannot be {what} ({_reason(error)}){waited}"
                ) from error
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            _answered(bucket, what)
            return found


def once(where: str, what: str, call: Callable[[], _Found]) -> _Found:
    """What `call` returns; refusals as `patiently` has them, without waiting."""
    try:
        return call()
    except _ANSWERS:
        raise
    except Exception as error:
        raise UnavailableError(f"{where}: cannot be {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


_ADVICE = (
    "the bucket has refused for {:.0f} s; what was finished is kept: see that it can be reached "
    "and pass --resume"
)


def client_options(url: str) -> dict[str, object]:
    """Options of fsspec for `url` with which the client tries once; users' own come first."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"retries": {"total_max_attempts": 1}, **own}}


def within(fs: Any, data: bytes) -> dict[str, float]:
    """Options that bound one try of writing: no timeout of botocore's does while a server, asked
    whether it will take the data, says nothing."""
    seconds = _WRITING + len(data) / _SLOWEST
    return {"timeout": seconds} if getattr(fs, "async_impl", False) else {}


def quieten() -> None:
    """Keep tracebacks of connections that broke off from the terminal: each is told in one line.

    aiohttp leaves the second error of a broken connection to nobody, and asyncio prints it.
    """
    logger = logging.getLogger("asyncio")
    if _is_news not in logger.filters:
        logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


def _answered(bucket: str, what: str) -> None:
    with _lock:
        _known.add((bucket, what))
        since = _since.pop(bucket, None)
    if since is not None and time.monotonic() - since > FIRST:
        log.warning("%s: answers again after %.0f s", bucket, time.monotonic() - since)


def _refused(bucket: str, what: str, error: Exception) -> tuple[float, float]:
    """Seconds for which it has refused, and for which it may be tried again."""
    if isinstance(error, _MISTAKES):
        return 0.0, 0.0
    with _lock:
        is_known, is_first = (bucket, what) in _known, bucket not in _since
        since = _since.setdefault(bucket, time.monotonic())
    passed = time.monotonic() - since
    if not is_known:
        is_told = isinstance(error, PermissionError) or "Credential" in type(error).__name__
        return passed, 0.0 if is_told else FIRST - passed
    if is_first:
        log.warning("%s: refuses (%s); trying for %.0f s", bucket, str(error)[:200], PATIENCE)
    return passed, PATIENCE - passed
