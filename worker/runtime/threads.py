"""Threads: what runs the jobs of Celery's pool of threads, without a future for each.

Nobody waits for the futures that `ThreadPoolExecutor` makes: a job's end goes through its callback.
They cost a lock each, and two more are taken at every job.

What is relied on of Celery 5.7 is pinned by tests/runtime/test_threads.py.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.concurrency.thread import TaskPool

logger = logging.getLogger(__name__)


class NoThread(RuntimeError):
    """There is no thread for a job, and none can be started."""


class _Unawaited:
    """Stands where Celery's pool keeps a future."""

    result = None


class Threads:
    """Stands where `ThreadPoolExecutor` stands in Celery's pool: `submit` and `shutdown`.

    Args:
        most: threads at the most; one is started for each job until there are so many.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._work: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None]
        self._work = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()  # Celery counts them
        self._is_shut = False
        self._has_told = False

    def submit(self, function: Callable[..., Any], /, *args: Any) -> _Unawaited:
        """Let a thread call `function`, soon; only the event loop's thread may ask for it.

        Raises:
            NoThread: after `shutdown`, or no thread can be started and there is none.
        """
        if self._is_shut:
            raise NoThread("the pool is shut down")
        if len(self._threads) < self._most:
            self._start_one()
        self._work.put((function, args))
        return _Unawaited()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads once they are done; with `cancel_futures` what has not begun is dropped.

        Args:
            wait: return only when they have ended.
            cancel_futures: as `ThreadPoolExecutor` calls it.
        """
        self._is_shut = True
        with suppress(queue.Empty):
            while cancel_futures:
                self._work.get_nowait()
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads if wait else ():
            thread.join()

    def _start_one(self) -> None:
        name = f"pool-{len(self._threads)}"
        thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError as exc:  # there may be no more of them in this container
            if not self._has_told:
                logger.error("No thread can be started (%s); jobs wait for one another's.", exc)
            self._has_told = True
            if not self._threads:
                raise NoThread(str(exc)) from exc
        else:
            self._threads.add(thread)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            function, args = work
            try:
                function(*args)
            except BaseException:
                logger.exception("A job's thread failed outside of the job")
            del work, function, args  # or it keeps them while it waits for the next


def without_futures(pool: Any) -> None:
    """Let `pool`, if it is Celery's pool of threads and has run nothing yet, run in `Threads`."""
    if isinstance(pool, TaskPool) and not pool.executor._threads:  # type: ignore[attr-defined] # it has
        pool.executor = Threads(pool.limit)  # type: ignore[attr-defined] # ditto
