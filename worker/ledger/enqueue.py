"""Insert jobs and commit: the moment from which they cannot be lost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy import Connection

from worker.errors import Conflict
from worker.jobs.ids import checked_id
from worker.jobs.job import Enqueued, NewJob
from worker.ledger.database import Ledger, batches
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

    While Postgres inserts one, the next is made ready, and the caller has the one before.

    Raises:
        MalformedId: an id that the ledger cannot hold; nothing was inserted.
        Unavailable: Postgres is away; what was not answered may be sent again.
    """
    _check_ids(jobs)
    parts = batches(jobs, BATCH, size_of)
    first = next(parts, None)
    if first is None:
        return
    second = next(parts, None)
    if second is None:
        if len(first) == 1 and (answer := insert_at_once(ledger, first[0])) is not None:
            yield [answer]
            return
        yield ledger.run_each(lambda connection: insert(connection, first))
        return
    inserter = _Inserter(ledger)
    with ThreadPoolExecutor(1, "enqueue") as thread:
        waiting: list[Future[list[Enqueued | Conflict]]] = []
        for part in itertools.chain((first, second), parts):
            waiting.append(thread.submit(inserter.insert, part, arrays_of(part)))
            if len(waiting) == 3:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


class _Inserter:
    """Inserts one batch after the other, until one fails: then none of those after it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._failed: Exception | None = None

    def insert(self, jobs: Sequence[NewJob], arrays: dict[str, str]) -> list[Enqueued | Conflict]:
        """See `enqueue_in_parts`."""
        if self._failed is not None:
            raise self._failed
        try:
            return self._ledger.run_each(lambda connection: insert(connection, jobs, arrays))
        except Exception as exc:
            self._failed = exc
            raise


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
