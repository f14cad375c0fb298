"""Copies of ends that no task of this worker told Celery of, for the app's own result backend.

An operator cancels a job, the keeper fails one as poison, or an attempt ends that is not this
worker's any more. A worker learns of that by a doorbell or by its writer, and copies what the
ledger says, on a thread of its own: the app's database may be slow, and no job waits for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

from celery import Celery

from worker.runtime.mirror import MirroredBackend

logger = logging.getLogger(__name__)


class Copies:
    """Takes ids, and copies how their jobs have ended; nothing for an app without a mirror.

    Args:
        app: a durable app.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._wanted: queue.SimpleQueue[tuple[list[str], bool]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def are_made(self) -> bool:
        """Whether the app has a result backend of its own that is written."""
        return isinstance(self._app.backend, MirroredBackend)

    def put(self, ids: Sequence[str], *, anew: bool = False) -> None:
        """Copy the ends of these jobs soon; returns at once.

        Args:
            ids: of jobs that may have ended.
            anew: also where the copy has that state already: it may be another attempt's.
        """
        if not ids or not self.are_made:
            return
        self._wanted.put((list(ids), anew))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            ids, anew = self._wanted.get()
            try:
                self._app.backend.copy_ends(ids, anew=anew)
            except Exception as exc:  # whichever store is away: the ledger has the ends
                logger.warning(
                    "%d jobs are not written to the app's own result backend: %s", len(ids), exc
                )
