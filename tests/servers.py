"""The test session's real servers: one Postgres, one Redis, a database per test from a template."""

from __future__ import annotations

import os
import shutil
import signal
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import redis

from tests import leftovers
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer

#: Enough for a test that starts several workers.
POSTGRES_OPTIONS = {
    "max_connections": "200",
    # Its shared memory in files of its folder: elsewhere they would stay when it is killed.
    "dynamic_shared_memory_type": "mmap",
}


#: Bytes of memory at hand from which on the databases of a session stand in it.
MEMORY = 16 << 30


@contextmanager
def folder(where: Path | None = None) -> Iterator[Path]:
    """A short-lived folder that Postgres can use as nobody when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="celery-ledger-", dir=where))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def postgres(where: Path | None = None) -> Iterator[PostgresServer]:
    """A running Postgres of its own, with an empty database `ledger`."""
    with folder(where) as data:
        server = PostgresServer(data / "postgres", options=POSTGRES_OPTIONS)
        try:
            server.start()
            yield server
        finally:
            if server.pid is not None:
                # Its data go with it: no checkpoint of hundreds of databases.
                os.kill(server.pid, signal.SIGQUIT)
            server.stop()


@contextmanager
def no_redis(
    answer: bytes = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
) -> Iterator[str]:
    """The host and port of a server that closes after its `answer`, and is no Redis."""

    class Web(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def memory() -> Path | None:
    """A place in memory, where there is plenty: hundreds of databases are made and removed."""
    place = leftovers.in_memory()
    if place is None:
        return None
    try:
        known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(known["MemAvailable"].removesuffix("kB")) * 1024
        is_plenty = min(available, shutil.disk_usage(place).free) >= MEMORY
    except (OSError, KeyError):
        return None
    return place if is_plenty else None


@contextmanager
def redis_server() -> Iterator[RedisServer]:
    """A running, empty Redis of its own."""
    with folder() as data:
        server = RedisServer(data / "redis")
        try:
            server.start()
            yield server
        finally:
            server.kill()  # its data go with it, and one that cannot write them does not end


class Databases:
    """Fresh databases on one server, each a copy of its migrated database `ledger`."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._made = 0

    def new(self) -> str:
        """The address of a new database with the schema and nothing in it."""
        self._made += 1
        name = f"test_{self._made}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{self._server.database}"')
        return self._server.url_of(name)

    def _execute(self, statement: str) -> None:
        connection = psycopg2.connect(self._server.url_of("postgres"))
        connection.autocommit = True  # no database is made inside a transaction
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


class RedisDatabases:
    """Redis's sixteen numbered databases, taken in turn and emptied before use."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._taken = 0

    def new(self) -> str:
        """The address of an empty database; what sixteen tests ago stood there is gone."""
        url = self._server.url_of(self._taken % 16)
        self._taken += 1
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url
