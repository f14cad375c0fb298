"""Rescue: take the jobs of workers whose lease expired, and judge what keeps killing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from worker.jobs.job import Ring
from worker.ledger.claim import ALONE
from worker.ledger.continuations import carry_on
from worker.ledger.database import Ledger
from worker.ledger.guards import is_expired, is_overdue
from worker.ledger.leader import Leadership
from worker.ledger.look import Look

#: Jobs rescued in one transaction.
BATCH = 1000

# Whether it is the Postgres that was looked at, and its clock has not stepped since the look. Else
# every lease may look expired, and none is (PROTOCOL 12, 30).
_UNCHANGED = """
    (CAST(:started AS timestamptz) IS NULL
     OR pg_postmaster_start_time() = CAST(:started AS timestamptz)
        AND statement_timestamp() >= CAST(:looked AS timestamptz)
        AND statement_timestamp() <= CAST(:looked AS timestamptz) + :within * interval '1 second')
"""
_IS_UNCHANGED = text(f"SELECT {_UNCHANGED}")

# A worker and its isolated process that die together renewed at different moments, and expire up to
# a third of a lease apart. So an expired lease waits while another one of its pod is overdue: that
# one expires too, and both end here together, or it renews, and the first was lost without it. The
# time is the statement's own: both are judged by one clock reading.
_EXPIRE = text(f"""
    DELETE FROM ledger.workers WHERE lease IN (
        SELECT lease FROM ledger.workers expired
        WHERE {is_expired("expired")} AND {_UNCHANGED}
          AND NOT EXISTS (
              SELECT FROM ledger.workers other
              WHERE other.pod = expired.pod AND other.lease <> expired.lease
                AND NOT {is_expired("other")}
                AND {is_overdue("other", "(other.expires_at - other.renewed_at) / 2")})
        ORDER BY lease LIMIT 100
        FOR UPDATE SKIP LOCKED)
    RETURNING lease, isolated, pod
""")  # noqa: S608 -- constants of the ledger

# A second statement with a snapshot of its own: it finds what was claimed until the lease row was
# gone, and sweeps what runs under no lease row at all (PROTOCOL 6). A loss counts only where the
# job was alone under the accused lease. Lost with an ordinary worker it is a suspect; lost with an
# isolated process it runs truly alone from then on. The guard stands twice: a row that was waited
# for may be the next attempt's, under a lease too new for this statement to see. It is no literal
# the second time: with one, Postgres may look through all that runs for each id.
_TAKE = text("""
    WITH orphans AS MATERIALIZED (
        SELECT id FROM ledger.jobs
        WHERE state = 'running'
          AND NOT EXISTS (SELECT FROM ledger.workers WHERE workers.lease = jobs.lease)
        ORDER BY id LIMIT :batch
        FOR UPDATE
    ), together AS MATERIALIZED (
        SELECT lease, count(*) AS held FROM ledger.jobs
        WHERE state = 'running'
          AND lease IN (SELECT j.lease FROM ledger.jobs j JOIN orphans USING (id))
        GROUP BY lease
    ), judged AS MATERIALIZED (
        SELECT j.id, j.lease, j.attempt, j.worker, j.started_at, t.held,
               j.lost + CASE WHEN t.held = 1 AND j.lease = :accused AND j.suspicion >= :suspicion
                             THEN 1 ELSE 0 END AS lost,
               GREATEST(j.suspicion, CASE WHEN j.lease = ANY(CAST(:isolated AS text[]))
                                          THEN 2 ELSE 1 END) AS suspicion
        FROM ledger.jobs j JOIN orphans USING (id) JOIN together t ON t.lease = j.lease
    ), moved AS (
        UPDATE ledger.jobs
        SET lost = judged.lost,
            suspicion = CASE WHEN judged.lost >= :limit THEN 0 ELSE judged.suspicion END,
            state = CASE WHEN judged.lost >= :limit THEN 'failed' ELSE 'queued' END,
            error = CASE WHEN judged.lost >= :limit
                         THEN format('poison: %s attempts were lost with their process',
                                     judged.lost) END,
            finished_at = CASE WHEN judged.lost >= :limit THEN clock_timestamp() END,
            lease = NULL,
            dispatch_seq = nextval('ledger.dispatch_seq'), dispatched_at = clock_timestamp(),
            rings = 1
        FROM judged
        WHERE jobs.id = judged.id AND jobs.state = (SELECT 'running')
          AND jobs.lease = judged.lease AND jobs.attempt = judged.attempt
        RETURNING jobs.id, jobs.state, jobs.list, jobs.dispatch_seq
    ), noted AS (
        INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker, started_at, error)
        SELECT judged.id, judged.attempt, 'lost', judged.lease, judged.worker, judged.started_at,
               format('the worker stopped renewing its lease while it held %s job(s)', judged.held)
        FROM judged JOIN moved USING (id)
        ON CONFLICT DO NOTHING
    )
    SELECT id, state, list, dispatch_seq FROM moved
""")

# A worker that has missed a renewal, and dies too perhaps: then it is a node that goes.
_FALTERING = text(f"""
    SELECT EXISTS (
        SELECT FROM ledger.workers
        WHERE {is_overdue("workers", "(expires_at - renewed_at) / 2")})
""")  # noqa: S608 -- constants of the ledger


@dataclass(frozen=True, slots=True)
class Rescued:
    """What one rescue did.

    Attributes:
        leases: how many expired leases were ended; some twice, if a commit had to be repeated.
        queued: ids that run again, as suspects.
        poisoned: ids that reached the limit and are failed.
        rings: doorbells to push, for the jobs that call the errbacks of the poisoned; and for these
            themselves: a worker that is denied one copies its end to the app's own result backend.
        full: whether there may be more.
    """

    leases: int
    queued: tuple[str, ...]
    poisoned: tuple[str, ...]
    rings: tuple[Ring, ...]
    full: bool


def rescue(
    ledger: Ledger,
    leadership: Leadership | None,
    limit: int,
    *,
    accuse: bool = True,
    look: Look | None = None,
    within: float = 5.0,
) -> Rescued:
    """End expired leases and queue their jobs again; fail those lost `limit` times while alone.

    Args:
        ledger: where.
        leadership: checked inside the transaction.
        limit: losses that make a job poison.
        accuse: False when another lease was ended a moment ago: no loss counts.
        look: what was seen of Postgres; nothing is done if it is another one, or its clock has
            stepped.
        within: seconds that may have passed since that look.

    Raises:
        LeaseLost: `leadership` is no longer held.
        Unavailable: Postgres is away.
    """

    # A commit whose reply was lost is repeated, and finds nothing left to do.
    tries: list[Rescued] = []
    seen = {
        "started": look.started if look else None,
        "looked": look.clock if look else None,
        "within": within,
    }

    def work(connection: Connection) -> None:
        if leadership is not None:
            leadership.check(connection)
        if connection.execute(_IS_UNCHANGED, seen).scalar():
            tries.append(
                _rescue(connection, list(connection.execute(_EXPIRE, seen)), limit, accuse)
            )

    ledger.run(work)
    return Rescued(
        sum(done.leases for done in tries),
        tuple(job for done in tries for job in done.queued),
        tuple(job for done in tries for job in done.poisoned),
        tuple(ring for done in tries for ring in done.rings),
        any(done.full for done in tries),
    )


def _rescue(connection: Connection, expired: Sequence[Any], limit: int, accuse: bool) -> Rescued:
    accused, suspicion = _accused(expired)
    if not accuse or connection.execute(_FALTERING).scalar():
        accused = None
    parameters = {
        "accused": accused,
        "suspicion": suspicion,
        "isolated": [row.lease for row in expired if row.isolated],
        "limit": limit,
        "batch": BATCH,
    }
    rows = list(connection.execute(_TAKE, parameters))
    queued = tuple(row.id for row in rows if row.state == "queued")
    failed = [row for row in rows if row.state == "failed"]
    poisoned = tuple(row.id for row in failed)
    rings = [*carry_on(connection, poisoned), *(Ring(row.id, *row[2:]) for row in failed)]
    return Rescued(len(expired), queued, poisoned, tuple(rings), len(rows) == BATCH)


def _accused(expired: Sequence[Any]) -> tuple[str | None, int]:
    """The lease whose lone job may have killed what was lost, and how suspect it must be for that.

    One process was lost: its job. A worker was lost together with the isolated process that it
    started: what ran there truly alone, because an OOM kill takes the whole pod. Anything more is a
    node that dies, and accuses nobody.
    """
    if len(expired) == 1:
        return expired[0].lease, 0
    if len(expired) == 2 and expired[0].pod is not None and expired[0].pod == expired[1].pod:
        isolated = [row.lease for row in expired if row.isolated]
        if len(isolated) == 1:
            return isolated[0], ALONE
    return None, 0
