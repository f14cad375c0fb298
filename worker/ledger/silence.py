"""Silence: no wait for Postgres's answer is without a bound.

The kernel notices a peer that is gone. It does not notice one that takes every byte and answers
nothing: a stopped server, a hung disk, a proxy before a dead one. libpq waits for that one for
ever, whatever timeouts are set on its socket. So a thread watches, and shuts the socket of whoever
has waited too long; libpq then reports a lost connection.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from psycopg2 import Error, OperationalError
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as PlainConnection
from psycopg2.extensions import cursor as PlainCursor

#: Looks in one period of patience. They are counted, not timed: a process that was stopped, or
#: whose GIL was held, must not take its own absence for Postgres's.
LOOKS: Final = 20
#: Seconds without a call after which the thread ends.
LINGER: Final = 10.0


_times: ContextVar[int] = ContextVar("patience", default=1)


@contextmanager
def patient(times: int) -> Iterator[None]:
    """Let this thread wait `times` as long as usual for each answer in the block."""
    token = _times.set(times)
    try:
        yield
    finally:
        _times.reset(token)


def patience() -> int:
    """How many times as long as usual this thread waits for an answer."""
    return _times.get()


class NoAnswer(OperationalError):
    """Postgres took a statement and said nothing for too long; its connection is gone."""


@dataclass(slots=True, eq=False)
class _Call:
    """One statement that is being waited for, and the looks that found it so."""

    patience: Patience
    connection: _Connection
    times: int
    looks: int = 0

    @property
    def is_over(self) -> bool:
        return self.looks > LOOKS * self.times

    def __enter__(self) -> None:
        self.patience.watch(self)

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        self.patience.forget(self)
        if isinstance(exc, Exception) and self.is_over:
            seconds = self.patience.seconds * self.times
            raise NoAnswer(f"it has not answered for {seconds:g} s") from exc


class Patience:
    """How long the connections of one ledger wait for an answer, and the thread that sees to it.

    Args:
        seconds: the longest wait for the answer to one statement, or to a COMMIT.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._begin()

    def connection(self, dsn: str) -> PlainConnection:
        """A watched connection: psycopg2's `connection_factory`."""
        return _Connection(self, dsn)

    def watching(self, connection: _Connection) -> _Call:
        """Bound what `connection` does in the block.

        Raises:
            NoAnswer: it took too long.
        """
        return _Call(self, connection, patience())

    def watch(self, call: _Call) -> None:
        """Look at `call` from now on."""
        if self._pid != os.getpid():
            self._begin()  # a fork took neither the thread nor whoever held the lock
        with self._lock:
            self._calls.add(call)
            self._see_to_it()

    def forget(self, call: _Call) -> None:
        """Look at it no more."""
        with self._lock:
            self._calls.discard(call)

    def _begin(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come here while its thread is here
        self._calls: set[_Call] = set()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def _see_to_it(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="ledger-patience", daemon=True)
            with suppress(RuntimeError):  # no thread starts while the interpreter ends
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        idle = 0.0
        pause = self.seconds / LOOKS
        while True:
            time.sleep(pause)
            with self._lock:
                idle = 0.0 if self._calls else idle + pause
                if idle > LINGER:
                    self._thread = None
                    return
                for call in self._calls:
                    call.looks += 1
                    if call.is_over:
                        _shut(call.connection)


def _shut(connection: _Connection) -> None:
    # Its own thread is inside libpq, and finds the socket at its end. The descriptor stays libpq's,
    # which may have closed it meanwhile: the number may be somebody else's file by now.
    with suppress(OSError, Error), _socket_of(connection) as end:
        if _names_of(end) == connection.names:
            end.shutdown(socket.SHUT_RDWR)


def _socket_of(connection: PlainConnection) -> socket.socket:
    """The connection's socket, by a descriptor of its own."""
    descriptor = os.dup(connection.fileno())
    try:
        return socket.socket(fileno=descriptor)
    except OSError:  # it is no socket
        os.close(descriptor)
        raise


def _names_of(end: socket.socket) -> tuple[Any, Any]:
    return end.getsockname(), end.getpeername()


class _Cursor(PlainCursor):
    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        self._watching = connection.watching

    def execute(self, *args: Any, **kwargs: Any) -> None:
        with self._watching():
            super().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        with self._watching():
            super().executemany(*args, **kwargs)


class _Connection(PlainConnection):
    def __init__(self, patience: Patience, dsn: str) -> None:
        super().__init__(dsn)
        self.cursor_factory = _Cursor
        self._patience = patience
        self.names: tuple[Any, Any] | None = None
        with suppress(OSError, Error), _socket_of(self) as end:
            self.names = _names_of(end)

    def watching(self) -> AbstractContextManager[None]:
        return self._patience.watching(self)

    def commit(self) -> None:
        with self.watching():
            super().commit()

    def rollback(self) -> None:
        # SQLAlchemy does so after each use. Where each statement commits, nothing is to be rolled
        # back; psycopg2 would let go of the GIL for it, and a busy process is slow to get it.
        if self.autocommit and self.get_transaction_status() == TRANSACTION_STATUS_IDLE:
            return
        with self.watching():
            super().rollback()
