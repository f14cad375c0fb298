"""Make due jobs ready, and find the jobs whose doorbell was lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, TextClause, text

from worker.jobs.job import Ring
from worker.ledger.database import Ledger
from worker.ledger.leader import Leadership

#: Jobs moved in one transaction.
BATCH = 500
#: Jobs looked at for those whose doorbell is late.
WINDOW = 10_000

# The guard of what is found by its id. With `= 'queued'` Postgres may take the partial index of
# that state instead, of which statistics from before a backlog say that it is empty, and read a
# million entries of it for each id.
_QUEUED = "jobs.state = (SELECT 'queued')"
_SCHEDULED = "jobs.state = (SELECT 'scheduled')"

_DUE = text(f"""
    WITH due AS MATERIALIZED (
        SELECT id FROM ledger.jobs
        WHERE state = 'scheduled' AND run_at <= statement_timestamp()
        ORDER BY run_at LIMIT :batch
        FOR UPDATE SKIP LOCKED
    )
    UPDATE ledger.jobs
    SET state = 'queued', dispatch_seq = nextval('ledger.dispatch_seq'),
        dispatched_at = clock_timestamp(), rings = 1
    FROM due WHERE jobs.id = due.id AND {_SCHEDULED}
    RETURNING jobs.id, jobs.list, jobs.dispatch_seq
""")  # noqa: S608 -- constants of this module

# A loose index scan: one probe a list, however many jobs wait in it.
_LISTS = text("""
    WITH RECURSIVE lists AS (
        (SELECT list FROM ledger.jobs WHERE state = 'queued' ORDER BY list LIMIT 1)
        UNION ALL
        SELECT (SELECT jobs.list FROM ledger.jobs
                WHERE jobs.state = 'queued' AND jobs.list > lists.list
                ORDER BY jobs.list LIMIT 1)
        FROM lists WHERE lists.list IS NOT NULL
    )
    SELECT list FROM lists WHERE list IS NOT NULL
""")

# A list's rows in the order of their dispatch, which is the order of time too. Those that wait
# longest are looked at, and no more, however many wait: behind so many in Redis nothing is late.
_RING_AGAIN = """
    WITH longest AS (
        SELECT id, dispatched_at, rings FROM ledger.jobs
        WHERE state = 'queued' AND list = :list AND suspicion = 0 AND {where}
        ORDER BY dispatch_seq LIMIT :window
    ), late AS MATERIALIZED (
        SELECT id FROM longest WHERE {late} LIMIT :batch
    ), locked AS MATERIALIZED (
        SELECT id FROM ledger.jobs JOIN late USING (id)
        WHERE {queued} AND jobs.list = :list AND jobs.suspicion = 0 AND {late}
        FOR UPDATE OF jobs SKIP LOCKED
    )
    UPDATE ledger.jobs
    SET dispatch_seq = nextval('ledger.dispatch_seq'), dispatched_at = clock_timestamp(),
        rings = LEAST(rings + 1, 1000)
    FROM locked WHERE jobs.id = locked.id AND {queued}
    RETURNING jobs.id, jobs.list, jobs.dispatch_seq
"""

# Below the front of its list, or anywhere when the list is empty: it was popped and never claimed.
_LOST = text(
    _RING_AGAIN.format(
        queued=_QUEUED,
        where="(CAST(:front AS bigint) IS NULL OR dispatch_seq < :front)",
        late="dispatched_at < statement_timestamp() - :grace * interval '1 second'",
    )
)

# Nothing is known of the list's front: ring after a minute, then two, four, … up to an hour.
_UNSURE = text(
    _RING_AGAIN.format(
        queued=_QUEUED,
        where="true",
        late="dispatched_at < statement_timestamp()"
        " - LEAST(60 * power(2, LEAST(rings, 10) - 1), 3600) * interval '1 second'",
    )
)


def dispatch_due(ledger: Ledger, leadership: Leadership | None) -> list[Ring]:
    """Queue up to `BATCH` jobs whose time has come; their doorbells are yet to be pushed.

    Raises:
        LeaseLost: `leadership` is no longer held.
        Unavailable: Postgres is away.
    """

    def work(connection: Connection) -> list[Ring]:
        if leadership is not None:
            leadership.check(connection)
        return [Ring(*row) for row in connection.execute(_DUE, {"batch": BATCH})]

    return ledger.run(work)


def waiting_lists(ledger: Ledger) -> list[str]:
    """Every Redis list that some queued job waits in."""
    return [row.list for row in ledger.rows(_LISTS)]


def take_lost(
    ledger: Ledger, leadership: Leadership | None, name: str, front: int | None, grace: float
) -> list[Ring]:
    """Queued jobs of list `name` whose doorbell was popped and lost, with a new number each.

    Args:
        ledger: where.
        leadership: checked inside the transaction.
        name: the Redis list.
        front: the number next to be popped; `None` when the list is empty.
        grace: seconds since the last dispatch before a job counts as lost.
    """

    def work(connection: Connection) -> list[Ring]:
        if leadership is not None:
            leadership.check(connection)
        parameters = {"list": name, "front": front, "grace": grace}
        return _rung(connection, _LOST, parameters)

    return ledger.run(work)


def take_unsure(ledger: Ledger, leadership: Leadership | None, name: str) -> list[Ring]:
    """Queued jobs of list `name` unrung for a minute, doubling, when its front is unknown."""

    def work(connection: Connection) -> list[Ring]:
        if leadership is not None:
            leadership.check(connection)
        return _rung(connection, _UNSURE, {"list": name})

    return ledger.run(work)


def _rung(connection: Connection, statement: TextClause, parameters: dict[str, Any]) -> list[Ring]:
    bounds = {"batch": BATCH, "window": WINDOW}
    return [Ring(*row) for row in connection.execute(statement, parameters | bounds)]
