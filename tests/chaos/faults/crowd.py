"""A crowd that takes every connection Postgres has, and takes again whatever comes free."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import psycopg2

#: Seconds between two looks whether another has got in.
LOOK = 0.005
#: Threads that take, so that the service, which has many, does not win every race for what is free.
TAKERS = 4
#: How the crowd's own connections are called; whoever is called so is left alone, and
#: whoever has no name yet: it may be one of them.
NAME = "chaos crowd"
KEPT = [NAME, "chaos", ""]

_OTHERS = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> ALL(%s)
"""


class Crowd:
    """Takes connections in a thread of its own, from `start` to `stop`.

    The service connects as a superuser here: the crowd does too, and takes their reserve as well.

    Args:
        url: of Postgres, by no wire.

    Attributes:
        terminated: how many connections of others it has broken.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._taken: list[Any] = []
        self._stop = threading.Event()
        runs = [self._break_others, *[self._take] * TAKERS]
        self._threads = [threading.Thread(target=run, name="crowd", daemon=True) for run in runs]
        self.terminated = 0

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Give every connection back."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for connection in self._taken:
            with suppress(psycopg2.Error):
                connection.close()

    def _take(self) -> None:
        while not self._stop.is_set():
            with suppress(psycopg2.OperationalError):  # none is left just now
                self._taken.append(self._connect())
                continue
            self._stop.wait(LOOK)

    def _break_others(self) -> None:
        while not self._stop.wait(LOOK):
            if not self._taken:
                continue
            try:
                with self._taken[0].cursor() as cursor:
                    cursor.execute(_OTHERS, (KEPT,))
                    self.terminated += cursor.fetchone()[0]
            except psycopg2.Error:
                self._taken.pop(0)  # broken by its own kind, before its name was known

    def _connect(self) -> Any:
        connection = psycopg2.connect(self._url, connect_timeout=5, application_name=NAME)
        connection.autocommit = True
        return connection
