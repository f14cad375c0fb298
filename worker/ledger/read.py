"""Answer "where is my job?"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import text

from worker.jobs.job import Attempt, Job, Message
from worker.jobs.states import State
from worker.ledger.database import Ledger

_COLUMNS = """
    id, task, queue, priority, state, attempt, lost, suspicion > 0 AS suspect, created_at,
    CASE WHEN run_at < 'infinity' THEN run_at END AS run_at,
    started_at, finished_at, expires_at, worker, key, parent_id, root_id, group_id, error,
    traceback, envelope, body, result, result_type, children, progress, progress_state
"""

_BY_IDS = text(f"""
    SELECT {_COLUMNS} FROM jobs WHERE id = ANY(CAST(:ids AS text[]))
""")  # noqa: S608 -- constants of this module

_LIST = text(f"""
    SELECT {_COLUMNS} FROM jobs
    WHERE (CAST(:state AS text) IS NULL OR state = :state)
      AND (CAST(:queue AS text) IS NULL OR queue = :queue)
      AND (CAST(:task AS text) IS NULL OR task = :task)
      AND (CAST(:before AS text) IS NULL OR id < :before)
    ORDER BY id DESC LIMIT :limit
""")  # noqa: S608 -- constants of this module

_ATTEMPTS = text("""
    SELECT job_id, number, outcome, worker, started_at, ended_at, error, traceback FROM attempts
    WHERE job_id = ANY(CAST(:ids AS text[]))
    ORDER BY job_id, number
""")

_COUNTS = text("""
    SELECT state, count(*) AS jobs FROM jobs WHERE id = ANY(CAST(:ids AS text[])) GROUP BY state
""")

_COUNT_ALL = text("SELECT state, count(*) AS jobs FROM jobs GROUP BY state")

_SAME = {field.name for field in fields(Job)} - {"state", "message", "result", "progress"}


def read(ledger: Ledger, job_id: str) -> Job | None:
    """The job with this id and its attempts, `None` when there is none.

    Raises:
        Unavailable: Postgres is away.
    """
    found = read_many(ledger, [job_id])
    return found[0] if found else None


def read_many(ledger: Ledger, ids: Sequence[str]) -> list[Job]:
    """Those of `ids` that are known, with their attempts, in no order."""
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
    """Jobs by falling id, which for ids made here is newest first; attempts are left out.

    Args:
        ledger: where.
        state, queue, task: only these.
        before: only ids below this one: the last id of the page before.
        limit: rows, at most.
    """
    parameters = {
        "state": None if state is None else str(state),
        "queue": queue,
        "task": task,
        "before": before,
        "limit": limit,
    }
    return [_job(row, ()) for row in ledger.rows(_LIST, parameters)]


def counts(ledger: Ledger, ids: Sequence[str] | None = None) -> dict[State, int]:
    """How many jobs are in each state, of `ids` or of all."""
    rows = ledger.rows(_COUNT_ALL) if ids is None else ledger.rows(_COUNTS, {"ids": list(ids)})
    return {State(row.state): row.jobs for row in rows}


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
