"""Say in a worker's log when no keeper is alive: nothing else in the worker would show it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from worker.errors import LedgerError
from worker.flows.status import NO_KEEPER
from worker.ledger.database import Ledger
from worker.ledger.status import keeper_leads

logger = logging.getLogger(__name__)

#: Seconds between two looks, and for which no keeper may lead before a word is said: a lead lasts
#: for 5 seconds, and one is taken over within a second.
LOOK_EVERY: Final = 5.0
GRACE: Final = 12.0


class KeeperWatch:
    """A thread that looks whether a keeper leads; one warning when none does, one line after it.

    Args:
        ledger: where; while it is away nothing is said of keepers.
        every: seconds between two looks.
        grace: seconds.
        is_over: whether the worker is, in a process that may live on.
    """

    def __init__(
        self,
        ledger: Ledger,
        every: float = LOOK_EVERY,
        grace: float = GRACE,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ledger, self._every, self._grace, self._is_over = ledger, every, grace, is_over
        self._led = time.monotonic()
        self._is_told = False

    def start(self) -> None:
        """Look from now on, until the worker ends."""
        threading.Thread(target=self._run, name="keeper-watch", daemon=True).start()

    def look(self) -> None:
        """Look once, and say what has changed."""
        try:
            leads = keeper_leads(self._ledger)
        except LedgerError:
            self._led = time.monotonic()  # the worker says that; how long it was so is unknown
            return
        if leads:
            if self._is_told:
                logger.info("A keeper is alive again.")
            self._led, self._is_told = time.monotonic(), False
        elif not self._is_told and time.monotonic() - self._led > self._grace:
            logger.warning(NO_KEEPER)
            self._is_told = True

    def _run(self) -> None:
        while not self._is_over():
            time.sleep(self._every)
            try:
                if not self._is_over():
                    self.look()
            except Exception:
                logger.exception("Looking for a keeper failed, trying again")
