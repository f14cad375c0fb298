"""The whole service on one machine: Postgres, Redis, the workers and the keeper, in one folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from worker.errors import StackError
from worker.stack import binaries, lock, ports
from worker.stack.postgres import PostgresServer
from worker.stack.redis import RedisServer
from worker.stack.server import prepare_folder, write_private
from worker.stack.services import Service, Supervisor, stop_all

#: The file in the data directory that keeps the ports from start to start.
_PORTS: Final = "ports.json"
#: Preferred at the first start, not promised: whoever needs an address asks `worker env`.
POSTGRES_PORT: Final = 54329
REDIS_PORT: Final = 63799

#: Seconds that the migration of a local database may take.
_MIGRATE_SECONDS: Final = 120.0
#: Seconds beyond a worker's own drain in which it gives its jobs back and ends.
_AFTER_DRAIN_SECONDS: Final = 10.0
_KEEPER_SECONDS: Final = 10.0


class Stack:
    """Every component of the service, on 127.0.0.1. A context manager: leaving it stops all.

    In `data`: `postgres`, `redis`, `logs`, and while it runs `stack.json` with the addresses.

    Args:
        data: the folder; made when missing, for its owner only.
        workers: how many workers.
        keepers: how many keepers.
        app: a Celery app whose workers they are, named as for `celery -A`; `None`: `worker run`'s.
        environment: variables for the services, added to this process's own.
        postgres_port: the port; it must be free. `None`: that of the last start on this data, at
            first `POSTGRES_PORT`; when it is taken, a free one is chosen.
        redis_port: ditto.
        drain_seconds: what the workers were told to give running jobs at a shutdown.
    """

    def __init__(
        self,
        data: Path,
        *,
        workers: int = 2,
        keepers: int = 1,
        app: str | None = None,
        environment: Mapping[str, str] | None = None,
        postgres_port: int | None = None,
        redis_port: int | None = None,
        drain_seconds: float = 30.0,
    ) -> None:
        self.data = data.absolute()
        self.logs = self.data / "logs"
        self._demanded = [port for port in (postgres_port, redis_port) if port is not None]
        preferred = ports.remembered(self.data / _PORTS)
        self.postgres = PostgresServer(
            self.data / "postgres",
            port=postgres_port or preferred.get("postgres", POSTGRES_PORT),
            options={"max_connections": "200"},
        )
        self.redis = RedisServer(
            self.data / "redis", port=redis_port or preferred.get("redis", REDIS_PORT)
        )
        self.workers: list[Service] = []
        self.keepers: list[Service] = []
        self._counts = (workers, keepers)
        self._app = app
        self._extra = dict(environment or {})
        self._drain_seconds = drain_seconds
        self._supervisor = Supervisor([])
        self._lock: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs in order to use this stack: DATABASE_URL and REDIS_URL.

        Raises:
            StackError: it was not started yet.
        """
        return {"DATABASE_URL": self.postgres.url, "REDIS_URL": self.redis.url}

    def start(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Start everything, in the order of need; `progress` gets one line per step.

        Call it in the main thread: see `Process`.

        Raises:
            StackError: something did not start; what did was stopped again.
        """
        self._take_folder()
        try:
            for port in self._demanded:
                ports.demand(port)
            # Before there are data: those of one Postgres are of no use to another, which the
            # missing package may bring.
            binaries.find_redis()
            progress("Starting Postgres")
            self.postgres.start()
            progress("Starting Redis")
            self.redis.start()
            progress("Migrating the database")
            self._migrate()
            self._check_app()
            now = {"postgres": self.postgres.port, "redis": self.redis.port}
            write_private(self.data / _PORTS, json.dumps(now))
            self._start_services(progress)
            write_private(self.data / "stack.json", json.dumps(self.environment))
        except BaseException:
            self.stop()
            raise

    def tick(self) -> list[str]:
        """Start again what ended by itself; what happened, one sentence each. Call it often."""
        return self._supervisor.tick()

    def stop(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Drain the workers, stop the keepers, Redis and Postgres; `progress` as in `start`."""
        self._supervisor = Supervisor([])
        if self._lock is None:
            return
        (self.data / "stack.json").unlink(missing_ok=True)
        progress("Draining the workers")
        stop_all(self.workers, self._drain_seconds + _AFTER_DRAIN_SECONDS)
        progress("Stopping the keeper")
        stop_all(self.keepers, _KEEPER_SECONDS)
        progress("Stopping Redis")
        self.redis.stop()
        progress("Stopping Postgres")
        self.postgres.stop()
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _take_folder(self) -> None:
        if self._lock is not None:
            raise StackError(f"The stack in {self.data} is started already.")
        prepare_folder(self.data)
        prepare_folder(self.logs)
        refusal = f"A stack is running in {self.data} already; stop it, or name another directory."
        # A second of patience: `running` holds the lock while it looks.
        self._lock = lock.take(_lock_file(self.data), refusal=refusal, seconds=1.0)

    def _migrate(self) -> None:
        service = self._service("migrate", ["worker", "migrate"], restart=False)
        service.start()
        if not service.wait(_MIGRATE_SECONDS):
            service.kill()
        if service.exit_code != 0:
            raise StackError(f"The migration failed; its log ends with:{service.log_tail()}")

    def _check_app(self) -> None:
        """See that the workers' app is there and durable, before they start and end of it."""
        if self._app is None:
            return
        service = self._service("app", ["worker.cli.served", self._app], restart=False)
        service.start()
        if not service.wait(_MIGRATE_SECONDS):
            service.kill()
        if service.exit_code != 0:
            raise StackError(service.log_tail().strip().rpartition("\n")[2].strip())

    def _worker(self, name: str) -> list[str]:
        if self._app is None:
            return ["worker", "run", "-n", name]
        return ["celery", "-A", self._app, "worker", "-n", name, "-l", "info"]

    def _start_services(self, progress: Callable[[str], None]) -> None:
        workers, keepers = self._counts
        self.workers = [
            self._service(f"worker{number}", self._worker(f"worker{number}@%h"))
            for number in range(1, workers + 1)
        ]
        self.keepers = [
            self._service(f"keeper{number}", ["worker", "keeper"])
            for number in range(1, keepers + 1)
        ]
        for service in [*self.workers, *self.keepers]:
            progress(f"Starting {service.name}")
            service.start()
        self._supervisor = Supervisor([self.postgres, self.redis, *self.workers, *self.keepers])

    def _service(self, name: str, arguments: list[str], *, restart: bool = True) -> Service:
        argv = [sys.executable, "-m", *arguments]
        environment = {**self._extra, **self.environment}
        return Service(name, argv, environment, self.logs / f"{name}.log", restart)


def running(data: Path) -> dict[str, str] | None:
    """DATABASE_URL and REDIS_URL of the stack that runs in this folder; `None` when none does."""
    try:
        addresses = json.loads((data / "stack.json").read_text())
    except (OSError, ValueError):
        return None
    # A stack that was killed has left the file, but not the lock.
    if not lock.is_held(_lock_file(data)):
        return None
    return {str(name): str(address) for name, address in addresses.items()}


def _lock_file(data: Path) -> Path:
    return data / "stack.lock"
