"""Faults of Postgres."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg2

from tests.chaos.faults.registry import Course, begin, end, fault
from tests.chaos.rig import Rig


def _outage(
    rig: Rig, name: str, seconds: float, harm: Callable[[], None], mend: Callable[[], None]
) -> Course:
    begin(rig, name, "postgres")
    rig.journal.note("outage", store="postgres")
    harm()
    if seconds:
        yield seconds
    mend()
    rig.journal.note("back", store="postgres")
    end(rig, name, "postgres")


@fault("postgres")
def restart_postgres(rig: Rig, dice: random.Random) -> Course:
    """Restart Postgres as an operator would."""
    yield from _outage(rig, "restart-postgres", 0.05, rig.postgres.stop, rig.postgres.start)


@fault("postgres")
def crash_postgres(rig: Rig, dice: random.Random) -> Course:
    """Restart Postgres as a crash would: it recovers from its log."""

    def restart() -> None:
        rig.postgres.restart("immediate")

    yield from _outage(rig, "crash-postgres", 0.05, restart, lambda: None)


@fault("postgres", weight=1)
def postgres_away(rig: Rig, dice: random.Random) -> Course:
    """Postgres is away for half a minute."""
    yield from _outage(rig, "postgres-away", rig.terms.away, rig.postgres.stop, rig.postgres.start)


@fault("postgres")
def terminate_backends(rig: Rig, dice: random.Random) -> Course:
    """pg_terminate_backend of every connection."""

    def terminate() -> None:
        with suppress(psycopg2.Error):
            rig.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )

    yield from _outage(rig, "terminate-backends", 0.5, terminate, lambda: None)


@fault("postgres", weight=1)
def full_postgres(rig: Rig, dice: random.Random) -> Course:
    """Take every connection that Postgres allows, and break the others'."""
    taken: list[Any] = []

    def take() -> None:
        with suppress(psycopg2.Error):
            rig.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        for _ in range(400):
            try:
                taken.append(psycopg2.connect(rig.postgres.url, connect_timeout=2))
            except psycopg2.OperationalError:
                break

    def give_back() -> None:
        for connection in taken:
            with suppress(psycopg2.Error):
                connection.close()

    yield from _outage(rig, "full-postgres", dice.uniform(3, 8), take, give_back)
