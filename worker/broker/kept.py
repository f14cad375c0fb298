"""A connection to Redis that is kept between two doorbells.

To take one from the pool and to give it back takes redis-py about as long as Redis takes to push.
"""

from __future__ import annotations

import os
import threading
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

    Args:
        client: whose pool; it opens nothing yet.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._place = _Place()

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> bool:
        """Run `script`; False: do it in the usual way, though it may have been done.

        Raises:
            RedisError, OSError: as redis-py, but for what a second try may mend.
        """
        place = self._place
        if place.pid != os.getpid():  # the connection is the parent's, and so may the lock be
            place = self._place = _Place()
        if not place.lock.acquire(blocking=False):
            return False  # nobody waits for another thread's doorbell
        try:
            return self._call(place, "EVALSHA", script.sha, len(keys), *keys, *args)
        finally:
            place.lock.release()

    def _call(self, place: _Place, *words: str | int) -> bool:
        connection = place.connection or self._pool.get_connection()
        place.connection = None
        try:
            connection.send_command(*words)  # type: ignore[no-untyped-call] # redis-py's
            connection.read_response()
        except BaseException as exc:
            # An answer may still come, and would be taken for the next one's.
            connection.disconnect()  # type: ignore[no-untyped-call] # ditto
            self._pool.release(connection)
            if isinstance(exc, (redis.exceptions.NoScriptError, redis.exceptions.ConnectionError)):
                return False
            raise
        place.connection = connection
        return True

    def close(self) -> None:
        """Give the connection back to the pool."""
        place, self._place = self._place, _Place()
        if place.connection is not None and place.pid == os.getpid():
            self._pool.release(place.connection)
