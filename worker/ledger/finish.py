"""Write how attempts ended: only by the fence's holder, exactly once, many in one statement."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from worker.errors import Conflict
from worker.jobs.job import Finish, Ring
from worker.jobs.states import State
from worker.ledger.arrays import literal
from worker.ledger.batches import columns
from worker.ledger.continuations import carry_on
from worker.ledger.database import Ledger
from worker.ledger.ended import end_followers, insert_ended
from worker.ledger.guards import RUNNING
from worker.ledger.insert import insert
from worker.ledger.interrupted import suspicion
from worker.ledger.prepared import Prepared

logger = logging.getLogger(__name__)

_INPUT = """
    input AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:id AS text[]), CAST(:attempt AS int[]), CAST(:lease AS text[]),
            CAST(:state AS text[]), CAST(:outcome AS text[]), CAST(:result AS bytea[]),
            CAST(:result_type AS text[]), CAST(:error AS text[]), CAST(:traceback AS text[]),
            CAST(:children AS text[]), CAST(:delay AS float8[]), CAST(:task AS text[]),
            CAST(:queue AS text[]), CAST(:list AS text[]), CAST(:priority AS smallint[]),
            CAST(:envelope AS text[]), CAST(:body AS bytea[]))
        AS i (id, attempt, lease, state, outcome, result, result_type, error, traceback, children,
              delay, task, queue, list, priority, envelope, body)
    )
"""
_FIELDS = (
    "id",
    "attempt",
    "lease",
    "state",
    "outcome",
    "result",
    "result_type",
    "error",
    "traceback",
    "children",
    "delay",
    "task",
    "queue",
    "list",
    "priority",
    "envelope",
    "body",
)

#: How an attempt ends of which the job's state, as Celery knows it, hears nothing.
_GIVEN_BACK = (
    "i.outcome IN ('lost', 'released', 'postponed') AND i.state IN ('queued', 'scheduled')"
)

# The rows are locked in id order, so that two opposite batches cannot deadlock (PROTOCOL 20). The
# guard stands twice: once to lock, once more because a waited-for row may have changed.
_FINISH = text(f"""
    WITH {_INPUT}, locked AS MATERIALIZED (
        SELECT jobs.id FROM ledger.jobs JOIN input i ON i.id = jobs.id
        WHERE jobs.state = {RUNNING} AND jobs.attempt = i.attempt AND jobs.lease = i.lease
        ORDER BY jobs.id
        FOR UPDATE OF jobs
    ), moved AS (
        UPDATE ledger.jobs
        SET state = i.state,
            -- A retry keeps its exception here; the attempt that is given back says nothing new.
            result = CASE WHEN {_GIVEN_BACK} THEN jobs.result ELSE i.result END,
            result_type = CASE WHEN {_GIVEN_BACK} THEN jobs.result_type ELSE i.result_type END,
            children = i.children, error = i.error,
            traceback = CASE WHEN {_GIVEN_BACK} THEN jobs.traceback ELSE i.traceback END,
            progress = CASE WHEN i.outcome = 'retried' THEN NULL ELSE jobs.progress END,
            progress_state = CASE WHEN i.outcome = 'retried' THEN NULL
                                  ELSE jobs.progress_state END,
            lost = CASE WHEN i.outcome = 'lost' THEN jobs.lost + 1
                        WHEN i.outcome IN ('released', 'postponed') THEN jobs.lost ELSE 0 END,
            suspicion = CASE WHEN i.outcome IN ('lost', 'released', 'postponed')
                             THEN {suspicion("i.error")} ELSE 0 END,
            finished_at = CASE WHEN i.state IN ('succeeded', 'failed', 'cancelled')
                               THEN clock_timestamp() END,
            run_at = CASE WHEN i.state <> 'scheduled' THEN jobs.run_at
                          WHEN i.delay = 'Infinity' THEN 'infinity'
                          ELSE clock_timestamp() + i.delay * interval '1 second' END,
            dispatch_seq = CASE WHEN i.state = 'queued' THEN nextval('ledger.dispatch_seq') END,
            dispatched_at = CASE WHEN i.state IN ('queued', 'scheduled') THEN clock_timestamp() END,
            rings = CASE WHEN i.state = 'queued' THEN 1 ELSE 0 END,
            task = COALESCE(i.task, jobs.task), queue = COALESCE(i.queue, jobs.queue),
            list = COALESCE(i.list, jobs.list),
            priority = COALESCE(i.priority, jobs.priority),
            envelope = COALESCE(i.envelope, jobs.envelope), body = COALESCE(i.body, jobs.body)
        FROM locked JOIN input i ON i.id = locked.id
        WHERE jobs.id = locked.id AND jobs.state = {RUNNING}
          AND jobs.attempt = i.attempt AND jobs.lease = i.lease
        RETURNING jobs.id, jobs.attempt, jobs.lease, jobs.worker, jobs.started_at, jobs.state,
                  jobs.list, jobs.dispatch_seq, jobs.suspicion, i.outcome, i.error, i.traceback
    ), noted AS (
        INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker, started_at, error,
                                     traceback)
        SELECT id, attempt, outcome, lease, worker, started_at, error, traceback FROM moved
        WHERE outcome NOT IN ('succeeded', 'postponed')
        ON CONFLICT DO NOTHING
    )
    SELECT id, list, dispatch_seq, suspicion FROM moved
""")  # noqa: S608 -- constants of the ledger

# What nearly every end is: a success that leaves no attempt, changes no message and rings for
# nothing. The same as above, for a quarter of the columns.
_SUCCEED = Prepared(
    "succeed",
    text(f"""
    WITH input AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:id AS text[]), CAST(:attempt AS int[]), CAST(:result AS bytea[]))
        AS i (id, attempt, result)
    ), locked AS MATERIALIZED (
        SELECT jobs.id FROM ledger.jobs JOIN input i ON i.id = jobs.id
        WHERE jobs.state = {RUNNING} AND jobs.attempt = i.attempt AND jobs.lease = :lease
        ORDER BY jobs.id
        FOR UPDATE OF jobs
    )
    UPDATE ledger.jobs
    SET state = 'succeeded', result = i.result, result_type = :result_type, children = NULL,
        error = NULL, traceback = NULL, lost = 0, suspicion = 0,
        finished_at = clock_timestamp(), dispatch_seq = NULL, dispatched_at = NULL, rings = 0
    FROM locked JOIN input i ON i.id = locked.id
    WHERE jobs.id = locked.id AND jobs.state = {RUNNING}
      AND jobs.attempt = i.attempt AND jobs.lease = :lease
    RETURNING jobs.id
"""),  # noqa: S608 -- constants of the ledger
)

# A commit whose reply was lost: final with my attempt and my lease is success (PROTOCOL 20).
_ALREADY = text(f"""
    WITH {_INPUT}
    SELECT jobs.id FROM ledger.jobs JOIN input i ON i.id = jobs.id
    WHERE jobs.attempt = i.attempt AND jobs.lease = i.lease AND jobs.state = i.state
""")  # noqa: S608 -- constants of the ledger

_PROGRESS = text(f"""
    UPDATE ledger.jobs SET progress = :progress, progress_state = :progress_state
    WHERE id = :id AND state = {RUNNING} AND attempt = :attempt AND lease = :lease
""")  # noqa: S608 -- constants of the ledger


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a batch of finishes.

    Attributes:
        granted: ids whose finish is written; the others were stale and wrote nothing.
        rings: doorbells to push for what became queued.
    """

    granted: frozenset[str]
    rings: tuple[Ring, ...]


def finish(ledger: Ledger, finishes: Sequence[Finish]) -> Finished:
    """Write `finishes`, each under its fence, and in one transaction with what follows it.

    Repeating a batch is harmless: what is written already counts as granted.

    Raises:
        Unavailable: Postgres is away; keep the batch and call again.
        Refused: Postgres refuses a value of the batch; call again with less of it.
    """
    followed = [end for end in finishes if end.is_followed]
    alone = [end for end in finishes if not end.is_followed]
    granted: frozenset[str] = frozenset()
    rings: tuple[Ring, ...] = ()
    if followed:
        done = ledger.run(lambda connection: _finish(connection, followed))
        granted, rings = done.granted, done.rings
    if alone:
        # Where nothing follows, ends need no transaction together: each statement is one.
        done = ledger.run_each(lambda connection: _finish_each(connection, alone))
        granted, rings = granted | done.granted, rings + done.rings
    return Finished(granted, rings)


def note_progress(
    ledger: Ledger, job_id: str, attempt: int, lease: str, progress: bytes, state: str
) -> None:
    """Keep what a running attempt says of itself; a stale attempt's word changes nothing."""
    ledger.rows(
        _PROGRESS,
        {
            "id": job_id,
            "attempt": attempt,
            "lease": lease,
            "progress": progress,
            "progress_state": state,
        },
    )


def _finish_each(connection: Connection, finishes: Sequence[Finish]) -> Finished:
    """As `_finish`, where nothing is published: plain successes by a statement of their own."""
    plain = [finish for finish in finishes if _is_plain(finish)]
    kinds = {(finish.fence.lease, finish.result_type) for finish in plain}
    granted: set[str] = set()
    for lease, result_type in kinds:
        some = [end for end in plain if (end.fence.lease, end.result_type) == (lease, result_type)]
        parameters = {
            "id": literal([end.fence.id for end in some]),
            "attempt": literal([end.fence.attempt for end in some]),
            "result": literal([end.result for end in some]),
            "lease": lease,
            "result_type": result_type,
        }
        granted |= {row.id for row in _SUCCEED.execute(connection, parameters)}
    done = _finish(connection, [end for end in finishes if end.fence.id not in granted])
    return Finished(done.granted | granted, done.rings)


def _is_plain(finish: Finish) -> bool:
    more = (finish.children, finish.error, finish.traceback, finish.replacement)
    return finish.is_return and all(value is None for value in more)


def _finish(connection: Connection, finishes: Sequence[Finish]) -> Finished:
    if not finishes:
        return Finished(frozenset(), ())
    moved = list(connection.execute(_FINISH, _parameters(finishes)))
    granted = {row.id for row in moved}
    # A suspect is not rung for: an isolated process asks the ledger for it.
    rings = [
        Ring(row.id, row.list, row.dispatch_seq)
        for row in moved
        if row.dispatch_seq is not None and not row.suspicion
    ]
    written = [end for end in finishes if end.fence.id in granted]
    rings += _publish(connection, written)
    over = [end for end in written if end.state.is_final and not end.is_return]
    done = {end.fence.id for end in over if end.errbacks_done}
    rings += carry_on(connection, [end.fence.id for end in over], errbacks_done=done)
    if stale := [f for f in finishes if f.fence.id not in granted]:
        granted |= {row.id for row in connection.execute(_ALREADY, _parameters(stale))}
    return Finished(frozenset(granted), tuple(rings))


def _publish(connection: Connection, finishes: Sequence[Finish]) -> list[Ring]:
    outbox = [(finish.fence.id, job) for finish in finishes for job in finish.outbox]
    ended = [job for finish in finishes for job in finish.ended]
    answers = insert(connection, [job for _, job in outbox]) if outbox else []
    if ended:
        insert_ended(connection, ended)
    rings: list[Ring] = []
    for (parent, job), answer in zip(outbox, answers, strict=True):
        if isinstance(answer, Conflict):
            # The end itself happened and stands; what should follow it cannot.
            logger.error("Job %s, to follow job %s, is not enqueued: %s", job.id, parent, answer)
            end_followers(connection, [job], State.FAILED, str(answer))
        elif answer.ring is not None:
            rings.append(answer.ring)
    return rings


def _parameters(finishes: Sequence[Finish]) -> dict[str, Any]:
    rows = [(*_own(end), *_replacement(end)) for end in finishes]
    return dict(zip(_FIELDS, map(literal, columns(rows, len(_FIELDS))), strict=True))


def _own(finish: Finish) -> tuple[Any, ...]:
    return (
        finish.fence.id,
        finish.fence.attempt,
        finish.fence.lease,
        str(finish.state),
        finish.outcome,
        finish.result,
        finish.result_type,
        finish.error,
        finish.traceback,
        finish.children,
        finish.delay if finish.state is State.SCHEDULED else None,
    )


def _replacement(finish: Finish) -> tuple[Any, ...]:
    job = finish.replacement
    if job is None:
        return (None,) * 6
    return (
        job.task,
        job.queue,
        job.list,
        job.priority,
        job.message.envelope,
        job.message.body,
    )
