"""Suspects and the places for them: how many more isolated processes are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from worker.ledger.database import Ledger
from worker.ledger.guards import is_overdue

#: Seconds by which a renewal, due at a third of the lease, may be late: after that the lease is
#: overdue, or at half of it where that comes first. To start a process takes seconds, on a busy
#: machine ten, and it shall be there when the lease expires.
LATE = 1.0
#: Waiting suspects that are counted: more need no more places than these.
MOST = 1000

# The time after which a lease is overdue.
_LATE = """
    LEAST((expires_at - renewed_at) / 3 + :late * interval '1 second',
          (expires_at - renewed_at) / 2)
"""

# Jobs under a lease that is overdue are suspects soon: in their worker's isolated place, or, if
# they were in one already, each truly alone. Only where this worker's own lease is not overdue:
# right after an outage of Postgres everybody's is. A process that runs one job truly alone has no
# place for another one, and one that consumes other queues has none for these jobs: only who
# consumes every queue that something waits in, and knows its task, counts. This worker looks at the
# tasks that it knows. While nothing waits, as nearly always, nobody's list of tasks is read.
_WANTED = text(f"""
    WITH seen AS MATERIALIZED (
        SELECT lease, pod, isolated, slots, queues, tasks,
               {is_overdue("workers", _LATE)} AS overdue
        FROM ledger.workers WHERE queues && CAST(:queues AS text[])
    ), mine AS MATERIALIZED (
        SELECT tasks FROM ledger.workers WHERE lease = :lease
    ), waiting AS MATERIALIZED (
        SELECT suspicion, queue, task FROM ledger.jobs
        WHERE state = 'queued' AND suspicion > 0 AND queue = ANY(CAST(:queues AS text[]))
          AND ((SELECT tasks FROM mine) IS NULL OR task IN (SELECT unnest(tasks) FROM mine))
        LIMIT :most
    ), at_risk AS MATERIALIZED (
        SELECT seen.isolated, jobs.queue, jobs.task
        FROM seen JOIN ledger.jobs ON jobs.lease = seen.lease
        WHERE seen.overdue AND jobs.state = 'running' AND jobs.queue = ANY(CAST(:queues AS text[]))
          AND EXISTS (SELECT FROM seen WHERE lease = :lease AND NOT overdue)
          AND ((SELECT tasks FROM mine) IS NULL OR jobs.task IN (SELECT unnest(tasks) FROM mine))
        LIMIT :most
    ), lacking AS MATERIALIZED (
        SELECT queue, task FROM waiting UNION SELECT queue, task FROM at_risk
    ), able AS MATERIALIZED (
        SELECT seen.* FROM seen
        WHERE NOT overdue
          AND (NOT EXISTS (SELECT FROM lacking)
               OR queues @> ARRAY(SELECT queue FROM lacking)
                  AND (tasks IS NULL OR tasks @> ARRAY(SELECT task FROM lacking)))
    ), places AS MATERIALIZED (
        SELECT able.slots, held.jobs AS held, held.alone
        FROM able CROSS JOIN LATERAL (
            SELECT count(*) AS jobs, COALESCE(max(suspicion) > 1, false) AS alone
            FROM ledger.jobs WHERE state = 'running' AND jobs.lease = able.lease) held
        WHERE able.isolated
    )
    SELECT (SELECT count(*) FROM waiting WHERE suspicion = 1)
         + (SELECT count(*) FROM at_risk WHERE NOT isolated)
         - (SELECT COALESCE(sum(GREATEST(slots - held, 0)), 0) FROM places WHERE NOT alone)
           AS slots,
           (SELECT count(*) FROM waiting WHERE suspicion > 1)
         + (SELECT count(*) FROM at_risk WHERE isolated)
         - (SELECT count(*) FROM places WHERE held = 0)
           AS alone,
           (SELECT count(*) FROM able
            WHERE NOT isolated AND lease < :lease
              AND NOT COALESCE(pod = ANY(ARRAY(SELECT pod FROM seen
                                               WHERE isolated AND pod IS NOT NULL)), false))
           AS rank
""")  # noqa: S608 -- constants of the ledger


_HAS_PLACE = text(
    "SELECT EXISTS (SELECT FROM ledger.workers WHERE pod = :pod AND isolated) AS there"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What places for suspects lack.

    Attributes:
        slots: how many suspects have no child process to run in.
        alone: how many have no process to run truly alone in.
        rank: how many other workers come before this one to start a process.
    """

    slots: int
    alone: int
    rank: int

    @property
    def any(self) -> bool:
        """Whether anything lacks."""
        return self.slots > 0 or self.alone > 0


def wanted(ledger: Ledger, lease: str, queues: Sequence[str]) -> Wanted:
    """What lacks for the suspects of `queues`, and for what runs under overdue leases.

    Args:
        ledger: where.
        lease: the asking worker's.
        queues: those that it consumes.

    Raises:
        Unavailable: Postgres is away.
    """
    (row,) = ledger.rows(
        _WANTED, {"lease": lease, "queues": list(queues), "most": MOST, "late": LATE}
    )
    return Wanted(max(0, int(row.slots)), max(0, int(row.alone)), int(row.rank))


def has_place(ledger: Ledger, pod: str) -> bool:
    """Whether the isolated process of the worker of `pod` holds a lease.

    Raises:
        Unavailable: Postgres is away.
    """
    (row,) = ledger.rows(_HAS_PLACE, {"pod": pod})
    return bool(row.there)
