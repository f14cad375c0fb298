"""The stack of docker-compose.yml, brought up, broken and scaled as an operator would."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2

from tests.compose.engine import ROOT, attempt, docker, inspect, until
from worker.settings import Settings

#: Seconds that Postgres may be away before a question to it has failed.
PATIENCE = 30.0


class Stack:
    """One compose project of a test's own, on ports of its own.

    Args:
        folder: for its file of settings.
        image, tag: what its components run.
        variables: more of what .env may hold.
    """

    def __init__(self, folder: Path, image: str, tag: str, **variables: str) -> None:
        self.project = f"ledger-test-{os.getpid()}"
        self.files = ["docker-compose.yml", "docker/publish.yml"]
        self._file = folder / "env"
        self._variables = {
            **passwords(),
            "IMAGE": image,
            "TAG": tag,
            "POSTGRES_PORT": str(free_port()),
            "REDIS_PORT": str(free_port()),
            "FLOWER_PORT": str(free_port()),
            **variables,
        }

    def set(self, **variables: str) -> None:
        """Change what .env holds, for the next `up`."""
        self._variables |= variables

    def __getitem__(self, variable: str) -> str:
        return self._variables[variable]

    @property
    def settings(self) -> Settings:
        """How a producer outside of every container reaches the stores."""
        host = "127.0.0.1"
        return Settings.load(
            database_url=f"postgresql://ledger:{self['POSTGRES_PASSWORD']}"
            f"@{host}:{self['POSTGRES_PORT']}/ledger",
            redis_url=f"redis://:{self['REDIS_PASSWORD']}@{host}:{self['REDIS_PORT']}/0",
        )

    def compose(self, *words: str, timeout: float = 900.0) -> str:
        """What `docker compose WORDS…` prints."""
        return docker(*self._command(), *words, timeout=timeout)

    def up(self, *options: str) -> None:
        """`docker compose up -d`, with options such as `--scale worker=4`. Nothing is pulled."""
        self.compose("up", "--detach", "--no-build", *options)

    def down(self) -> None:
        """Everything goes: the containers, the networks, the volumes."""
        attempt(*self._command(), "--profile", "cpu", "down", "--volumes", "--timeout", "5",
                "--remove-orphans")  # fmt: skip

    def story(self) -> str:
        """What the containers are, and their last words; for a failed test."""
        seen = attempt(*self._command(), "ps", "--all")
        logs = attempt(*self._command(), "logs", "--no-color", "--tail", "60")
        return f"{seen.stdout}{seen.stderr}\n{logs.stdout}{logs.stderr}"

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def wait_until_healthy(self, seconds: float = 240.0, **counts: int) -> None:
        """Wait until each service has so many running containers, all of them healthy."""
        for service, count in counts.items():
            what = f"{count} healthy {service}"
            until(partial(self._is_healthy, service, count), seconds, what)

    def _is_healthy(self, service: str, count: int) -> bool:
        try:
            states = [inspect(container)["State"] for container in self.containers(service)]
        except AssertionError:  # one of them has gone meanwhile
            return False
        return len(states) == count and all(s["Health"]["Status"] == "healthy" for s in states)

    def container_of(self, service: str, hostname: str) -> str:
        """The container that has this host name: it is the beginning of its id."""
        (found,) = [c for c in self.containers(service) if c.startswith(hostname)]
        return found

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """A query's rows, from outside; one that changes something must bear being repeated."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._asked(sql, parameters)
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _asked(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        url = self.settings.database_url.get_secret_value()
        connection = psycopg2.connect(url.replace("+psycopg2", ""), connect_timeout=5)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql, parameters)
                return cursor.fetchall()
        finally:
            connection.close()

    def config(self, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The stack as Compose understands it, every profile's services among it."""
        if variables is not None:
            self._variables = dict(variables)
        told = self.compose("--profile", "cpu", "--profile", "tools", "config", "--format", "json")
        read = json.loads(told)
        assert isinstance(read, dict)
        return read

    def _command(self) -> list[str]:
        lines = [f"{name}={value}\n" for name, value in self._variables.items()]
        self._file.write_text("".join(lines))
        chosen = [word for file in self.files for word in ("--file", str(ROOT / file))]
        return ["compose", "--project-name", self.project, "--env-file", str(self._file), *chosen]


def passwords() -> dict[str, str]:
    """What .env.example sets, with passwords that nobody knows."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: secrets.token_hex(16) for name in pairs}


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
