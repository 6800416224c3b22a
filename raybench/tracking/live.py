"""MLflow while the sweep runs: a thread that projects, and that can neither stop nor delay it."""

from __future__ import annotations

import logging
import shlex
import threading
import time

from raybench.errors import RaybenchError
from raybench.tracking.mlflow_projection import ProjectionReport, Projector
from raybench.tracking.run_folder import RunFolder
from raybench.tracking.tracking_uri import shown
from raybench.tracking.view import fingerprint

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE = 60.0
_LONGEST_PAUSE = 600.0
_REST = 5.0


def repeat_command(run: RunFolder, uri: str | None, experiment: str | None) -> str:
    """The command that projects a run folder from the shell, without a password in it."""
    words = ["python", "-m", "raybench.track", run.where]
    words += ["--uri", shown(uri)] if uri else []
    words += ["--experiment", experiment] if experiment else []
    return shlex.join(words)


class LiveProjection:
    """Projects a run folder from a daemon thread, from now until `close`.

    A failure opens a circuit breaker: the next attempt waits 60 s, then twice as long each time, up
    to 10 minutes. The first failure writes one `warning` event and one log line; none is raised.
    An attempt is made only where the folder has news, and after each the thread rests five times as
    long as it took, so that it never takes much of the driver's time.

    Args:
        run: the sweep's folder; the driver goes on writing in it.
        uri: as in `project`.
        experiment: as in `project`.
        every_seconds: the shortest time between two projections.
    """

    def __init__(
        self,
        run: RunFolder,
        uri: str | None = None,
        experiment: str | None = None,
        every_seconds: float = 5.0,
    ) -> None:
        self._run = run
        self._projector = Projector(run, uri, experiment)
        self._command = repeat_command(run, uri, experiment)
        self._every = every_seconds
        self._stop = threading.Event()
        self._final = True
        self._pause = 0.0
        self._warned = False
        self._seen: object = None
        self._outcome: ProjectionReport | str = self._advice("nothing was projected yet")
        self._thread = threading.Thread(target=self._work, name="raybench-mlflow", daemon=True)
        self._thread.start()

    def close(self, final: bool = True, timeout: float = 60.0) -> ProjectionReport | str:
        """Stop the thread, after one last projection if `final`; wait `timeout` seconds at most.

        Returns:
            The report of the last projection, or one line that says why there is none and which
            command repeats it.
        """
        self._final = final
        self._stop.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            return self._advice(f"MLflow was not done after {timeout:.0f} s")
        return self._outcome

    def _work(self) -> None:
        wait = self._every
        while not self._stop.wait(wait):
            begin = time.monotonic()
            self._attempt()
            wait = self._pause or max(self._every, _REST * (time.monotonic() - begin))
        if self._final:
            # Whatever the breaker says: the server may be back, and this is the last chance.
            self._attempt()

    def _attempt(self) -> None:
        try:
            seen = fingerprint(self._run)
            if seen == self._seen and not self._stop.is_set():
                return
            self._outcome = self._projector.project()
            self._seen = seen
            self._pause = 0.0
        except Exception as error:  # the sweep must go on, whatever is wrong with its projection
            reason = str(error) if isinstance(error, RaybenchError) else repr(error)
            self._outcome = self._advice(" ".join(reason.split()))
            self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
            self._warn()

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        _LOG.warning("%s", self._outcome)
        try:
            self._run.events.append("warning", message=str(self._outcome))
        except RaybenchError as error:
            _LOG.warning("this warning is not in the event log: %s", error)

    def _advice(self, reason: str) -> str:
        return f"{reason}. The run folder has everything; to project it again: {self._command}"
