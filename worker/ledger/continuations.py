"""Continuations: what follows a final move, done in the transaction that makes the move.

Every statement that makes a job final is followed by `carry_on`, whoever makes it: worker, keeper,
operator, retention. A test holds every such statement to that (PROTOCOL 29). The one exception is a
task's return, which publishes what follows it and hands that over with its finish.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, text

from worker.errors import Conflict
from worker.jobs.continuations import (
    CHORD_UNLOCK,
    NOTHING_FOLLOWS,
    FinalJob,
    ended_after,
    errback_calls,
)
from worker.jobs.job import Ended, Message, Ring
from worker.jobs.states import State
from worker.ledger.arrays import literal
from worker.ledger.batches import batches
from worker.ledger.insert import insert, size_of

#: Rows of one statement.
BATCH = 500

# Most jobs have nothing that follows them, and say so in the last bytes of their body: of those no
# row is read. The state is asked again, because a job that is no longer final has no end.
_FINAL = text(f"""
    SELECT id, task, queue, priority, state, error, result, result_type, traceback, root_id,
           envelope, body
    FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[]))
      AND (state = (SELECT 'failed') OR state = (SELECT 'cancelled')
           OR state = (SELECT 'succeeded'))
      AND (substring(body FROM octet_length(body) - {len(NOTHING_FOLLOWS) - 1}) <> :nothing
           OR task = '{CHORD_UNLOCK}')
    ORDER BY id
""")  # noqa: S608 -- constants

_FIELDS = {
    "id": "text",
    "task": "text",
    "queue": "text",
    "state": "text",
    "result": "bytea",
    "result_type": "text",
    "error": "text",
    "traceback": "text",
    "parent_id": "text",
    "root_id": "text",
    "group_id": "text",
}
_ARRAYS = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _FIELDS.items())

# In id order, as every batch (PROTOCOL 20). A row that is there already stays as it is, unless it
# waits for a message that nobody will bring any more: a job replaced by a canvas.
_INSERT_ENDED = text(f"""
    INSERT INTO ledger.jobs ({", ".join(_FIELDS)}, list, priority, fingerprint, envelope, body,
                      finished_at)
    SELECT {", ".join(_FIELDS)}, '', 0, '', '{{}}', '', clock_timestamp()
    FROM unnest({_ARRAYS}) AS new ({", ".join(_FIELDS)})
    ORDER BY id COLLATE "C"
    ON CONFLICT (id) DO UPDATE
    SET state = excluded.state, result = excluded.result, result_type = excluded.result_type,
        error = excluded.error, traceback = excluded.traceback,
        finished_at = excluded.finished_at, run_at = NULL
    WHERE jobs.state = 'scheduled' AND jobs.run_at = 'infinity'
      AND excluded.state IN ('failed', 'cancelled')
    RETURNING id, list <> '' AS had_a_message
""")  # noqa: S608 -- constants of this module


def carry_on(
    connection: Connection, ids: Sequence[str], *, errbacks_done: Collection[str] = ()
) -> list[Ring]:
    """End the jobs that were to follow `ids`, and enqueue the calls of their errbacks.

    Args:
        connection: in the transaction that has just made `ids` final.
        ids: jobs whose task did not return: failed, cancelled, or succeeded by `Ignore`.
        errbacks_done: those of `ids` whose errbacks are called already, or shall not be. Those of
            the other failed ones are called by a job of their queue.

    Returns:
        Doorbells to push after the commit; those that are not are rung by the keeper.
    """
    if not ids:
        return []
    ended: list[Ended] = []
    calls = []
    for job in _final(connection, ids):
        ended += ended_after(job)
        if job.state is State.FAILED and job.id not in errbacks_done:
            calls += errback_calls(job)
    insert_ended(connection, ended)
    rings = []
    for part in batches(calls, BATCH, size_of):
        for answer in insert(connection, part):
            if not isinstance(answer, Conflict) and answer.ring is not None:
                rings.append(answer.ring)
    return rings


def insert_ended(connection: Connection, ended: Sequence[Ended]) -> None:
    """Insert jobs that are final from the start, in the caller's transaction.

    One that awaits the message of what replaced it ends too, and what was to follow it: that
    message will never come. Its errbacks are those of what replaced it, and are not called twice.
    """
    while ended:
        reasons = {job.id: job for job in reversed(ended)}  # of two for one job, the first
        awaited = []
        for part in batches(reasons.values(), BATCH, _size_of):
            columns = {name: literal([getattr(job, name) for job in part]) for name in _FIELDS}
            inserted = connection.execute(_INSERT_ENDED, columns)
            awaited += [row.id for row in inserted if row.had_a_message]
        ended = [
            later
            for job in _final(connection, awaited)
            for later in ended_after(job, because=reasons[job.id])
        ]


def _final(connection: Connection, ids: Sequence[str]) -> list[FinalJob]:
    if not ids:
        return []
    parameters = {"ids": literal(ids), "nothing": NOTHING_FOLLOWS}
    return [_job(row) for row in connection.execute(_FINAL, parameters)]


def _job(row: Any) -> FinalJob:
    return FinalJob(
        id=row.id,
        task=row.task,
        queue=row.queue,
        priority=row.priority,
        state=State(row.state),
        message=Message(row.envelope, bytes(row.body)),
        error=row.error,
        result=None if row.result is None else bytes(row.result),
        result_type=row.result_type,
        traceback=row.traceback,
        root_id=row.root_id,
    )


def _size_of(job: Ended) -> int:
    return len(job.result or b"") + len(job.traceback or "")
