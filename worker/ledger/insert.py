"""Insert jobs' rows: one statement for a batch of them, and what is there already is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, text

from worker.errors import Conflict, LedgerUnavailable
from worker.jobs.job import Enqueued, NewJob, Ring
from worker.jobs.states import State
from worker.ledger.arrays import literal
from worker.ledger.database import Ledger
from worker.ledger.ended import end_followers
from worker.ledger.faults import translated
from worker.ledger.guards import REVOKED
from worker.ledger.prepared import Prepared

#: Id, list and dispatch number of a new row; a job that is not due has no number yet.
NewRow = tuple[str, str, int | None]

#: Inserts of a job that meet a row each time which is gone a moment later.
TRIES: Final = 5

#: What a new row is made of, with the types of Postgres.
_FIELDS = {
    "id": "text",
    "task": "text",
    "queue": "text",
    "list": "text",
    "priority": "smallint",
    "delay": "float8",
    "expires": "float8",
    "key": "text",
    "fingerprint": "bytea",
    "parent_id": "text",
    "root_id": "text",
    "group_id": "text",
    "envelope": "text",
    "body": "bytea",
}
#: Those that are the message's.
_SAID = ("envelope", "body")

_ARRAYS = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in _FIELDS.items())

# Numbered as they come, which is the order of their doorbells; inserted in one order because who
# inserts a key or an id that another transaction has just inserted waits for its end, and two
# opposite batches would wait for each other.
_INSERT = text(f"""
    WITH new AS MATERIALIZED (
        SELECT *, CASE WHEN delay > 0 THEN NULL ELSE nextval('ledger.dispatch_seq') END AS seq
        FROM unnest({_ARRAYS}) AS new ({", ".join(_FIELDS)})
    )
    INSERT INTO ledger.jobs (id, task, queue, list, priority, state, run_at, expires_at,
                      dispatch_seq, dispatched_at, rings, key, fingerprint, parent_id, root_id,
                      group_id, envelope, body)
    SELECT id, task, queue, list, priority,
           CASE WHEN delay > 0 THEN 'scheduled' ELSE 'queued' END,
           CASE WHEN delay > 0 THEN clock_timestamp() + delay * interval '1 second' END,
           clock_timestamp() + expires * interval '1 second',
           seq, clock_timestamp(),
           CASE WHEN delay > 0 THEN 0 ELSE 1 END,
           key, fingerprint, parent_id, root_id, group_id, envelope, body
    FROM new
    ORDER BY key COLLATE "C" NULLS FIRST, id COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING id, list, dispatch_seq
""")  # noqa: S608 -- constants of this module

#: What a lone job most often is made of: it is due, and nothing but a key is said of it. Who
#: enqueues it waits for each step on the way, and these are fewer.
_PLAIN = ("id", "task", "queue", "list", "priority", "key", "fingerprint", "root_id", "envelope",
          "body")  # fmt: skip
_INSERT_PLAIN = Prepared(
    "enqueue",
    text(f"""
    INSERT INTO ledger.jobs (state, dispatch_seq, dispatched_at, rings, {", ".join(_PLAIN)})
    VALUES ('queued', nextval('ledger.dispatch_seq'), clock_timestamp(), 1,
            {", ".join(f":{name}" for name in _PLAIN)})
    ON CONFLICT DO NOTHING
    RETURNING dispatch_seq
"""),  # noqa: S608 -- constants of this module
)

# A job replaced by a canvas waits for ever, until the canvas's last step brings its message. A
# later step of a failed chain has ended without ever having been enqueued. Where a step before
# either failed, is replayed and succeeds, the message comes after all. Whoever cancels the job
# itself takes the infinity away.
_AWAITS = """
    (run_at = 'infinity' AND state IN ('scheduled', 'failed', 'cancelled')
     OR state IN ('failed', 'cancelled') AND list = '' AND attempt = 0 AND fingerprint <> 'revoked')
"""

_KNOWN = text(f"""
    SELECT id, key, fingerprint, COALESCE({_AWAITS}, false) AS awaits FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[])) OR key = ANY(CAST(:keys AS text[]))
""")  # noqa: S608 -- constants of this module

_FILL_AWAITED = text(f"""
    UPDATE ledger.jobs
    SET state = CASE WHEN said.delay > 0 THEN 'scheduled' ELSE 'queued' END,
        task = :task, queue = :queue, list = :list, priority = :priority,
        run_at = CASE WHEN said.delay > 0
                      THEN clock_timestamp() + said.delay * interval '1 second' END,
        dispatch_seq = CASE WHEN said.delay > 0 THEN NULL
                            ELSE nextval('ledger.dispatch_seq') END,
        dispatched_at = clock_timestamp(),
        expires_at = COALESCE(clock_timestamp() + :expires * interval '1 second', expires_at),
        rings = CASE WHEN said.delay > 0 THEN 0 ELSE 1 END,
        envelope = :envelope, body = :body, fingerprint = :fingerprint,
        result = NULL, result_type = NULL, error = NULL, traceback = NULL, finished_at = NULL
    FROM (SELECT CAST(:delay AS float8) AS delay) AS said
    WHERE id = :id AND {_AWAITS}
    RETURNING id, list, dispatch_seq
""")  # noqa: S608 -- constants of this module


def insert(
    connection: Connection, jobs: Sequence[NewJob], tries: int = TRIES
) -> list[Enqueued | Conflict]:
    """Insert `jobs` on the caller's connection; the answers stand in their order.

    Bears to be done in parts; see `worker.ledger.enqueue`.

    Args:
        connection: in a transaction, or one on which each statement commits by itself.
        jobs: at most a batch.
        tries: how often, where retention deletes what an insert has met.

    Raises:
        Unavailable: what an insert meets is gone a moment later, each time.
    """
    new = insert_rows(connection, arrays_of(jobs))
    if len(new) == len(jobs):
        return answers_if_new(jobs, new)
    return answers_of(connection, jobs, new, tries)


def insert_rows(connection: Connection, arrays: dict[str, str]) -> list[NewRow]:
    """Insert what `arrays_of` made of a batch; the rows that were not there before."""
    return [tuple(row) for row in connection.execute(_INSERT, arrays)]


def answers_if_new(jobs: Sequence[NewJob], new: Sequence[NewRow]) -> list[Enqueued | Conflict]:
    """The answers to a batch of which each job has one of the `new` rows."""
    rings = _rings_of(new)
    return [Enqueued(job.id, True, rings[job.id]) for job in jobs]


def answers_of(
    connection: Connection, jobs: Sequence[NewJob], new: Sequence[NewRow], tries: int = TRIES
) -> list[Enqueued | Conflict]:
    """The answers to any batch: some jobs were there before, or are doubles of others in it.

    A job that met a row which is gone by now, as retention deletes it, is inserted again.

    Args:
        connection: as of `insert`.
        jobs: the batch.
        new: what `insert_rows` made of it.
        tries: as of `insert`.
    """
    created = _rings_of(new)
    repeated = {job_id for job_id, times in Counter(job.id for job in jobs).items() if times > 1}
    unsure = [job for job in jobs if job.id not in created or job.id in repeated]
    known = _known(connection, unsure) if unsure else {}
    revoked = [job for job in unsure if _is_revoked(known.get(("id", job.id)))]
    end_followers(connection, revoked, State.CANCELLED, "revoked before it was sent")
    answers: list[Enqueued | Conflict | None] = []
    for job in jobs:
        # Of several jobs with one id, Postgres may have taken any; the row says which.
        ours = job.id not in repeated or _is_same(known.get(("id", job.id)), job)
        if job.id in created and ours:
            answers.append(Enqueued(job.id, True, created.pop(job.id)))
        else:
            answers.append(_answer(connection, job, known))
    gone = [job for job, answer in zip(jobs, answers, strict=True) if answer is None]
    if gone and tries <= 1:
        raise LedgerUnavailable(
            f"Job {gone[0].id!r} meets a row again and again that is gone a moment later;"
            " send it once more."
        )
    again = iter(insert(connection, gone, tries - 1) if gone else ())
    return [next(again) if answer is None else answer for answer in answers]


def _rings_of(new: Sequence[NewRow]) -> dict[str, Ring | None]:
    return {job_id: Ring(job_id, name, seq) if seq else None for job_id, name, seq in new}


def insert_at_once(ledger: Ledger, job: NewJob) -> Enqueued | None:
    """Insert a lone plain job and commit; `None`: `insert` must find what there is of it.

    Raises:
        Unavailable, Refused: as `Ledger.transaction`.
    """
    if not _is_plain(job):
        return None
    try:
        values = _values(job, _PLAIN)
    except ValueError:
        return None  # and `insert` says what is wrong with it
    rows = ledger.rows_at_once(_INSERT_PLAIN, values)
    return Enqueued(job.id, True, Ring(job.id, job.list, rows[0][0])) if rows else None


def size_of(job: NewJob) -> int:
    """About how many bytes a job takes in a statement."""
    return len(job.message.body) + len(job.message.envelope)


def _is_plain(job: NewJob) -> bool:
    return (
        job.delay is None and job.expires is None and job.parent_id is None and job.group_id is None
    )


def _values(job: NewJob, names: Iterable[str] = _FIELDS) -> dict[str, Any]:
    return {name: getattr(job.message if name in _SAID else job, name) for name in names}


def arrays_of(jobs: Sequence[NewJob]) -> dict[str, str]:
    """What `insert_rows` sends of `jobs`.

    Raises:
        Refused: Postgres would refuse some text.
    """
    with translated():
        return {
            name: literal([getattr(job.message if name in _SAID else job, name) for job in jobs])
            for name in _FIELDS
        }


def _known(connection: Connection, jobs: Sequence[NewJob]) -> dict[tuple[str, str], Any]:
    keys = [job.key for job in jobs if job.key]
    rows = connection.execute(
        _KNOWN, {"ids": literal([job.id for job in jobs]), "keys": literal(keys)}
    )
    known: dict[tuple[str, str], Any] = {}
    for row in rows:
        known["id", row.id] = row
        if row.key is not None:
            known["key", row.key] = row
    return known


def _answer(
    connection: Connection, job: NewJob, known: dict[tuple[str, str], Any]
) -> Enqueued | Conflict | None:
    """What there is of a job that was not inserted; `None` when that is gone by now."""
    by_key = known.get(("key", job.key)) if job.key is not None else None
    row = by_key or known.get(("id", job.id))
    if row is None:
        return None
    if row.awaits and row.id == job.id:
        return _fill_awaited(connection, job)
    if _is_same(row, job):
        return Enqueued(row.id, False, None)
    if by_key is not None:
        return Conflict(
            f"The idempotency key {job.key!r} belongs to job {by_key.id} with another payload;"
            " use a new key for a new request."
        )
    return Conflict(
        f"The id {job.id!r} belongs to another job; leave the id out, or use a new one."
    )


def _fill_awaited(connection: Connection, job: NewJob) -> Enqueued | None:
    """Give a row that awaits its message that message; `None` when it does not await it now."""
    names = ("id", "task", "queue", "list", "priority", "delay", "expires")
    parameters = {name: getattr(job, name) for name in names}
    parameters |= {
        "envelope": job.message.envelope,
        "body": job.message.body,
        "fingerprint": job.fingerprint,
    }
    filled = connection.execute(_FILL_AWAITED, parameters).first()
    if filled is None:
        return None
    return Enqueued(job.id, True, Ring(*filled) if filled.dispatch_seq else None)


def _is_same(row: Any, job: NewJob) -> bool:
    return row is not None and bytes(row.fingerprint) in (job.fingerprint, REVOKED)


def _is_revoked(row: Any) -> bool:
    return row is not None and bytes(row.fingerprint) == REVOKED
