"""Insert jobs and commit: the moment from which they cannot be lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection

from worker.errors import Conflict
from worker.jobs.ids import checked_id
from worker.jobs.job import Enqueued, NewJob
from worker.ledger.batches import batches
from worker.ledger.database import Ledger
from worker.ledger.insert import arrays_of, insert, insert_at_once, size_of

#: Rows in one INSERT: large enough to amortise the round trip, small enough to bound memory.
BATCH = 1000


def enqueue(
    ledger: Ledger, jobs: Sequence[NewJob], *, atomic: bool = False
) -> list[Enqueued | Conflict]:
    """Insert `jobs` and commit; the answers stand in the order of `jobs`.

    An identical repeat (same id or key, same request) is answered with the job that is there.

    Args:
        ledger: where.
        jobs: any number; inserted in batches of `BATCH`, each of them one transaction.
        atomic: all or none, in one transaction; a conflict is raised.

    Raises:
        MalformedId: an id that the ledger cannot hold; nothing was inserted.
        Conflict: only with `atomic`; nothing was inserted.
        Unavailable: Postgres is away; what was not answered may be sent again.
    """
    if not atomic:
        return [answer for part in enqueue_in_parts(ledger, jobs) for answer in part]
    _check_ids(jobs)
    return list(ledger.run(lambda connection: _insert_all_or_none(connection, jobs)))


def enqueue_in_parts(ledger: Ledger, jobs: Sequence[NewJob]) -> Iterator[list[Enqueued | Conflict]]:
    """Insert `jobs` and commit, batch by batch; yields the answers of each, in order.

    While Postgres inserts a batch, the caller has the answers of the one before, and the next is
    made ready. Who stops in the middle leaves that one batch behind: committed, and not told.

    Raises:
        MalformedId: an id that the ledger cannot hold; nothing was inserted.
        Refused: Postgres refuses a batch; those before it are told.
        Unavailable: Postgres is away; what was not answered may be sent again.
    """
    _check_ids(jobs)
    parts = batches(jobs, BATCH, size_of)
    first, second = next(parts, None), next(parts, None)
    if first is None:
        return
    if second is None:
        lone = insert_at_once(ledger, first[0]) if len(first) == 1 else None
        yield [lone] if lone else ledger.run_each(lambda connection: insert(connection, first))
        return

    def commit(part: Sequence[NewJob], arrays: dict[str, str]) -> list[Enqueued | Conflict]:
        return ledger.run_each(lambda connection: insert(connection, part, arrays))

    with ThreadPoolExecutor(1, "enqueue") as thread:
        under_way = thread.submit(commit, first, arrays_of(first))
        for part in itertools.chain((second,), parts):
            try:
                arrays = arrays_of(part)
            except Exception:
                yield under_way.result()
                raise
            answers = under_way.result()
            under_way = thread.submit(commit, part, arrays)
            yield answers
        yield under_way.result()


def _insert_all_or_none(
    connection: Connection, jobs: Sequence[NewJob]
) -> list[Enqueued | Conflict]:
    answers: list[Enqueued | Conflict] = []
    for batch in batches(jobs, BATCH, size_of):
        answers += insert(connection, batch)
    _raise_conflict(answers)
    return answers


def _check_ids(jobs: Sequence[NewJob]) -> None:
    for job in jobs:
        checked_id(job.id)


def _raise_conflict(answers: Sequence[Enqueued | Conflict]) -> None:
    for answer in answers:
        if isinstance(answer, Conflict):
            raise answer
