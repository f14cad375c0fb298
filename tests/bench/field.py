"""The servers on which every contender runs, emptied between the runs, and its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis

from tests.bench.contenders import Contender
from tests.bench.runs import Failed
from tests.bench.tally import VARIABLE
from worker.ledger.migrate import migrate
from worker.stack.postgres import PostgresServer
from worker.stack.process import Process
from worker.stack.redis import RedisServer

#: What every contender runs on: durable, and with room for its data. Nothing else is tuned; commit
#: timestamps are how a result's latency is known without asking for it all the time.
POSTGRES = {
    "max_connections": "200", "shared_buffers": "512MB", "max_wal_size": "4GB",
    "track_commit_timestamp": "on",
}  # fmt: skip
DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
#: Seconds until a worker must have ended after SIGTERM; it has nothing to do any more by then.
END = 2.0
#: The tables that a run may fill.
TABLES = (
    *(f"ledger.{name}" for name in ("jobs", "attempts", "workers", "leaders")),
    "celery_taskmeta",
    "procrastinate_jobs",
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run finds its stores.

    Attributes:
        postgres, redis: their addresses.
        far_postgres, far_redis: the addresses that workers get.
        setting: what is otherwise than usual; empty when nothing is.
        between: the processes between the workers and the stores.
        keeps: whether what is there stays for the next run.
    """

    postgres: str
    redis: str
    far_postgres: str
    far_redis: str
    setting: str = ""
    between: tuple[int, ...] = ()
    keeps: bool = False

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Ask Postgres, directly."""
        connection = psycopg2.connect(self.postgres)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def migrate(self) -> None:
        """Make this service's tables."""
        migrate(_for_sqlalchemy(self.postgres))

    def empty(self) -> None:
        """Nothing of an earlier run is left in the stores, unless it is to stay."""
        if not self.keeps:
            with redis.Redis.from_url(self.redis) as client:
                client.flushdb()
            for table in TABLES:
                self.execute(
                    f"DO $$ BEGIN IF to_regclass('{table}') IS NOT NULL THEN"
                    f" TRUNCATE {table} CASCADE; END IF; END $$"
                )
        self.execute("CHECKPOINT")


@dataclass(frozen=True, slots=True)
class Team:
    """A contender's running processes."""

    workers: list[Process]
    beside: list[Process]

    @property
    def pids(self) -> list[int | None]:
        """Of the workers."""
        return [worker.pid for worker in self.workers]

    @property
    def all_pids(self) -> list[int | None]:
        """Of all."""
        return [one.pid for one in (*self.workers, *self.beside)]

    @property
    def alive(self) -> bool:
        """Whether all of them run."""
        return all(one.alive for one in (*self.workers, *self.beside))


class Field:
    """Two running servers.

    Args:
        folder: for the workers' logs and counters.
    """

    def __init__(self, folder: Path, postgres: PostgresServer, server: RedisServer) -> None:
        self.folder, self.postgres, self.redis = folder, postgres, server
        self.home = Place(postgres.url, server.url, postgres.url, server.url)
        self._runs = 0

    @property
    def pids(self) -> list[int | None]:
        """Of the servers."""
        return [self.postgres.pid, self.redis.pid]

    def durability(self) -> dict[str, str]:
        """The settings in force.

        Raises:
            Failed: Postgres may lose what it has committed.
        """
        found = {name: str(self.home.execute(f"SHOW {name}")[0][0]) for name in DURABLE}
        if found != DURABLE:
            raise Failed(f"Postgres is not durable: {found}; expected {DURABLE}.")
        with redis.Redis.from_url(self.home.redis) as client:
            kept: Any = client.config_get("append*")
        return found | {f"redis {name}": kept[name] for name in ("appendonly", "appendfsync")}

    def environment(self, contender: Contender, tally: Path, place: Place) -> dict[str, str]:
        """The variables of a contender's workers."""
        urls = {"redis": place.far_redis, "sqlalchemy": _for_sqlalchemy(place.far_postgres)}
        own = {name: value.format(**urls) for name, value in contender.environment.items()}
        return {
            **own,
            "DATABASE_URL": place.far_postgres,
            "REDIS_URL": place.far_redis,
            VARIABLE: str(tally),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONWARNINGS": "ignore",
        }

    def near(self, contender: Contender, tally: Path, place: Place) -> dict[str, str]:
        """The variables of a contender's producers, which stand beside the stores."""
        own = {**os.environ, **self.environment(contender, tally, place)}
        return own | {"DATABASE_URL": place.postgres, "REDIS_URL": place.redis}

    def tally(self) -> Path:
        """A new folder for a run's counters and logs."""
        self._runs += 1
        path = self.folder / f"run-{self._runs}"
        path.mkdir()
        return path

    def run(
        self, contender: Contender, place: Place, tally: Path, *commands: Sequence[object]
    ) -> list[Any]:
        """Run producers, `python -m` each, beside each other; the JSON that each prints.

        Raises:
            Failed: one did not end well.
        """
        environment = self.near(contender, tally, place)
        running = []
        try:
            for command in commands:
                argv = [sys.executable, "-m", *map(str, command)]
                running.append(_producer(argv, environment))
            answers = [(process.communicate(), process.returncode) for process in running]
        finally:
            for process in running:
                process.kill()
                process.wait()
        for (_, error), code in answers:
            if code:
                raise Failed(f"{contender.name} could not enqueue: {error[-2000:]}")
        return [json.loads(output.splitlines()[-1]) for (output, _), _ in answers]

    @contextmanager
    def team(self, contender: Contender, tally: Path, place: Place) -> Iterator[Team]:
        """The contender's processes, started; ended afterwards, with all that they started."""
        environment = self.environment(contender, tally, place)
        team = Team([], [])
        try:
            if contender.beside:
                team.beside.append(_started(contender.beside, tally / "beside.log", environment))
            for number in range(1, contender.workers + 1):
                command = [
                    word.replace("{n}", str(number)).replace("{redis}", place.far_redis)
                    for word in contender.worker
                ]
                log = tally / f"worker-{number}.log"
                team.workers.append(_started(command, log, environment))
            yield team
        except BaseException:
            _end(team, 0.0)
            raise
        _end(team, END)


def _producer(argv: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, env=environment, stdout=pipe, stderr=pipe, text=True)


def _started(command: Sequence[str], log: Path, environment: dict[str, str]) -> Process:
    process = Process(command, log=log, environment=environment, death_signal=signal.SIGKILL)
    process.start()
    return process


def _end(team: Team, patience: float) -> None:
    """End everything by SIGTERM, and by SIGKILL what has not ended after so many seconds."""
    processes = [*team.workers, *team.beside]
    groups = [process.pid for process in processes if process.pid]
    if patience:
        for process in processes:
            process.send(signal.SIGTERM)
    until = time.monotonic() + patience
    for process in processes:
        if not process.wait(max(0.0, until - time.monotonic())):
            process.kill()
    for group in groups:
        with suppress(ProcessLookupError):  # children that have outlived their parent
            os.killpg(group, signal.SIGKILL)


def _for_sqlalchemy(url: str) -> str:
    # SQLAlchemy 2.1 reads the bare scheme as psycopg 3.
    return url.replace("postgresql://", "postgresql+psycopg2://")
