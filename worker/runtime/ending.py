"""Every way in which Celery ends a worker leads through its drain."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from celery import Celery, signals
from celery.exceptions import WorkerShutdown, WorkerTerminate

from worker.errors import LedgerError
from worker.runtime.collector import collect_seldom
from worker.runtime.drain import leave_unstarted
from worker.runtime.install import durability_of
from worker.runtime.outcome import describe, exit_code
from worker.runtime.process import Process


def drain_at_the_end(app: Celery) -> None:
    """Drain this app's worker when a signal, a command, a task or a fault ends it."""
    known = durability_of(app)

    def own() -> Process | None:
        process = known.process
        return process if process is not None and process.pid == os.getpid() else None

    def begin(*, at_once: bool) -> None:
        process = own()
        if process is not None and process.is_started:
            process.drain.begin(at_once=at_once)
        elif process is not None and process.owns_process:
            # Not by `threading`: this may be a handler, and the lock of the interrupted thread.
            _thread.start_new_thread(leave_unstarted, (process,))

    def join() -> None:
        process = own()
        if process is not None and process.is_started:
            process.drain.join()

    def on_worker_init(sender: Any, **_: Any) -> None:
        if sender.app is app:
            _intercept(sender, begin)
            _note_the_owner(sender, own)

    def on_shutting_down(how: str = "Warm", **_: Any) -> None:
        begin(at_once=how.lower() != "warm")

    def on_shutdown(**_: Any) -> None:
        begin(at_once=False)
        join()

    def on_exit() -> None:
        # Celery's cold shutdown, and a crash, leave without a word: what this worker holds must not
        # wait for the lease's end. The drain's thread is a daemon, and would be cut off.
        process = own()
        if process is None or not process.is_started:
            return
        process.drain.begin(at_once=not process.drain.is_draining)
        while not process.drain.is_over:
            with suppress(BaseException):  # one more signal, of which Celery raises the third
                process.drain.join()

    _let_signals_interrupt(signals.worker_shutting_down)
    atexit.register(on_exit)
    signals.worker_init.connect(on_worker_init, weak=False)
    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
    signals.worker_shutdown.connect(on_shutdown, weak=False)


def _let_signals_interrupt(sent: Any) -> None:
    """Let a handler that Celery dispatches `sent` from be interrupted by another one.

    Two SIGTERMs within a tenth of a millisecond (a supervisor's and the group's): Celery's lock is
    not reentrant, the second handler waits for the first, which it interrupts, and nothing ends.
    """
    sent.lock = threading.RLock()


def give_up(error: LedgerError) -> NoReturn:
    """End a worker that cannot start by one sentence and the error's exit code: of anything but
    this, Celery would log the traceback, and go on or end with 1."""
    print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from None


def _intercept(controller: Any, begin: Callable[..., None]) -> None:
    """Begin to drain before Celery waits for its pool, which has no bound.

    Its signal of the shutdown comes too late where there was no signal of Unix (the remote
    command, a task that raises `WorkerShutdown`), and for SIGQUIT.
    """
    stop, terminate = controller.stop, controller.terminate
    soften = controller.wait_for_soft_shutdown

    def drained_stop(*args: Any, **options: Any) -> Any:
        begin(at_once=False)
        return stop(*args, **options)

    def drained_terminate(*args: Any, **options: Any) -> Any:
        begin(at_once=True)
        return terminate(*args, **options)

    def drained_soften() -> Any:
        begin(at_once=False)
        # The drain ends what runs. Celery's attempt raises in a pool that cannot kill a job: in
        # the solo pool right into the task, which then has failed.
        if (consumer := getattr(controller, "consumer", None)) is not None:
            consumer.cancel_active_requests = lambda: None
        answer = soften()
        begin(at_once=True)
        return answer

    controller.stop, controller.terminate = drained_stop, drained_terminate
    controller.wait_for_soft_shutdown = drained_soften


def _note_the_owner(controller: Any, own: Callable[[], Process | None]) -> None:
    """A worker that runs in a thread, as in a test of Celery's, is a guest in its process; else
    the process is its own, before a pool forks."""
    start = controller.start

    def noted_start() -> Any:
        process = own()
        if process is not None:
            process.owns_process = threading.current_thread() is threading.main_thread()
            if process.owns_process:
                collect_seldom()
        _notice_faults(controller, own)
        return start()

    controller.start = noted_start


def _notice_faults(controller: Any, own: Callable[[], Process | None]) -> None:
    """Tell a worker that ends by a fault from one that was asked to end.

    Whatever asks, a signal, the remote command, a task, reaches the event loop as `WorkerShutdown`
    or `WorkerTerminate`. All else that leaves it is a fault: Celery says "Unrecoverable error" and
    stops as if it had been asked to. Two are not: `sys.exit(0)`, by which the user's own code asks,
    and Python's own Ctrl-C, where Celery's handler is not installed.
    """
    run = controller.blueprint.start

    def noticed(*args: Any, **options: Any) -> Any:
        try:
            return run(*args, **options)
        except BaseException as exc:
            process = own()
            if process is not None and process.is_started and not _is_asked(exc):
                process.drain.blame(describe(exc))
            raise

    controller.blueprint.start = noticed


def _is_asked(exc: BaseException) -> bool:
    if isinstance(exc, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if isinstance(exc, (WorkerShutdown, WorkerTerminate)):
        return True
    return isinstance(exc, SystemExit) and exit_code(exc.code) == 0
