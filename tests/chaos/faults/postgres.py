"""Faults of Postgres."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import psycopg2

from tests.chaos.faults.crowd import Crowd
from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.rig import Rig

#: The part of all connections that the crowd must have.
NEARLY = 0.95
#: Seconds in which the crowd has crowded out everybody.
CROWDED = 30.0

_TERMINATE = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def _outage(
    rig: Rig, name: str, seconds: float, harm: Callable[[], None], mend: Callable[[], None]
) -> Course:
    before = rig.postgres.pid
    begin(rig, name, "postgres")
    rig.journal.note("outage", store="postgres")
    harm()
    yield seconds
    refused = _refuses(rig)
    mend()
    after = rig.postgres.pid
    if after and after != before:
        met(rig, name, "postgres", before=before, after=after, refused=refused)
    rig.journal.note("back", store="postgres")
    end(rig, name, "postgres")


def _refuses(rig: Rig) -> str | None:
    """How Postgres refuses a connection such as a member's, if it does."""
    try:
        psycopg2.connect(rig.postgres.url, connect_timeout=2).close()
    except psycopg2.OperationalError as exc:
        return str(exc).strip().rpartition("\n")[2][-200:]
    return None


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
    begin(rig, "terminate-backends", "postgres")
    rig.journal.note("outage", store="postgres")
    ((terminated,),) = rig.query(_TERMINATE)
    if terminated:
        met(rig, "terminate-backends", "postgres", terminated=terminated)
    yield 0.5
    rig.journal.note("back", store="postgres")
    end(rig, "terminate-backends", "postgres")


@fault("postgres", weight=1)
def full_postgres(rig: Rig, dice: random.Random) -> Course:
    """Take every connection that Postgres allows, break the others', and keep them out."""
    lasts, until = dice.uniform(3, 8), time.monotonic() + CROWDED
    taken, refused = 0, None
    begin(rig, "full-postgres", "postgres")
    rig.journal.note("outage", store="postgres")
    crowd = Crowd(rig.postgres.url)
    crowd.start()
    try:
        while not refused and time.monotonic() < until:
            yield 0.1
            taken = _all_are_ours(rig)
            refused = _refuses(rig) if taken else None
        if refused:
            met(rig, "full-postgres", "postgres", taken=taken, refused=refused)
            yield lasts
    finally:
        crowd.stop()
    rig.journal.note("back", store="postgres")
    end(rig, "full-postgres", "postgres", broken=crowd.terminated)


def _all_are_ours(rig: Rig) -> int:
    """How many connections the crowd and this reader have, when these are nearly all.

    Whoever else is in is broken every few milliseconds; a busy service always has some that try.
    """
    ((most, ours),) = rig.query(
        "SELECT current_setting('max_connections')::int, count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND application_name LIKE 'chaos%'"
    )
    return int(ours) if ours >= NEARLY * most else 0
