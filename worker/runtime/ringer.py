"""The ringer: pushes doorbells apart from the writer, whom a silent Redis must not hold up."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

from worker.broker.doorbells import Doorbells
from worker.errors import BrokerUnavailable
from worker.jobs.job import Ring

logger = logging.getLogger(__name__)


class Ringer:
    """A thread that rings for what was written, best effort: the keeper rings for the rest.

    Args:
        doorbells: the lists.
    """

    def __init__(self, doorbells: Doorbells) -> None:
        self._doorbells = doorbells
        self._rings: queue.SimpleQueue[Sequence[Ring] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, rings: Sequence[Ring]) -> None:
        """Hand over doorbells; returns at once."""
        if rings:
            self._rings.put(rings)

    def stop(self) -> None:
        """Push what was handed over, then close the doorbells and end."""
        self._rings.put(None)

    def _run(self) -> None:
        while (rings := self._rings.get()) is not None:
            try:
                self._doorbells.ring(rings)
            except BrokerUnavailable as exc:
                logger.warning("%d doorbells are late: %s", len(rings), exc)
            except Exception:
                logger.exception("%d doorbells are late", len(rings))
        self._doorbells.close()
