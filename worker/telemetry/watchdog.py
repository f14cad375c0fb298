"""The watchdog: ends a process that is wedged, so that whoever supervises it starts it again."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

#: Seconds between two looks.
LOOK = 0.5
#: The exit code of a process that ends itself because it is wedged; EX_SOFTWARE of sysexits.h.
EXIT_WEDGED = 70
#: Seconds that the last line of the log may take: what is wedged may be the log itself.
LAST_WORDS = 2.0


class Watchdog:
    """A thread that looks for faults, and ends the process when they last.

    Its clock counts only while this thread gets to run. So a process that was stopped and
    continued, or whose threads all waited for one that held the GIL, is not taken to be wedged.

    Args:
        look: what is wedged, a sentence each that does not change while it lasts. It may not
            wait for a lock that others hold for long.
        patience: seconds that a fault may last before the process ends; asked from the first look
            that saw it.
        may_end: asked before that; False in a process that is somebody else's.
    """

    def __init__(
        self,
        look: Callable[[], Sequence[str]],
        patience: float,
        may_end: Callable[[], bool] = lambda: True,
    ) -> None:
        self._look = look
        self._may_end = may_end
        self._patience = patience
        self._ran = 0.0
        self._seen: dict[str, float] = {}
        self._faults: tuple[str, ...] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until `stop`; whether it has come."""
        return self._stop.wait(seconds)

    def now(self) -> float:
        """Seconds for which this process has run under watch."""
        return self._ran

    @property
    def faults(self) -> tuple[str, ...]:
        """What two looks in a row have seen; at the first, others may just not have run yet."""
        return self._faults

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(LOOK):
            now = time.monotonic()
            self._ran += min(now - last, 2 * LOOK)
            last = now
            try:
                found = self._look()
            except Exception:
                logger.exception("The watchdog could not look, trying again")
                continue
            self._faults = tuple(fault for fault in found if fault in self._seen)
            self._seen = {fault: self._seen.get(fault, self._ran) for fault in found}
            lasts = any(self._ran - since > self._patience for since in self._seen.values())
            if lasts and self._may_end():
                self._end()

    def _end(self) -> None:
        words = threading.Thread(target=self._say, daemon=True)
        words.start()
        words.join(LAST_WORDS)
        # Not by an exception: the main thread may be what is wedged.
        os._exit(EXIT_WEDGED)

    def _say(self) -> None:
        said = " ".join(self._faults)
        logger.critical("This process is wedged and ends, to be started again: %s", said)
        logging.shutdown()
        faulthandler.dump_traceback(file=2)  # where each thread stands: the way to the cause
