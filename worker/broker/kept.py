"""A connection to Redis that is kept between two doorbells.

To take one from the pool and to give it back takes redis-py about as long as Redis takes to push.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import redis
from redis.commands.core import Script
from redis.connection import Connection


class _Place:
    """Where one process keeps its connection, while no thread has it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.connection: Connection | None = None


class Kept:
    """Runs scripts over one connection of a client's pool, for one thread at a time.

    It is a shortcut for a connection that was in use a moment ago. What may be broken, or lead to
    a master that is one no more, is the usual way's: it looks first, and asks the Sentinels.

    Args:
        client: whose pool; it opens nothing yet.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._place = _Place()

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> bool:
        """Run `script`; False: do it in the usual way, though it may have been done.

        Raises:
            RedisError, OSError: as redis-py; Redis refuses, or does not answer in time.
        """
        place = self._place
        if place.pid != os.getpid():  # the connection is the parent's, and so may the lock be
            place = self._place = _Place()
        if not place.lock.acquire(blocking=False):
            return False  # nobody waits for another thread's doorbell
        try:
            connection = self._taken_from(place)
            if connection is None:
                return False
            return self._call(place, connection, "EVALSHA", script.sha, len(keys), *keys, *args)
        finally:
            place.lock.release()

    def _taken_from(self, place: _Place) -> Connection | None:
        """A connection to use now; `None`, if the one that was kept is not to be relied on."""
        connection, place.connection = place.connection, None
        if connection is None:
            return self._pool.get_connection()
        if self._is_good(connection):
            return connection
        self._pool.release(connection)
        return None

    def _is_good(self, connection: Connection) -> bool:
        # `send_command` would connect it again, or ping it and then connect it again, where it led
        # before.
        interval = connection.health_check_interval
        return (
            connection.is_connected
            and (not interval or time.monotonic() <= connection.next_health_check)
            and bool(self._pool.owns_connection(connection))
        )

    def _call(self, place: _Place, connection: Connection, *words: str | int) -> bool:
        try:
            connection.send_command(*words, check_health=False)  # type: ignore[no-untyped-call] # redis-py's
            connection.read_response()
        except redis.exceptions.ResponseError as exc:
            if _is_of_a_replica(exc):
                connection.disconnect()  # type: ignore[no-untyped-call] # ditto
            self._keep(place, connection)  # Redis has answered
            if isinstance(exc, redis.exceptions.NoScriptError):
                return False
            raise
        except BaseException as exc:
            # An answer may still come, and would be taken for the next one's.
            connection.disconnect()  # type: ignore[no-untyped-call] # ditto
            self._keep(place, connection)
            if isinstance(exc, redis.exceptions.ConnectionError):
                return False
            raise
        self._keep(place, connection)
        return True

    def _keep(self, place: _Place, connection: Connection) -> None:
        if connection.is_connected and self._place is place:
            place.connection = connection
        else:
            self._pool.release(connection)

    def close(self) -> None:
        """Give the connection back to the pool, unless a thread has it."""
        place, self._place = self._place, _Place()
        if place.pid == os.getpid() and place.lock.acquire(blocking=False):
            if place.connection is not None:
                self._pool.release(place.connection)
            place.lock.release()


def _is_of_a_replica(error: redis.exceptions.ResponseError) -> bool:
    """Whether it leads to what was a master before: another connection may lead elsewhere."""
    # Redis 6.2 has the word in the text of an error of the script.
    return isinstance(error, redis.exceptions.ReadOnlyError) or "READONLY" in str(error)
