"""The pipes to a prefork pool's children, across a lost broker connection.

When the broker connection breaks, Celery's event loop forgets what it was reading and writing. A
result that was half read, or a job that was half written, is then neither finished nor begun anew:
the child's stream is out of step for good, its slot never gets free, and under a lease that is
renewed nobody ever rescues the job. Stock Celery bears it because the broker redelivers. So what
was under way is kept here, and goes on with the next loop.

What is relied on of Celery 5.7 is pinned by tests/runtime/test_pipes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Pipes:
    """What is under way in the pipes of one worker's pool.

    Args:
        pool: Celery's pool; only a prefork one has pipes.
    """

    def __init__(self, pool: Any) -> None:
        inner = getattr(pool, "_pool", None)
        self._pool: Any = inner if hasattr(inner, "_result_handler") else None
        self._reads: dict[int, tuple[Any, Iterator[None]]] = {}
        if self._pool is not None:
            self._follow(self._pool._result_handler)

    def prepare(self, hub: Any) -> None:
        """Call before Celery registers the pool with `hub`, each time."""
        if self._pool is not None:
            _watch_anew(self._pool)
            hub.call_soon(self._go_on, hub)

    def _follow(self, handler: Any) -> None:
        """Note each result that `handler` begins to read, until it is read."""
        receive = handler._recv_message

        def following(add_reader: Any, fd: int, callback: Callable[..., Any]) -> Iterator[None]:
            reading = self._until_read(receive(add_reader, fd, callback), fd)
            self._reads[fd] = handler.fileno_to_outq[fd], reading
            return reading

        handler._recv_message = following

    def _until_read(self, reading: Iterator[None], fd: int) -> Iterator[None]:
        try:
            yield from reading
        finally:
            self._reads.pop(fd, None)

    def _go_on(self, hub: Any) -> None:
        """Let a new loop go on with what the last one left, where the child still lives."""
        pool = self._pool
        for fd, (child, reading) in list(self._reads.items()):
            # A descriptor may be another child's by now.
            if pool._fileno_to_outq.get(fd) is child:
                hub.add_reader(fd, reading)
            else:
                self._reads.pop(fd)
        for job in list(pool._cache.values()):
            known = getattr(job, "_writer", None)
            writer = known() if known else None  # a weak reference
            child = getattr(job, "_write_to", None)
            if writer in pool._active_writers and child is not None:
                fd = child.inqW_fd
                if pool._fileno_to_inq.get(fd) is child:
                    hub.add_writer(fd, writer)


def _watch_anew(pool: Any) -> None:
    """Let Celery watch children again that died just when the broker connection was lost.

    It has marked them as no longer watched, keeps them until it is sure that their jobs are lost,
    and fails on them, and with it the worker, when a loop begins.
    """
    for child in pool._pool:
        if getattr(child, "_sentinel_poll", 0) is None:
            del child._sentinel_poll
