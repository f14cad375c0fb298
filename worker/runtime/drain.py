"""Drain: give back at once what is not started, let the rest finish, leave nothing behind."""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from celery.exceptions import WorkerShutdown, WorkerTerminate

from worker.errors import LedgerError
from worker.runtime.claims import Phase
from worker.runtime.outcome import describe, exit_code

if TYPE_CHECKING:
    from worker.runtime.process import Process

logger = logging.getLogger(__name__)

# Seconds after the drain's own, by which each part is over, come what may; the whole is promised
# to be over within 5.
#: The last results are committed.
FLUSHED = 1.75
#: The isolated process has given back what it ran.
ISOLATED_GONE = 2.5
#: The release is committed, or left to the lease's expiry.
RELEASED = 3.25
#: The process is gone, even when a task holds the GIL or a lock is held for ever. The rest is for a
#: busy machine, which may let each step wait for most of a second.
GONE = 3.75
#: Seconds that Celery is given to end by itself when nothing is left to wait for.
EXIT_SECONDS = 2.0
#: Seconds after which a job that the pool has not started is taken to be cancelled by it.
UNSTARTED_SECONDS = 1.0
#: Seconds that an isolated process waits for its worker's word that it is to end.
ASKED_SECONDS = 0.3
#: Seconds that listeners such as Flower are waited for at the end, where Redis is slow or away.
TOLD_SECONDS = 0.5
#: Seconds that killed children are given to be dead; only what hangs in the kernel takes longer.
DEAD_SECONDS = 0.5


class Drain:
    """The orderly end of a worker, in a thread of its own.

    Celery's own warm shutdown waits without a bound, and a busy prefork pool may take half a
    minute; so this one depends on neither. The release of what still runs is the last act before
    the process is gone: a thread cannot be stopped, and releasing earlier would run it twice.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        # Signal handlers only set these: a lock, such as an event's, may be held by the thread that
        # they interrupt. To put into this queue takes none.
        self._is_begun = self._is_at_once = False
        self._fault: str | None = None
        self._ends_at = 0.0
        self._begun: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._closing = threading.Event()
        self._closed = threading.Event()

    def start(self) -> None:
        """Start the threads, which wait for `begin`; none can be started late in an exit."""
        threading.Thread(target=self._run, name="drain", daemon=True).start()
        threading.Thread(target=self._close, name="release", daemon=True).start()

    @property
    def is_draining(self) -> bool:
        """Whether the end has begun."""
        return self._is_begun

    @property
    def is_over(self) -> bool:
        """Whether everything is given back."""
        return self._over.is_set()

    def begin(self, *, at_once: bool) -> None:
        """Begin to drain; with `at_once` the running jobs get no more time. Safe in a handler."""
        now = time.monotonic()
        if not self._is_begun:
            self._ends_at = now + self._process.settings.drain_seconds
        if at_once and not self._is_at_once:
            self._ends_at = min(self._ends_at, now)
            self._is_at_once = True
        self._is_begun = True
        if self._process.owns_process:
            _exit_within(self._left(GONE))  # here: the drain's thread may not get to run
        self._begun.put(None)

    def blame(self, fault: str) -> None:
        """A fault ends this worker: what it has begun and does not end is no clean release.

        One of its jobs may have caused it, and would end the next worker too. So what is left at
        the end is lost with this worker, as in a crash: suspects, which run alone from then on.
        """
        if self._fault is None:
            self._fault = fault
            logger.error("This worker ends by a fault: %s", fault)

    def blame_job(self, job_id: str, exc: BaseException) -> None:
        """Blame what ends the worker on the job whose hand-over raised it; also a `sys.exit(0)`, as
        in a handler of `task_received`: it would end each worker in turn."""
        if not isinstance(exc, (WorkerShutdown, WorkerTerminate)):  # asked for on purpose
            self.blame(f"job {job_id} was handed over: {describe(exc)}")

    def join(self) -> None:
        """Wait for the end of the drain, and until listeners are told of it; does not return when
        jobs were still running."""
        self._over.wait()
        self._tell_the_last(TOLD_SECONDS)

    def _run(self) -> None:
        self._begun.get()
        idle = False
        try:
            idle = self._drain()
        except Exception:
            logger.exception("The drain failed; what this worker holds waits for its lease's end")
        if idle:
            self._over.set()
            time.sleep(min(EXIT_SECONDS, self._left(RELEASED)))  # if Celery waits for something
        self._exit()

    def _drain(self) -> bool:
        """Everything up to the release; whether no job was running any more."""
        process = self._process
        process.isolation.stop()
        process.give_back_undelivered("the worker shut down")
        process.fetcher.stop(min(FLUSHED, self._left(FLUSHED)))
        process.give_back_undelivered("the worker shut down")
        idle = self._wait()
        if self._is_at_once:
            process.isolation.stop(at_once=True)
        if not process.writer.flush(self._left(FLUSHED)):
            logger.warning(
                "%d results could not be committed; they re-run.", process.writer.backlog
            )
        if not idle:
            self._kill_children()
        if not idle and not process.isolation.was_asked(ASKED_SECONDS):
            self.blame("its worker goes on and has not asked this process for suspects to end")
        # Its job is given back by itself; were it killed with us, the job would count as lost.
        process.isolation.join(self._left(ISOLATED_GONE))
        self._closing.set()
        if not self._closed.wait(self._left(RELEASED)):
            logger.warning("The lease is left to expire: %s", "Postgres has not answered in time.")
        return idle

    def _left(self, after: float) -> float:
        """Seconds left until `after` seconds past the drain's end."""
        return max(0.0, self._ends_at + after - time.monotonic())

    def _exit(self) -> None:
        self._over.set()
        if self._process.owns_process:
            self._tell_the_last(min(TOLD_SECONDS, self._left(RELEASED)))
            logging.shutdown()
            os._exit(exit_code(self._process.controller.exitcode))
        self._let_go()

    def _tell_the_last(self, seconds: float) -> None:
        """The announcer gathers events before it sends them, and its thread ends with the process:
        of a job that ended just now nobody would hear."""
        consumer = getattr(self._process.controller, "consumer", None)
        if consumer is not None:
            consumer.announcer.flush(seconds)

    def _let_go(self) -> None:
        """Leave the host nothing of this worker: each one that it runs would keep as much more, and
        no database with connections to it can be dropped."""
        process = self._process
        process.health.stop()
        if (consumer := getattr(process.controller, "consumer", None)) is not None:
            consumer.announcer.stop()
        process.ringer.stop()
        process.lease.ledger.close()
        process._ledger.close()

    def _wait(self) -> bool:
        """Wait until nothing runs, at most until the drain's end; whether nothing does."""
        while left := self._left(0.0):
            if self._process.claims.wait_until_idle(min(left, 0.2)):
                return True
            self._give_back_unstarted()
            if not self._anything_can_end():
                break
        return self._process.claims.wait_until_idle(0)

    def _give_back_unstarted(self) -> None:
        """What the event loop, or the pool's closing, has left lying is not started any more.

        Not what a prefork pool has: a child may run it whose word is not read yet.
        """
        if self._fault is not None:
            return  # the last one that was handed over may be the cause
        phases = {Phase.CLAIMED} if self._children() else {Phase.CLAIMED, Phase.HANDED}
        before = time.monotonic() - UNSTARTED_SECONDS
        for entry in self._process.claims.entries():
            if entry.fence and entry.phase in phases and entry.since < before:
                # It may just be handed over, or taken up by a thread: then it runs.
                self._process.give_back(entry.fence, "the worker shut down", among=phases)

    def _anything_can_end(self) -> bool:
        """Whether waiting helps: a closing pool cancels what it was handed and has not started.

        A living child may run it: its word that it does goes unread while the event loop is down.
        """
        now = time.monotonic()
        running = {Phase.STARTED}
        if any(map(_is_alive, self._children())):
            running.add(Phase.HANDED)
        return any(
            entry.phase in running or now - entry.since < UNSTARTED_SECONDS
            for entry in self._process.claims.entries()
            if entry.phase is not Phase.ENDED
        )

    def _children(self) -> list[int]:
        """The pids of a prefork pool."""
        pool = getattr(self._process.controller.pool, "_pool", None)
        return [child.pid for child in getattr(pool, "_pool", None) or () if child.pid]

    def _kill_children(self) -> None:
        """What is released next must not be running any more."""
        running = [e for e in self._process.claims.entries() if e.phase is not Phase.ENDED]
        logger.warning("%d jobs did not finish in time and are given back.", len(running))
        children = self._children()
        for pid in children:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + DEAD_SECONDS
        while any(map(_is_alive, children)) and time.monotonic() < until:
            time.sleep(0.01)

    def _close(self) -> None:
        """Give back what is left, in a thread of its own: Postgres may be away."""
        self._closing.wait()
        try:
            self._release()
        except LedgerError as exc:
            logger.warning("The lease is left to expire: %s", exc)
        finally:
            self._process.writer.stop()
            self._closed.set()

    def _release(self) -> None:
        if self._fault is None:
            if released := self._process.lease.close():
                logger.info("Gave back %d jobs.", len(released))
        elif self._process.lease.forfeit():
            logger.error("What this worker still held is lost with it, and runs alone from now on.")


def leave_unstarted(process: Process) -> None:
    """End a worker that was asked to before it fetched: it may be waiting for a store."""
    until = time.monotonic() + EXIT_SECONDS
    while time.monotonic() < until:
        if process.is_started:
            process.drain.begin(at_once=False)
            return
        time.sleep(0.05)
    os._exit(exit_code(process.controller.exitcode))


def _exit_within(seconds: float) -> None:
    """Let the process end in `seconds` without any further step of Python's; it says where it
    hung. A task that holds the GIL stops every thread but this timer. Safe in a handler: stderr is
    named by its number, because its buffer may be what was interrupted."""
    with suppress(OSError, RuntimeError, ValueError):
        faulthandler.dump_traceback_later(max(seconds, 0.1), exit=True, file=2)


def _is_alive(pid: int) -> bool:
    """Whether a child of ours still runs; it is not reaped, which is billiard's to do."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
