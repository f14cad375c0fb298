"""Leases: one row per worker process, renewed whatever number of jobs it runs."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, text

from worker.ledger.database import Ledger
from worker.ledger.interrupted import INTERRUPTED, suspicion
from worker.ledger.strangers import recall

_OPEN = text("""
    INSERT INTO ledger.workers (lease, name, isolated, pod, slots, queues, tasks, expires_at)
    VALUES (:lease, :name, :isolated, :pod, :slots, :queues, CAST(:tasks AS text[]),
            clock_timestamp() + :seconds * interval '1 second')
    ON CONFLICT DO NOTHING
""")

# No condition on expires_at: an expired but unrescued lease may be renewed (PROTOCOL 11).
_RENEW = text("""
    UPDATE ledger.workers
    SET renewed_at = clock_timestamp(),
        expires_at = clock_timestamp() + :seconds * interval '1 second'
    WHERE lease = :lease
""")

_TELL_TASKS = text("""
    UPDATE ledger.workers SET tasks = CAST(:tasks AS text[]) WHERE lease = :lease RETURNING queues
""")

_HELD = text("SELECT id, attempt FROM ledger.jobs WHERE state = 'running' AND lease = :lease")

# An end keeps whose attempt it was; of a retry that has begun again, the attempt's row does.
_ENDED = text("""
    SELECT i.id, i.attempt
    FROM unnest(CAST(:ids AS text[]), CAST(:attempts AS int[])) AS i (id, attempt)
    WHERE EXISTS (SELECT FROM ledger.jobs
                  WHERE jobs.id = i.id AND jobs.attempt = i.attempt AND jobs.lease = :lease
                    AND jobs.state <> 'running')
       OR EXISTS (SELECT FROM ledger.attempts
                  WHERE job_id = i.id AND number = i.attempt AND attempts.lease = :lease
                    AND outcome = 'retried')
""")

# Counted lease by lease: for each of them there is an index, whatever the statistics say.
_RUNNING = text("""
    SELECT name,
           (SELECT count(*) FROM ledger.jobs
            WHERE state = 'running' AND lease = workers.lease) AS jobs
    FROM ledger.workers
""")

_CLOSE = text("DELETE FROM ledger.workers WHERE lease = :lease")

# Past at once: the keeper's rescue takes the jobs, by the rules for what is lost with its worker.
_FORFEIT = text("""
    UPDATE ledger.workers SET expires_at = clock_timestamp() - interval '1 ms'
    WHERE lease = :lease
      AND EXISTS (SELECT FROM ledger.jobs WHERE state = 'running' AND jobs.lease = :lease)
""")

# Whoever is running each time a worker shuts down runs alone from then on.
_RELEASE_ALL = text(f"""
    WITH locked AS MATERIALIZED (
        SELECT id FROM ledger.jobs WHERE state = 'running' AND lease = :lease ORDER BY id FOR UPDATE
    ), moved AS (
        UPDATE ledger.jobs
        SET state = 'queued', dispatch_seq = nextval('ledger.dispatch_seq'),
            dispatched_at = clock_timestamp(), rings = 1,
            suspicion = {suspicion(f"'{INTERRUPTED}'")}
        FROM locked WHERE jobs.id = locked.id AND jobs.state = 'running' AND jobs.lease = :lease
        RETURNING jobs.id, jobs.attempt, jobs.lease, jobs.worker, jobs.started_at
    )
    INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker, started_at, error)
    SELECT id, attempt, 'released', lease, worker, started_at, '{INTERRUPTED}' FROM moved
    ON CONFLICT DO NOTHING
    RETURNING job_id
""")  # noqa: S608 -- constants of the ledger


def open_lease(
    ledger: Ledger,
    name: str,
    queues: Sequence[str],
    seconds: float,
    *,
    isolated: bool = False,
    pod: str | None = None,
    slots: int = 1,
    tasks: Collection[str] | None = None,
) -> str:
    """A new lease for this process, valid for `seconds`; its id is never used again.

    Args:
        ledger: where.
        name: the worker's.
        queues: those that it consumes.
        seconds: until it expires.
        isolated: whether it runs suspects only.
        pod: what a worker and the isolated process that it started have in common.
        slots: how many jobs it runs at once.
        tasks: those that it knows, and alone is granted; `None` for any. What was put off because
            nobody knew it is due at once.

    Raises:
        Unavailable: Postgres is away.
    """
    lease = str(uuid.uuid4())
    parameters = {
        "lease": lease,
        "name": name,
        "isolated": isolated,
        "pod": pod,
        "slots": slots,
        "queues": list(queues),
        "tasks": None if tasks is None else sorted(tasks),
        "seconds": seconds,
    }

    def work(connection: Connection) -> None:
        connection.execute(_OPEN, parameters)
        if tasks and not isolated:
            recall(connection, queues, tasks)

    ledger.run(work)
    return lease


def tell_tasks(ledger: Ledger, lease: str, tasks: Collection[str]) -> None:
    """The worker of `lease` knows `tasks` from now on."""

    def work(connection: Connection) -> None:
        for row in connection.execute(_TELL_TASKS, {"lease": lease, "tasks": sorted(tasks)}):
            recall(connection, row.queues, tasks)

    ledger.run(work)


def renew(ledger: Ledger, lease: str, seconds: float) -> bool:
    """Extend `lease` to `seconds` from now; False when it is gone and its jobs were rescued."""

    def work(connection: Connection) -> bool:
        return connection.execute(_RENEW, {"lease": lease, "seconds": seconds}).rowcount == 1

    return ledger.run(work)


def held(ledger: Ledger, lease: str) -> set[tuple[str, int]]:
    """Each (id, attempt) that the ledger says is running under `lease`."""
    return {(row.id, row.attempt) for row in ledger.rows(_HELD, {"lease": lease})}


def ended(ledger: Ledger, lease: str, attempts: Sequence[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of `attempts`, each (id, attempt), whose end was committed under `lease`."""
    ids, numbers = [job_id for job_id, _ in attempts], [number for _, number in attempts]
    rows = ledger.rows(_ENDED, {"lease": lease, "ids": ids, "attempts": numbers})
    return {(row.id, row.attempt) for row in rows}


def running_by_lease(ledger: Ledger) -> list[tuple[str, int]]:
    """For each lease its worker's name, and how many jobs run under it."""
    return [(row.name, row.jobs) for row in ledger.rows(_RUNNING)]


def close_lease(ledger: Ledger, lease: str) -> list[str]:
    """End `lease` and give back what it still holds, as the last act of a worker.

    The lease row goes first and the jobs in a second statement, as in an expiry, so that a claim
    of this lease that is still under way finds no lease or is found. Not counted as a crash.

    Returns:
        The ids given back, which the keeper rings for.
    """

    def work(connection: Connection) -> list[str]:
        connection.execute(_CLOSE, {"lease": lease})
        return [row.job_id for row in connection.execute(_RELEASE_ALL, {"lease": lease})]

    return ledger.run(work)


def forfeit_lease(ledger: Ledger, lease: str) -> bool:
    """End `lease` as a death does, as the last act of a worker that a fault ends.

    What it still holds is lost: the next rescue makes suspects of it, and counts a loss if it was
    alone. A lease that holds nothing is closed.

    Returns:
        Whether it held anything.

    Raises:
        Unavailable: Postgres is away; the lease expires by itself.
    """

    def work(connection: Connection) -> bool:
        return connection.execute(_FORFEIT, {"lease": lease}).rowcount == 1

    if ledger.run(work):
        return True
    close_lease(ledger, lease)
    return False
