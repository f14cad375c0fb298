"""Grant jobs to a worker's lease: each to one worker, in one guarded statement a batch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, text

from worker.jobs.job import Claim, Fence, Message, NewJob
from worker.ledger.arrays import literal
from worker.ledger.database import Ledger
from worker.ledger.guards import ELSEWHERE, NOWHERE, QUEUED
from worker.ledger.insert import insert
from worker.ledger.prepared import Prepared

#: The suspicion at which a job runs in a process that holds nothing else.
ALONE = 2

# The claim locks its own unexpired lease row. Expiry deletes that row first and takes the jobs in
# a second statement: so either the claim finds no lease, or expiry finds the claim (PROTOCOL 6).
_MINE = """
    mine AS MATERIALIZED (
        SELECT lease, name FROM ledger.workers
        WHERE lease = :lease AND expires_at > clock_timestamp()
        FOR KEY SHARE
    ), told AS MATERIALIZED (
        SELECT tasks FROM ledger.workers WHERE lease = :lease
    ), known AS MATERIALIZED (
        SELECT unnest(tasks) AS task FROM told
    )
"""

# A worker is granted the tasks that it knows; one that does not say which, any. A set that is
# hashed once: an array would be read through for each job. It stands apart from `mine`, whose rows
# are copied for each job that is locked beside them.
_KNOWN = "((SELECT tasks FROM told) IS NULL OR jobs.task IN (SELECT task FROM known))"

# Of a first attempt, as nearly all are, nothing more is read.
_REDELIVERED = """
    CASE WHEN jobs.attempt > 1
         THEN EXISTS (SELECT FROM ledger.attempts
                      WHERE attempts.job_id = jobs.id AND attempts.number = jobs.attempt - 1
                        AND attempts.outcome IN ('lost', 'released'))
         ELSE false END AS redelivered
"""

_GRANT = f"""
    UPDATE ledger.jobs
    SET state = 'running', attempt = attempt + 1, lease = mine.lease, worker = mine.name,
        started_at = clock_timestamp(),
        error = CASE WHEN starts_with(jobs.error, '{NOWHERE}')
                       OR starts_with(jobs.error, '{ELSEWHERE}') THEN NULL ELSE jobs.error END
    FROM wanted, mine
    WHERE jobs.id = wanted.id AND jobs.state = {QUEUED}
    RETURNING jobs.id, jobs.attempt, jobs.lease, jobs.task, jobs.queue, jobs.envelope, jobs.body,
              jobs.lost, jobs.suspicion, {_REDELIVERED}
"""  # noqa: S608 -- constants of the ledger

_CLAIM = Prepared(
    "claim",
    text(f"""
    WITH {_MINE}, wanted AS MATERIALIZED (
        SELECT jobs.id FROM ledger.jobs, mine
        WHERE jobs.id = ANY(CAST(:ids AS text[])) AND jobs.state = {QUEUED} AND jobs.suspicion = 0
          AND {_KNOWN}
          AND (jobs.expires_at IS NULL OR jobs.expires_at > clock_timestamp())
        ORDER BY jobs.id
        FOR UPDATE OF jobs
    )
    {_GRANT}
"""),  # noqa: S608 -- constants of the ledger
)

# Looked at without a lock, because an isolated process that must wait looks again and again.
_OLDEST_SUSPECT = text("""
    SELECT suspicion FROM ledger.jobs
    WHERE state = 'queued' AND suspicion > 0 AND queue = ANY(CAST(:queues AS text[]))
      AND (expires_at IS NULL OR expires_at > clock_timestamp())
      AND EXISTS (SELECT FROM ledger.workers
                  WHERE lease = :lease AND (tasks IS NULL OR jobs.task = ANY(tasks)))
    ORDER BY dispatch_seq LIMIT 1
""")

# What must run alone finds nothing beside it, and nothing comes beside it. In the order of their
# dispatch and not of their ids: what skips locked rows waits for none, and so cannot deadlock.
_CLAIM_SUSPECTS = text(f"""
    WITH {_MINE}, wanted AS MATERIALIZED (
        SELECT jobs.id FROM ledger.jobs, mine
        WHERE jobs.state = 'queued' AND jobs.suspicion > 0 AND jobs.suspicion = :level
          AND jobs.queue = ANY(CAST(:queues AS text[]))
          AND {_KNOWN}
          AND (jobs.expires_at IS NULL OR jobs.expires_at > clock_timestamp())
          AND NOT EXISTS (SELECT FROM ledger.jobs held
                          WHERE held.state = 'running' AND held.lease = :lease
                            AND GREATEST(held.suspicion, :level) >= {ALONE})
        ORDER BY jobs.dispatch_seq
        LIMIT :most
        FOR UPDATE OF jobs SKIP LOCKED
    )
    {_GRANT}
""")  # noqa: S608 -- constants of the ledger

_HELD = text(f"""
    SELECT id, attempt, lease, task, queue, envelope, body, lost, suspicion, {_REDELIVERED}
    FROM ledger.jobs
    WHERE state = 'running' AND lease = :lease AND id = ANY(CAST(:ids AS text[]))
""")  # noqa: S608 -- constants of the ledger

_HELD_UNKNOWN = text(f"""
    SELECT id, attempt, lease, task, queue, envelope, body, lost, suspicion, {_REDELIVERED}
    FROM ledger.jobs
    WHERE state = 'running' AND lease = :lease AND id <> ALL(CAST(:known AS text[]))
    ORDER BY id LIMIT :most
""")  # noqa: S608 -- constants of the ledger


def claim(ledger: Ledger, lease: str, ids: Sequence[str]) -> list[Claim]:
    """Claim those of `ids` that are queued, due, no suspects, and of a task that its worker knows,
    for `lease`.

    A commit whose reply was lost is not lost: the repeated claim also returns what this lease
    already holds of `ids`. The caller therefore passes no id that it knows to hold.

    Raises:
        Unavailable: Postgres is away; call again with the same ids before giving them up.
    """
    if not ids:
        return []
    rows = ledger.rows_at_once(_CLAIM, _parameters(lease, ids))
    if rows is None:
        return ledger.run_each(lambda connection: _all_claims(connection, lease, ids))
    granted = list(map(_claim_of, rows))
    if missing := _missing(ids, granted):
        granted += map(_claim_of, ledger.rows(_HELD, _parameters(lease, missing)))
    return granted


def adopt(ledger: Ledger, lease: str, jobs: Sequence[NewJob]) -> list[Claim]:
    """Insert `jobs`, which producers put into Redis without the ledger, and claim those due.

    A job that is known already is left as it is. One with a future time waits as a row. What this
    lease already holds of `jobs` is returned too, as by `claim`.

    Raises:
        Unavailable: Postgres is away; the messages stay noted in Redis.
    """

    def work(connection: Connection) -> list[Claim]:
        insert(connection, jobs)
        return _all_claims(connection, lease, [job.id for job in jobs])

    return ledger.run_each(work) if jobs else []


def claim_suspects(
    ledger: Ledger,
    lease: str,
    queues: Sequence[str],
    most: int,
    *,
    idle: bool,
    known: Collection[str] | None = None,
) -> list[Claim]:
    """Claim up to `most` suspects of `queues` for `lease`, or one that must run alone.

    The oldest one decides. If it must run alone, nothing is claimed until the process is `idle`,
    and then that one; beside it nothing is claimed. So neither kind starves the other.

    A commit whose reply was lost is not lost, if the caller says what it has: then what the lease
    holds besides is returned, up to `most`, and nothing is claimed before that.

    Args:
        ledger: where.
        lease: an isolated process's.
        queues: those that it consumes.
        most: its free slots, each a child process of its own.
        idle: whether it holds nothing, ends that are not committed yet included.
        known: the ids that it holds; `None` to claim without asking what was granted before.

    Raises:
        Unavailable: Postgres is away.
    """

    def work(connection: Connection) -> list[Claim]:
        parameters = {"lease": lease, "queues": list(queues), "most": most}
        if known is not None and (unknown := _unknown(connection, lease, known, most)):
            return unknown
        level = connection.execute(_OLDEST_SUSPECT, parameters).scalar()
        if level is None or (level >= ALONE and not idle):
            return []
        parameters |= {"level": level, "most": 1 if level >= ALONE else most}
        return _rows(connection.execute(_CLAIM_SUSPECTS, parameters))

    return ledger.run(work) if most > 0 else []


def _unknown(connection: Connection, lease: str, known: Collection[str], most: int) -> list[Claim]:
    """What `lease` was granted by a commit whose reply was lost."""
    parameters = {"lease": lease, "known": sorted(known), "most": most}
    return _rows(connection.execute(_HELD_UNKNOWN, parameters))


def _all_claims(connection: Connection, lease: str, ids: Sequence[str]) -> list[Claim]:
    """What is granted now, and what was granted before by a commit whose reply was lost."""
    granted = _claims(connection, lease, ids)
    if missing := _missing(ids, granted):
        granted += _rows(connection.execute(_HELD, _parameters(lease, missing)))
    return granted


def _missing(ids: Sequence[str], granted: Iterable[Claim]) -> list[str]:
    return sorted(set(ids) - {claim.fence.id for claim in granted})


def _claims(connection: Connection, lease: str, ids: Sequence[str]) -> list[Claim]:
    return _rows(_CLAIM.execute(connection, _parameters(lease, ids)))


def _parameters(lease: str, ids: Sequence[str]) -> dict[str, str]:
    return {"lease": lease, "ids": literal(list(ids))}


def _rows(rows: Iterable[Sequence[Any]]) -> list[Claim]:
    return list(map(_claim_of, rows))


def _claim_of(row: Sequence[Any]) -> Claim:
    job_id, attempt, lease, task, queue, envelope, body, *more = row
    return Claim(Fence(job_id, attempt, lease), task, queue, Message(envelope, bytes(body)), *more)
