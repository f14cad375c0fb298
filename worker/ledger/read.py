"""Answer "where is my job?"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from worker.errors import NotFound
from worker.jobs.job import Attempt, Job, Message
from worker.jobs.states import FINAL, State
from worker.ledger.database import Ledger

#: Jobs that have ended in one state and are counted; more are estimated.
EXACT = 100_000
#: Jobs looked through by one statement: the first one of a list, and the last.
FIRST_WINDOW, LAST_WINDOW = 1000, 16_000

_COLUMNS = """
    id, task, queue, priority, state, attempt, lost, suspicion > 0 AS suspect, created_at,
    CASE WHEN run_at < 'infinity' THEN run_at END AS run_at,
    started_at, finished_at, expires_at, worker, key, parent_id, root_id, group_id, error,
    traceback, envelope, body, result, result_type, children, progress, progress_state
"""

_BY_IDS = text(f"""
    SELECT {_COLUMNS} FROM ledger.jobs WHERE id = ANY(CAST(:ids AS text[]))
    ORDER BY created_at DESC, id DESC
""")  # noqa: S608 -- constants of this module

# Behind this job in the list; a row comparison, which an index on the time alone serves too.
_BEFORE = """
    (CAST(:before AS text) IS NULL
     OR (created_at, id) < (CAST(:before_time AS timestamptz), CAST(:before AS text)))
"""

_FILTERS = f"""
    (CAST(:state AS text) IS NULL OR state = :state)
    AND (CAST(:queue AS text) IS NULL OR queue = :queue)
    AND (CAST(:task AS text) IS NULL OR task = :task)
    AND {_BEFORE}
"""

# Dead letters are found in the index `jobs_dead_letters` alone, others by the time;
# their rows, which are wide, are read for the page only.
_LISTED = text(f"""
    SELECT {_COLUMNS} FROM ledger.jobs
    WHERE id = ANY(ARRAY(SELECT id FROM ledger.jobs WHERE {_FILTERS}
                         ORDER BY created_at DESC, id DESC LIMIT :limit))
    ORDER BY created_at DESC, id DESC
""")  # noqa: S608 -- constants of this module

# All that is in a state with an index of its own, in whatever order: looked for by time, the few
# that wait in a forgotten queue are behind everything that came since.
_WHOLE = text(f"""
    WITH whole AS MATERIALIZED (
        SELECT id, state, queue, task, created_at FROM ledger.jobs WHERE state = :state
    )
    SELECT {_COLUMNS} FROM ledger.jobs
    WHERE id = ANY(ARRAY(SELECT id FROM whole WHERE {_FILTERS}
                         ORDER BY created_at DESC, id DESC LIMIT :limit))
    ORDER BY created_at DESC, id DESC
""")  # noqa: S608 -- constants of this module

_WINDOW = text(f"""
    SELECT (array_agg(id ORDER BY created_at, id))[1] AS last, min(created_at) AS last_time,
           count(*) AS seen,
           array_agg(id ORDER BY created_at DESC, id DESC) FILTER (WHERE {_FILTERS}) AS ids
    FROM (SELECT id, state, queue, task, created_at FROM ledger.jobs WHERE {_BEFORE}
          ORDER BY created_at DESC, id DESC LIMIT :window) AS newest
""")  # noqa: S608 -- constants of this module

_CREATED = text("SELECT created_at FROM ledger.jobs WHERE id = :id")

_ATTEMPTS = text("""
    SELECT job_id, number, outcome, worker, started_at, ended_at, error, traceback
    FROM ledger.attempts
    WHERE job_id = ANY(CAST(:ids AS text[]))
    ORDER BY job_id, number
""")

_COUNTS = text("""
    SELECT state, count(*) AS jobs FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[])) GROUP BY state
""")

# Each state in the order of an index of its own, so that no row is read for it.
_COUNT_EACH = text(
    " UNION ALL ".join(
        f"""
        SELECT '{state}' AS state, count(*) AS jobs
        FROM (SELECT FROM ledger.jobs WHERE state = '{state}'
              ORDER BY {order} LIMIT {limit}) AS counted
        """  # noqa: S608 -- constants of this module
        for state, order, limit in (
            (State.SCHEDULED, "run_at", "ALL"),
            (State.QUEUED, "list, dispatch_seq", "ALL"),
            (State.RUNNING, "lease", "ALL"),
            (State.SUCCEEDED, "finished_at", ":most"),
            (State.FAILED, "created_at, id", ":most"),
            (State.CANCELLED, "created_at, id", ":most"),
        )
    )
)

_BY_INDEX = text("""
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true)
""")

_EXPECTED = text("EXPLAIN (FORMAT JSON) SELECT FROM ledger.jobs WHERE state = :state")

_SAME = {field.name for field in fields(Job)} - {"state", "message", "result", "progress"}


def read(ledger: Ledger, job_id: str) -> Job | None:
    """The job with this id and its attempts, `None` when there is none.

    Raises:
        Unavailable: Postgres is away.
    """
    found = read_many(ledger, [job_id])
    return found[0] if found else None


def read_many(ledger: Ledger, ids: Sequence[str]) -> list[Job]:
    """Those of `ids` that are known, newest first, with their attempts."""
    rows = ledger.rows(_BY_IDS, {"ids": list(ids)})
    attempts: dict[str, list[Attempt]] = {}
    for row in ledger.rows(_ATTEMPTS, {"ids": list(ids)}):
        attempts.setdefault(row.job_id, []).append(Attempt(*row[1:]))
    return [_job(row, tuple(attempts.get(row.id, ()))) for row in rows]


def read_list(
    ledger: Ledger,
    *,
    state: State | None = None,
    queue: str | None = None,
    task: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> list[Job]:
    """Jobs in the order of their creation, newest first; attempts are left out.

    Dead letters are found by an index, what waits or runs by reading all that does. Successes, and
    a queue or a task in any state, are looked for among the newest, then further back: what is rare
    takes as long as the ledger is deep, in many short statements that neither time out nor keep
    Postgres from vacuuming.

    Args:
        ledger: where.
        state, queue, task: only these.
        before: only jobs older than this one: the last of the page before.
        limit: rows, at most.

    Raises:
        NotFound: `before` is the id of no job.
        Unavailable: Postgres is away.
    """
    parameters = {
        "state": None if state is None else str(state),
        "queue": queue,
        "task": task,
        "before": before,
        "before_time": None if before is None else _created(ledger, before),
        "limit": limit,
    }
    if state in (State.FAILED, State.CANCELLED) or (state, queue, task) == (None, None, None):
        rows = ledger.rows(_LISTED, parameters)
    elif state in (None, State.SUCCEEDED):
        rows = ledger.rows(_BY_IDS, {"ids": _found(ledger, parameters)})
    else:
        rows = ledger.run(lambda connection: _whole(connection, parameters))
    return [_job(row, ()) for row in rows]


def _created(ledger: Ledger, job_id: str) -> datetime:
    for row in ledger.rows(_CREATED, {"id": job_id}):
        created: datetime = row.created_at
        return created
    raise NotFound(job_id)


def _whole(connection: Connection, parameters: dict[str, Any]) -> list[Any]:
    connection.execute(_BY_INDEX)
    return list(connection.execute(_WHOLE, parameters))


def _found(ledger: Ledger, parameters: dict[str, Any]) -> list[str]:
    """The ids of a page, by looking through every job from the newest on, a window at a time."""
    found: list[str] = []
    window, limit = FIRST_WINDOW, parameters["limit"]
    last = {name: parameters[name] for name in ("before", "before_time")}
    while len(found) < limit:
        (row,) = ledger.rows(_WINDOW, parameters | last | {"window": window})
        found += row.ids or ()
        if row.seen < window:
            break
        last = {"before": row.last, "before_time": row.last_time}
        window = min(window * 2, LAST_WINDOW)
    return found[:limit]


def counts(ledger: Ledger, ids: Sequence[str] | None = None) -> dict[State, int]:
    """How many jobs are in each state, of `ids` or of all.

    Of all those that have ended, more than `EXACT` in one state are Postgres's own estimate.
    """
    if ids is not None:
        return {State(row.state): row.jobs for row in ledger.rows(_COUNTS, {"ids": list(ids)})}

    def work(connection: Connection) -> dict[State, int]:
        connection.execute(_BY_INDEX)
        rows = connection.execute(_COUNT_EACH, {"most": EXACT + 1})
        found = {State(row.state): int(row.jobs) for row in rows if row.jobs}
        for state in FINAL & {state for state, jobs in found.items() if jobs > EXACT}:
            ((plan,),) = connection.execute(_EXPECTED, {"state": str(state)})
            found[state] = max(found[state], int(plan[0]["Plan"]["Plan Rows"]))
        return found

    return ledger.run(work)


def _job(row: Any, attempts: tuple[Attempt, ...]) -> Job:
    values = {name: getattr(row, name) for name in _SAME - {"attempts"}}
    return Job(
        **values,
        state=State(row.state),
        message=Message(row.envelope, bytes(row.body)),
        result=None if row.result is None else bytes(row.result),
        progress=None if row.progress is None else bytes(row.progress),
        attempts=attempts,
    )
