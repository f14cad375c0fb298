"""Drain: give back at once what is not started, let the rest finish, leave nothing behind."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from worker.errors import LedgerError
from worker.runtime.claims import Phase

if TYPE_CHECKING:
    from worker.runtime.process import Process

logger = logging.getLogger(__name__)

#: Seconds that the last results are given to be committed, and Celery to end by itself.
FLUSH_SECONDS = 2.0
EXIT_SECONDS = 2.0
#: Seconds after which a job that the pool has not started is taken to be cancelled by it.
UNSTARTED_SECONDS = 1.0


class Drain:
    """The orderly end of a worker, in a thread of its own.

    Celery's own warm shutdown waits without a bound, and a busy prefork pool may take half a
    minute; so this one depends on neither. The release of what still runs is the last act before
    the process is gone: a thread cannot be stopped, and releasing earlier would run it twice.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        # Signal handlers only set these: anything more could wait for a lock that the interrupted
        # thread holds.
        self._begun = threading.Event()
        self._at_once = threading.Event()
        self._thread = threading.Thread(target=self._run, name="drain", daemon=True)

    def start(self) -> None:
        """Start the thread, which waits for `begin`."""
        self._thread.start()

    @property
    def is_draining(self) -> bool:
        """Whether the end has begun."""
        return self._begun.is_set()

    def begin(self, *, at_once: bool) -> None:
        """Begin to drain; with `at_once` the running jobs get no more time. Safe in a handler."""
        if at_once:
            self._at_once.set()
        self._begun.set()

    def join(self) -> None:
        """Wait for the end of the drain; does not return when jobs were still running."""
        self._thread.join()

    def _run(self) -> None:
        self._begun.wait()
        process = self._process
        ends_at = time.monotonic() + process.settings.drain_seconds
        process.isolation.stop()
        process.fetcher.stop(FLUSH_SECONDS)
        process.give_back_undelivered("the worker shut down")
        idle = self._wait()
        if self._at_once.is_set():
            process.isolation.stop(at_once=True)
        if not process.writer.flush(FLUSH_SECONDS):
            logger.warning(
                "%d results could not be committed; they re-run.", process.writer.backlog
            )
        if not idle:
            self._kill_children()
        # Its job is given back by itself; were it killed with us, the job would count as lost.
        grace = 0.0 if self._at_once.is_set() else max(0.0, ends_at - time.monotonic())
        process.isolation.join(grace + FLUSH_SECONDS)
        self._close()
        if not idle:
            self._exit()
        timer = threading.Timer(EXIT_SECONDS, self._exit)  # if Celery waits for something still
        timer.daemon = True
        timer.start()

    def _exit(self) -> None:
        logging.shutdown()
        os._exit(self._process.controller.exitcode or 0)

    def _wait(self) -> bool:
        """Wait until nothing runs, at most the drain's seconds; whether nothing does."""
        left = self._process.settings.drain_seconds
        while left > 0 and not self._at_once.is_set():
            if self._process.claims.wait_until_idle(min(left, 0.2)):
                return True
            if not self._anything_can_end():
                break
            left -= 0.2
        return self._process.claims.wait_until_idle(0)

    def _anything_can_end(self) -> bool:
        """Whether waiting helps: a closing pool cancels what it was handed and has not started."""
        now = time.monotonic()
        return any(
            entry.phase is Phase.STARTED or now - entry.since < UNSTARTED_SECONDS
            for entry in self._process.claims.entries()
            if entry.phase is not Phase.ENDED
        )

    def _kill_children(self) -> None:
        """What is released next must not be running any more."""
        running = [e for e in self._process.claims.entries() if e.phase is not Phase.ENDED]
        logger.warning("%d jobs did not finish in time and are given back.", len(running))
        pool = getattr(self._process.controller.pool, "_pool", None)
        for child in getattr(pool, "_pool", None) or ():
            with suppress(OSError, TypeError):
                os.kill(child.pid, signal.SIGKILL)

    def _close(self) -> None:
        try:
            released = self._process.lease.close()
        except LedgerError as exc:
            logger.warning("The lease is left to expire: %s", exc)
        else:
            if released:
                logger.info("Gave back %d jobs.", len(released))
        self._process.writer.stop()
