"""The two services whose recovery is measured, in the same layout: ours, and stock Celery."""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import redis
from celery import Celery

from tests import servers
from tests.chaos.recovery_app import SWEEP
from tests.processes import LoggedProcess, Processes
from worker.client import Client
from worker.jobs.message import new_job
from worker.ledger.migrate import migrate
from worker.settings import Settings
from worker.stack.process import launched

ROOT = Path(__file__).parents[2]
WORKERS = 3
TASK = "recovery.hold"
#: Jobs that one worker runs at once.
SLOTS = 16
#: Seconds that a kill's traces may stay; an idle isolated process ends after 20.
SETTLE = 60.0


class Lane(ABC):
    """One service: three workers that can be killed and replaced.

    Args:
        processes: starts what it runs.
        redis_url: its Redis.

    Attributes:
        cycle: seconds of the service's longest period; kills are spread over it.
        workers: by name, in the order of their names.
    """

    name: str
    cycle: float

    def __init__(self, processes: Processes, redis_url: str) -> None:
        self.processes, self.redis_url = processes, redis_url
        self.workers: dict[str, LoggedProcess] = {}

    def start(self) -> None:
        """Start everything; ready for jobs when it returns."""
        for number in range(1, WORKERS + 1):
            self.start_worker(f"w{number}@recovery")
        for worker in self.workers.values():
            worker.wait_for_line(" ready.", 120)

    def start_worker(self, name: str) -> None:
        """Start a worker, also in the place of a killed one; it need not be ready yet."""
        self.workers[name] = self.run(*self.command(name))

    def run(self, *module: str) -> LoggedProcess:
        """Start `python -m`, tied to this process: it dies with it, however that dies."""
        argv = [sys.executable, "-m", *module]
        return self.processes(launched(argv, identity="self", death_signal=signal.SIGKILL))

    @abstractmethod
    def command(self, name: str) -> list[str]:
        """The worker's command, after `python -m`."""

    @abstractmethod
    def enqueue(self, count: int, folder: Path) -> None:
        """Enqueue so many jobs that run until `folder` says that they may end."""

    @abstractmethod
    def is_idle(self) -> bool:
        """Whether nothing of earlier kills is left."""

    def await_idle(self, seconds: float) -> bool:
        """Wait until nothing of earlier kills is left, at most so many seconds; whether it is."""
        return until(self.is_idle, seconds)

    def lease_end(self, name: str) -> float | None:
        """When the lease of the worker just killed expires, monotonic; without leases `None`."""
        return None

    def steps(self, job: str) -> tuple[float, float] | None:
        """When `job` was rescued and when it was claimed again, monotonic."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""


class Ledger(Lane):
    """Ours: two keepers and three workers, with the default settings."""

    name = "celery-ledger"
    cycle = 0.0  # every period is shorter than the wait before a kill

    def __init__(self, processes: Processes, redis_url: str, settings: Settings) -> None:
        super().__init__(processes, redis_url)
        self.lease = settings.lease_seconds
        self._client = Client(settings)
        url = settings.database_url.get_secret_value().replace("+psycopg2", "")
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._standing = 0

    def start(self) -> None:
        keepers = [self.run("worker", "keeper") for _ in range(2)]
        super().start()
        if not until(lambda: any("Leading as" in keeper.output for keeper in keepers), 60):
            raise RuntimeError("no keeper leads")
        # The keeper watches for a lease before it rescues: that is no part of a recovery.
        time.sleep(self.lease + 2)
        self._standing = self._isolated()

    def command(self, name: str) -> list[str]:
        return ["worker", "run", "-n", name, "-c", str(SLOTS)]

    def enqueue(self, count: int, folder: Path) -> None:
        self._client.enqueue_many([new_job(TASK, [str(folder)]) for _ in range(count)])

    def is_idle(self) -> bool:
        # A process that waits for suspects since the last kill would make the next one look better.
        (open_jobs,) = self._row(
            "SELECT count(*) FROM ledger.jobs WHERE state IN ('queued', 'running')"
        )
        (ordinary,) = self._row("SELECT count(*) FROM ledger.workers WHERE NOT isolated")
        return open_jobs == 0 and ordinary == WORKERS and self._isolated() == self._standing

    def await_idle(self, seconds: float) -> bool:
        settled = super().await_idle(seconds)
        if not settled:
            self._standing = self._isolated()  # they have come to stay
        return settled

    def lease_end(self, name: str) -> float | None:
        sql = "SELECT expires_at FROM ledger.workers WHERE name = %s AND NOT isolated"
        found = self._monotonic(sql, name)
        return found and float(found[0])

    def steps(self, job: str) -> tuple[float, float] | None:
        sql = (
            "SELECT a.ended_at, j.started_at FROM ledger.attempts a JOIN ledger.jobs j"
            " ON j.id = a.job_id WHERE j.id = %s AND a.number = 1 AND j.attempt = 2"
        )
        found = self._monotonic(sql, job)
        return found and (float(found[0]), float(found[1]))

    def close(self) -> None:
        self._client.close()
        self._connection.close()

    def _isolated(self) -> int:
        return int(self._row("SELECT count(*) FROM ledger.workers WHERE isolated")[0])

    def _monotonic(self, sql: str, *values: str) -> Any:
        """The times of one row, or `None`: Postgres's clock turned into ours."""
        row = self._row(sql, *values)
        (postgres_now,) = self._row("SELECT clock_timestamp()")
        now = time.monotonic()
        return row and tuple(now - (postgres_now - time_).total_seconds() for time_ in row)

    def _row(self, sql: str, *values: str) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchone()


class Stock(Lane):
    """Celery as it comes, with late acknowledgement and a `visibility_timeout` of 5 s."""

    name = "stock Celery"
    cycle = SWEEP

    def __init__(self, processes: Processes, redis_url: str) -> None:
        super().__init__(processes, redis_url)
        self._redis: Any = redis.Redis.from_url(redis_url)
        self._app = Celery("producer", broker=redis_url, set_as_current=False)

    def command(self, name: str) -> list[str]:
        pool = ["-P", "threads", "-c", str(SLOTS)]
        app = ["celery", "-A", "tests.chaos.recovery_app", "worker"]
        return [*app, *pool, "-n", name, "-l", "info"]

    def enqueue(self, count: int, folder: Path) -> None:
        for _ in range(count):
            self._app.send_task(TASK, [str(folder)], task_id=str(uuid.uuid4()))

    def is_idle(self) -> bool:
        ready = all(" ready." in worker.output for worker in self.workers.values())
        return ready and self._redis.hlen("unacked") == 0 and self._redis.llen("celery") == 0

    def close(self) -> None:
        self._app.close()
        self._redis.close()


def environment(database_url: str, redis_url: str, lease: float | None) -> dict[str, str]:
    """The environment of a lane, without this shell's settings: the defaults are the defaults."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WORKER_")}
    lease_setting = {"WORKER_LEASE_SECONDS": str(lease)} if lease else {}
    return {
        **kept, **lease_setting, "DATABASE_URL": database_url, "REDIS_URL": redis_url,
        "WORKER_TASKS": "tests.chaos.recovery_app", "PYTHONPATH": str(ROOT),
    }  # fmt: skip


@contextmanager
def running(kind: type[Lane], folder: Path, lease: float | None) -> Iterator[Lane]:
    """A lane on servers of its own, started; nothing of it is left afterwards."""
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        postgres = stack.enter_context(servers.postgres())
        server = stack.enter_context(servers.redis_server())
        variables = environment(postgres.url, server.url, lease)
        processes = Processes(folder, variables)
        stack.callback(processes.kill_all)
        made: Lane
        if kind is Ledger:
            migrate(postgres.url.replace("postgresql://", "postgresql+psycopg2://"))
            made = Ledger(processes, server.url, _settings(variables))
        else:
            made = Stock(processes, server.url)
        stack.callback(made.close)
        # The last in, so the first out: a second Ctrl-C must not leave half of it.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        made.start()
        yield made


def _settings(variables: dict[str, str]) -> Settings:
    """The settings that the lane's processes read from `variables`."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        return Settings.load()
    finally:
        os.environ.clear()
        os.environ.update(before)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition`, at most `seconds`; whether it came true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)  # files and stores have no event to wait on; no figure hangs on it
    return True
