"""A lane: one app of a kind that many people have, stock or durable, on servers of its own."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import redis

from tests import servers
from tests.processes import LoggedProcess, Processes
from worker.ledger.migrate import migrate
from worker.settings import Settings

#: The folder from which the apps are imported.
HERE = Path(__file__).parent
#: Seconds that anything is waited for.
PATIENCE = 30.0


class Lane:
    """One variant of an app.

    Attributes:
        name: `stock` or `durable`.
        url: where its web server listens, once it does.
        database_url: the app's own database, which is also the ledger's.
        redis_url: broker, and the stock lane's results.
    """

    def __init__(self, name: str, start: Processes, database_url: str, redis_url: str) -> None:
        self.name, self.database_url, self.redis_url = name, database_url, redis_url
        self._start = start
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.workers: list[LoggedProcess] = []

    def python(self, *argv: str) -> LoggedProcess:
        """Start a Python program of the app."""
        return self._start([sys.executable, *argv])

    def worker(self, app: str, *options: str) -> LoggedProcess:
        """Start a worker of the app, as its developer would."""
        started = self.python("-m", "celery", "-A", app, "worker", "-l", "info", *options)
        self.workers.append(started)
        return started

    def web(self, app: str) -> LoggedProcess:
        """Start the app's web server."""
        return self.python("-m", "uvicorn", app, "--port", str(self._port), "--log-level", "info")

    def flask(self, app: str) -> LoggedProcess:
        """Start a Flask app's web server."""
        return self.python("-m", "flask", "--app", app, "run", "--port", str(self._port))

    def get(self, path: str) -> Any:
        """What the app answers to GET, as JSON."""
        answer = httpx.get(self.url + path, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, **json: Any) -> Any:
        """What the app answers to POST, as JSON."""
        answer = httpx.post(self.url + path, json=json, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def flush(self) -> None:
        """Empty the lane's Redis."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()

    def rows(self, sql: str) -> list[Any]:
        """Rows of the app's database."""
        connection = psycopg2.connect(self.database_url)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        finally:
            connection.close()


@contextmanager
def lanes(folder: Path, imports: Path = HERE) -> Iterator[tuple[Lane, Lane]]:
    """A stock lane and a durable one, each with a database and a Redis, before anything runs."""
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres(servers.memory()))
        databases = servers.Databases(postgres)
        made = []
        for name in ("stock", "durable"):
            store = stack.enter_context(servers.redis_server())
            url = databases.new()
            environment = {
                **{key: value for key, value in os.environ.items() if key != "REDIS_URL"},
                "PYTHONPATH": os.pathsep.join([str(imports), str(HERE.parents[1])]),
                "SHOP_REDIS": store.url,
                "DATABASE_URL": url,
                "WORKER_RING_GRACE_SECONDS": "1",
                "PYTHONWARNINGS": "ignore",
            }
            if name == "durable":
                environment["SHOP_DURABLE"] = "1"
                settings = Settings.load(database_url=url, redis_url=store.url)
                migrate(settings.database_url.get_secret_value())
            (folder / name).mkdir()
            start = Processes(folder / name, environment)
            stack.callback(start.kill_all)
            lane = Lane(name, start, url, store.url)
            if name == "durable":
                start([sys.executable, "-m", "worker", "keeper"], {"REDIS_URL": store.url})
            made.append(lane)
        yield made[0], made[1]


def until(asked: Callable[[], Any], what: str) -> Any:
    """What `asked()` answers, once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := asked()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.05)  # a web page has no event to wait on
    return answer


def _free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])
