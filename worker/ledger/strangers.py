"""Strangers: queued jobs of tasks that the worker which popped their doorbell does not know."""

from __future__ import annotations

import difflib
import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, text

from worker.ledger.arrays import literal
from worker.ledger.database import Ledger
from worker.ledger.guards import ELSEWHERE, NOWHERE, QUEUED

#: Seconds until another worker is rung for, where one that knows the task lives.
PAUSE: Final = 0.25
#: Such jobs that are rung for in a second, all together: where a great many wait for one busy
#: worker, the idle ones that do not know them must not pass them round without end.
RATE: Final = 500
#: Jobs that are counted for that.
COUNTED: Final = 10_000
#: The shortest and the longest wait, in seconds, where nobody living knows the task. Between them
#: a job waits half as long as it has waited already.
SHORTEST, LONGEST = 1.0, 60.0
#: Seconds, about, that one call may search for near names: to compare a name with each of some
#: thousand others takes a third of a second, and the claims wait, and so does the transaction.
HINTING: Final = 0.2
#: Jobs that are made due at once when a worker that knows them opens its lease.
RECALLED: Final = 5000

_STRANGE = text(f"""
    SELECT task, queue,
           EXISTS (SELECT FROM ledger.workers
                   WHERE expires_at > clock_timestamp() AND NOT isolated
                     AND jobs.queue = ANY(workers.queues)
                     AND (workers.tasks IS NULL OR jobs.task = ANY(workers.tasks))) AS served,
           count(*) AS jobs
    FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND state = {QUEUED} AND suspicion = 0
      AND task <> ALL(CAST(:tasks AS text[]))
    GROUP BY task, queue
""")  # noqa: S608 -- constants of the ledger

_KNOWN_TASKS = text("""
    SELECT DISTINCT unnest(tasks) AS task FROM ledger.workers
    WHERE expires_at > clock_timestamp()
    ORDER BY task
""")

_LIVING = text("""
    SELECT count(*) AS workers FROM ledger.workers
    WHERE expires_at > clock_timestamp() AND NOT isolated
""")

# No attempt is used up, and `lost` and `suspicion` stay: the job was not touched.
_PUT_OFF = text(f"""
    WITH said AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:task AS text[]), CAST(:queue AS text[]),
                             CAST(:served AS boolean[]), CAST(:error AS text[]))
        AS said (task, queue, served, error)
    ), strange AS MATERIALIZED (
        SELECT jobs.id, said.served, said.error FROM ledger.jobs JOIN said USING (task, queue)
        WHERE jobs.id = ANY(CAST(:ids AS text[])) AND jobs.state = {QUEUED} AND jobs.suspicion = 0
        ORDER BY jobs.id
        FOR UPDATE OF jobs
    ), soon AS MATERIALIZED (
        SELECT count(*) AS jobs FROM (
            SELECT FROM ledger.jobs
            WHERE state = 'scheduled'
              AND run_at <= statement_timestamp() + {LONGEST} * interval '1 second'
            LIMIT {COUNTED}) AS counted
    )
    UPDATE ledger.jobs
    SET state = 'scheduled', dispatch_seq = NULL, dispatched_at = clock_timestamp(), rings = 0,
        error = strange.error,
        run_at = clock_timestamp() + interval '1 second' * CASE
            WHEN strange.served
            THEN GREATEST({PAUSE}, CAST((SELECT soon.jobs FROM soon) AS float8) / {RATE})
            ELSE LEAST({LONGEST}, GREATEST({SHORTEST}, extract(
                epoch FROM clock_timestamp() - jobs.created_at) / 2)) END
    FROM strange
    WHERE jobs.id = strange.id AND jobs.state = {QUEUED} AND jobs.suspicion = 0
""")  # noqa: S608 -- constants of the ledger

# What was put off waits no longer than `LONGEST`: further in the future nothing is looked at, nor
# what is due already. What is left beyond `:most` comes by itself, within that time: a lease must
# open in time, however much waits for it. Who skips locked rows waits for none.
_RECALL = text(f"""
    WITH known AS MATERIALIZED (
        SELECT id FROM ledger.jobs
        WHERE state = 'scheduled' AND run_at > statement_timestamp()
          AND run_at <= statement_timestamp() + {LONGEST} * interval '1 second'
          AND task = ANY(CAST(:tasks AS text[])) AND queue = ANY(CAST(:queues AS text[]))
          AND (starts_with(error, '{NOWHERE}') OR starts_with(error, '{ELSEWHERE}'))
        ORDER BY run_at LIMIT :most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE ledger.jobs SET run_at = clock_timestamp(), error = NULL
    FROM known WHERE jobs.id = known.id AND jobs.state = (SELECT 'scheduled')
""")  # noqa: S608 -- constants of the ledger

_WAITING = text(f"""
    SELECT task, count(*) AS jobs FROM ledger.jobs
    WHERE state = 'scheduled' AND run_at <= clock_timestamp() + {LONGEST} * interval '1 second'
      AND starts_with(error, '{NOWHERE}')
    GROUP BY task ORDER BY task
""")  # noqa: S608 -- constants of the ledger


@dataclass(frozen=True, slots=True)
class PutOff:
    """Jobs of one task that were put off.

    Attributes:
        task: its name.
        is_served: whether some living worker of their queue knows it.
        why: what stands in the jobs' rows.
    """

    task: str
    is_served: bool
    why: str


def put_off(ledger: Ledger, ids: Sequence[str], tasks: Collection[str]) -> list[PutOff]:
    """Let those of `ids` wait that are queued, and whose task is none of `tasks`.

    Where a living worker of the queue knows the task, it is rung for again after a short pause;
    else the job waits up to a minute, and until a worker that knows it opens its lease.

    Raises:
        Unavailable: Postgres is away.
    """

    def work(connection: Connection) -> list[PutOff]:
        found = connection.execute(
            _STRANGE, {"ids": literal(list(ids)), "tasks": literal(sorted(tasks))}
        ).all()
        if not found:
            return []
        near: tuple[str, ...] = ()
        # Where two apps share a queue this is asked again and again, and no name is looked for.
        if not all(row.served for row in found):
            near = tuple(row.task for row in connection.execute(_KNOWN_TASKS))
        until = time.monotonic() + HINTING
        told = [
            PutOff(row.task, row.served, _why(row.task, row.served, near, until)) for row in found
        ]
        said: dict[str, list[Any]] = {
            "task": [row.task for row in found],
            "queue": [row.queue for row in found],
            "served": [row.served for row in found],
            "error": [one.why for one in told],
        }
        connection.execute(
            _PUT_OFF, {"ids": literal(list(ids)), **{name: literal(said[name]) for name in said}}
        )
        return told

    return ledger.run(work)


def recall(connection: Connection, queues: Sequence[str], tasks: Collection[str]) -> int:
    """Make due what was put off and a worker of `queues` that knows `tasks` can run now; how many,
    at most `RECALLED`.

    Args:
        connection: in the transaction that makes the worker's tasks known.
        queues: the worker's.
        tasks: those that it knows.
    """
    known = {"queues": list(queues), "tasks": sorted(tasks), "most": RECALLED}
    return connection.execute(_RECALL, known).rowcount


def unknown_tasks(ledger: Ledger) -> list[tuple[str, int]]:
    """Each task that no living worker knows and jobs wait for; how many."""
    return [(row.task, row.jobs) for row in ledger.rows(_WAITING)]


def served_tasks(ledger: Ledger) -> list[str]:
    """Every task that some living worker knows, without those that each Celery app has."""
    tasks = (str(row.task) for row in ledger.rows(_KNOWN_TASKS))
    return [task for task in tasks if not task.startswith("celery.")]


def living(ledger: Ledger) -> int:
    """How many workers hold a lease; isolated processes are not counted."""
    (row,) = ledger.rows(_LIVING)
    return int(row.workers)


def _why(task: str, served: bool, known: tuple[str, ...], until: float) -> str:
    if served:
        return f"{ELSEWHERE}{task!r}: another one than took it"
    near = _nearest(task, known) if time.monotonic() < until else None
    hint = f", the nearest name is {near!r}" if near else ""
    return f"{NOWHERE}{task!r}{hint}; start a worker that has it, or cancel the job"


@functools.lru_cache(maxsize=64)
def _nearest(task: str, known: tuple[str, ...]) -> str | None:
    return next(iter(difflib.get_close_matches(task, known, n=1)), None)
