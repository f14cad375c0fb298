"""Jobs that end unrun: later steps that nobody will enqueue, and what waits for a replacement.

Below `worker.ledger.insert`, which ends what was to follow a message that it drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, text

from worker.jobs.continuations import CHORD_UNLOCK, NOTHING_FOLLOWS, FinalJob, ended_after
from worker.jobs.job import Ended, Message, NewJob
from worker.jobs.states import State
from worker.ledger.arrays import literal
from worker.ledger.batches import batches

#: Rows of one statement.
BATCH = 500
#: Bytes, about, of exceptions and tracebacks that jobs which end together may repeat: each later
#: step of a chain has those of the step that failed.
REPEATED = 8 << 20
#: The least that each of them keeps of the traceback, in characters.
SHORT = 200

# Most jobs have nothing that follows them, and say so in the last bytes of their body: of those no
# row is read. The state is asked again, because a job that is no longer final has no end. Of the
# others the sizes come first: a thousand bodies may be more than a process can hold at once.
_FOLLOWED = text(f"""
    SELECT id, octet_length(body) + octet_length(envelope) AS size FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[]))
      AND (state = (SELECT 'failed') OR state = (SELECT 'cancelled')
           OR state = (SELECT 'succeeded'))
      AND (substring(body FROM octet_length(body) - {len(NOTHING_FOLLOWS) - 1}) <> :nothing
           OR task = '{CHORD_UNLOCK}')
    ORDER BY id
""")  # noqa: S608 -- constants
_FINAL = text("""
    SELECT id, task, queue, priority, state, error, result, result_type, traceback, root_id,
           envelope, body
    FROM ledger.jobs WHERE id = ANY(CAST(:ids AS text[])) ORDER BY id
""")

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
# waits for a message that nobody will bring any more: a job replaced by a canvas. Its `run_at`
# stays: when a step of the canvas is replayed and succeeds, the message comes after all.
_INSERT_ENDED = text(f"""
    INSERT INTO ledger.jobs ({", ".join(_FIELDS)}, list, priority, fingerprint, envelope, body,
                      finished_at)
    SELECT {", ".join(_FIELDS)}, '', 0, '', '{{}}', '', clock_timestamp()
    FROM unnest({_ARRAYS}) AS new ({", ".join(_FIELDS)})
    ORDER BY id COLLATE "C"
    ON CONFLICT (id) DO UPDATE
    SET state = excluded.state, result = excluded.result, result_type = excluded.result_type,
        error = excluded.error, traceback = excluded.traceback,
        finished_at = excluded.finished_at
    WHERE jobs.state = 'scheduled' AND jobs.run_at = 'infinity'
      AND excluded.state IN ('failed', 'cancelled')
    RETURNING id, list <> '' AS had_a_message
""")  # noqa: S608 -- constants of this module


def insert_ended(connection: Connection, ended: Sequence[Ended]) -> None:
    """Insert jobs that are final from the start, in the caller's transaction.

    One that awaits the message of what replaced it ends too, and what was to follow it: that
    message will never come. Its errbacks are those of what replaced it, and are not called twice.
    """
    while ended:
        reasons = {job.id: job for job in reversed(ended)}  # of two for one job, the first
        awaited = []
        in_order = sorted(_bounded(list(reasons.values())), key=lambda job: job.id)
        for part in batches(in_order, BATCH, _size_of):
            columns = {name: literal([getattr(job, name) for job in part]) for name in _FIELDS}
            inserted = connection.execute(_INSERT_ENDED, columns)
            awaited += [row.id for row in inserted if row.had_a_message]
        ended = [
            later
            for job in read_final(connection, awaited)
            for later in ended_after(job, because=reasons[job.id])
        ]


def end_followers(
    connection: Connection, dropped: Sequence[NewJob], state: State, error: str
) -> None:
    """End what was to follow jobs whose message is dropped, in the caller's transaction.

    Args:
        connection: where one statement after the other may also commit by itself.
        dropped: the jobs, which will not run.
        state: failed or cancelled.
        error: why they will not.
    """
    ended: list[Ended] = []
    for job in dropped:
        final = FinalJob(
            job.id, job.task, job.queue, job.priority, state, job.message, error,
            root_id=job.root_id,
        )  # fmt: skip
        ended += ended_after(final)
    insert_ended(connection, ended)


def read_final(connection: Connection, ids: Sequence[str]) -> Iterator[FinalJob]:
    """Those of `ids` that are final and that something may follow; read in parts as they are taken,
    in the transaction that has made them final."""
    if not ids:
        return
    parameters = {"ids": literal(ids), "nothing": NOTHING_FOLLOWS}
    followed = connection.execute(_FOLLOWED, parameters).all()
    for part in batches(followed, BATCH, lambda row: int(row.size)):
        rows = connection.execute(_FINAL, {"ids": literal([row.id for row in part])}).all()
        yield from map(_job, rows)


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


def _bounded(ended: list[Ended]) -> list[Ended]:
    """`ended`; where it repeats too much, only the first and the last, one of which is the chain's
    last step, keep all of it. The others keep the reason and as much as is left for each."""
    if sum(map(_size_of, ended)) <= REPEATED:
        return ended
    share = max(SHORT, REPEATED // len(ended))
    return [ended[0], *(_shortened(job, share) for job in ended[1:-1]), *ended[1:][-1:]]


def _shortened(job: Ended, share: int) -> Ended:
    traceback = job.traceback
    if traceback is not None and len(traceback) > share:
        half = share // 2
        traceback = f"{traceback[:half]}\n… cut …\n{traceback[-half:]}"
    if len(job.result or b"") > share:
        return replace(job, result=None, result_type=None, traceback=traceback)
    return replace(job, traceback=traceback)


def _size_of(job: Ended) -> int:
    return len(job.result or b"") + len(job.traceback or "")
