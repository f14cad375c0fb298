"""A deep ledger: a million rows, made by the server itself, and what a test takes from it.

The oldest rows wait in a queue that nobody consumes; then come jobs that ended, over eight days;
the newest are a backlog in several lists, among them one of ten. Statistics are those of a quiet
day, when nothing waited, until they are taken anew.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import text

from tests.ledger import given
from worker.jobs.job import Claim
from worker.jobs.queues import list_of
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.lease import open_lease

FORGOTTEN: Final = 20_000
ENDED: Final = 850_000
RUNNING: Final = 2_000
WAITING: Final = 110_000
SCHEDULED: Final = 20_000
LEASES: Final = 40
DAYS: Final = 8
RARE: Final = "shop.tasks.close_the_year"
URGENT: Final = list_of("celery", 9)

# In the order of the numbers, as UUIDv7 is in the order of time.
_ID: Final = """
    '01' || left(lpad(to_hex(n), 10, '0'), 6) || '-' || right(lpad(to_hex(n), 10, '0'), 4)
         || '-7000-8000-' || left(md5(n::text), 12)
"""
# What a row of ours weighs: an envelope of 670 bytes, a body of 100.
_INSERT: Final = """
    INSERT INTO ledger.jobs (id, task, queue, list, priority, state, attempt, suspicion, lease,
                      worker, dispatch_seq, dispatched_at, rings, created_at, run_at, expires_at,
                      started_at, finished_at, key, fingerprint, root_id, envelope, body, result,
                      result_type, error)
    SELECT id, task, queue, list, priority, state, attempt, suspicion, lease, lease, seq,
           dispatched_at, rings, at, run_at, expires_at, CASE WHEN attempt > 0 THEN at END,
           finished_at, CASE WHEN n % 50 = 0 THEN 'order-' || n END,
           decode(md5(id) || md5(task), 'hex'), id, '{{"headers": "' || repeat('x', 650) || '"}}',
           convert_to('[[' || n || ', "' || repeat('y', 80) || '"], {{}}, {{}}]', 'UTF8'),
           CASE state WHEN 'succeeded' THEN '\\x7b7d'::bytea END,
           CASE state WHEN 'succeeded' THEN 'application/json' END,
           CASE state WHEN 'failed' THEN 'ValueError: no' END
    FROM (SELECT {id} AS id, n, {columns}
          FROM generate_series({first}::bigint, {last}::bigint - 1) AS n) AS made
"""
_COLUMNS: Final = {
    "task": "'shop.tasks.receipt_' || n % 20",
    "queue": "'celery'",
    "list": "'celery'",
    "priority": "0",
    "attempt": "0",
    "suspicion": "0",
    "lease": "NULL",
    "seq": "NULL::bigint",
    "dispatched_at": "NULL::timestamptz",
    "rings": "0",
    "at": "clock_timestamp()",
    "run_at": "NULL::timestamptz",
    "expires_at": "NULL::timestamptz",
    "finished_at": "NULL::timestamptz",
}


class Depth:
    """What a test takes from the deep ledger, by a door that nobody watches.

    Args:
        ledger: that door.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def ids(self, count: int, where: str) -> list[str]:
        """`count` jobs of which that holds, in the order of their ids."""
        rows = self.ledger.execute(
            f"SELECT id FROM (SELECT id FROM ledger.jobs WHERE {where} LIMIT {count}) found"
            " ORDER BY id"
        )
        assert len(rows) == count, where
        return [row.id for row in rows]

    def waiting(self, count: int) -> list[str]:
        """`count` jobs of the backlog that may be claimed."""
        return self.ids(
            count,
            "state = 'queued' AND suspicion = 0 AND list = 'celery'"
            " AND (expires_at IS NULL OR expires_at > now())",
        )

    def lease(self) -> str:
        """A new lease of a worker."""
        return open_lease(self.ledger, "w1", ["celery"], 3600)

    def running(self, count: int) -> list[Claim]:
        """`count` jobs claimed under a lease of their own."""
        claims = claim(self.ledger, self.lease(), self.waiting(count))
        assert len(claims) == count
        return claims


def fill(ledger: Ledger, ended: int = ENDED, waiting: int = WAITING) -> None:
    """Make the rows, with the statistics of the moment before anything waited."""
    # Half the time; no plan depends on it.
    ledger.execute("ALTER TABLE ledger.attempts SET UNLOGGED")
    ledger.execute("ALTER TABLE ledger.jobs SET UNLOGGED")
    for table in ("jobs", "attempts"):
        ledger.execute(f"ALTER TABLE ledger.{table} SET (autovacuum_enabled = off)")
    fill_ended(ledger, FORGOTTEN, FORGOTTEN + ended)
    vacuum(ledger)
    _fill_unfinished(ledger, FORGOTTEN + ended, waiting)


def take_statistics(ledger: Ledger) -> None:
    """Let Postgres know what is there now."""
    ledger.execute("ANALYZE")


def fill_ended(ledger: Ledger, first: int, last: int) -> None:
    age = f"now() - ({last} - n) * interval '{DAYS} days' / {last - first}"
    ledger.execute(
        _insert(
            first,
            last,
            state="CASE WHEN n % 100 = 7 THEN 'failed' WHEN n % 200 = 9 THEN 'cancelled'"
            " ELSE 'succeeded' END",
            task=f"CASE WHEN n < {first + 40} THEN '{RARE}'"
            " ELSE 'shop.tasks.receipt_' || n % 20 END",
            attempt="1 + (n % 5 = 0)::int",
            lease="'lease-' || n % 1000",
            seq="n",
            dispatched_at=age,
            rings="1",
            at=age,
            finished_at=age,
        )
    )
    ledger.execute("""
        INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker, started_at, error)
        SELECT id, 1, CASE WHEN attempt > 1 THEN 'retried' ELSE state END, lease, worker,
               started_at, 'ValueError: no'
        FROM ledger.jobs WHERE attempt > 1 OR state = 'failed'
    """)


def _fill_unfinished(ledger: Ledger, first: int, waiting: int) -> None:
    since = "now() - interval '100 seconds'"
    queued = {"state": "'queued'", "seq": "n", "dispatched_at": since, "rings": "3"}
    ledger.execute(_insert(0, FORGOTTEN, **queued | {"queue": "'lost'", "list": "'lost'"}))
    last = first + RUNNING
    lease = f"'lease-' || n % {LEASES}"
    ledger.execute(_insert(first, last, state="'running'", attempt="1", lease=lease))
    first, last = last, last + waiting
    ledger.execute(
        _insert(
            first,
            last,
            **queued,
            queue=f"CASE WHEN n >= {last - 10} THEN 'small' ELSE 'celery' END",
            list=f"CASE WHEN n >= {last - 10} THEN 'small' WHEN n % 11 = 0"
            f" THEN '{URGENT}' ELSE 'celery' END",
            priority="CASE WHEN n % 11 = 0 THEN 9 ELSE 0 END",
            suspicion=f"CASE WHEN n < {first + 60} THEN 1 ELSE 0 END",
            expires_at="CASE WHEN n % 10 = 0 THEN now() + interval '1 hour' END",
        )
    )
    due = "now() + interval '1 hour' + n * interval '1 second'"
    ledger.execute(_insert(last, last + SCHEDULED, state="'scheduled'", run_at=due))
    ledger.execute(f"SELECT setval('ledger.dispatch_seq', {last + SCHEDULED})")
    ledger.execute(f"""
        INSERT INTO ledger.workers (lease, name, queues, expires_at)
        SELECT 'lease-' || n, 'w' || n, '{{celery}}', now() + interval '1 hour'
        FROM generate_series(0, {LEASES - 1}) AS n
    """)


def _insert(first: int, last: int, **columns: str) -> str:
    chosen = ", ".join(f"{sql} AS {name}" for name, sql in (_COLUMNS | columns).items())
    return _INSERT.format(id=_ID, columns=chosen, first=first, last=last)


def vacuum(ledger: Ledger) -> None:
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) ledger.jobs"))
        connection.execute(text("VACUUM (ANALYZE) ledger.attempts"))


def late(depth: Depth, column: str, ids: list[str]) -> list[str]:
    """These jobs, with a time of theirs a second ago."""
    depth.ledger.execute(
        f"UPDATE ledger.jobs SET {column} = clock_timestamp() - interval '1 second'"
        " WHERE id = ANY(CAST(:ids AS text[]))",
        {"ids": ids},
    )
    return ids


def expired_worker(depth: Depth, count: int) -> list[Claim]:
    """`count` jobs whose worker stopped renewing."""
    claims = depth.running(count)
    given.expire(depth.ledger, claims[0].fence.lease)
    return claims
