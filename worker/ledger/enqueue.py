"""Insert jobs and commit: the moment from which they cannot be lost."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Final, Self

from sqlalchemy import Connection

from worker.errors import Conflict
from worker.jobs.ids import checked_id
from worker.jobs.job import Enqueued, NewJob
from worker.ledger.batches import batches
from worker.ledger.database import Ledger
from worker.ledger.insert import (
    NewRow,
    answers,
    answers_if_new,
    arrays_of,
    insert,
    insert_at_once,
    insert_rows,
    size_of,
)

#: Rows in one INSERT: large enough to amortise the round trip, small enough to bound memory.
BATCH: Final = 1000
#: Batches that were given to Postgres, or stand next, while the caller has the one before them.
AHEAD: Final = 2


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
    for job in jobs:
        checked_id(job.id)
    if not atomic:
        return [answer for part in enqueue_in_parts(ledger, jobs) for answer in part]
    return list(ledger.run(lambda connection: _insert_all_or_none(connection, jobs)))


def enqueue_in_parts(ledger: Ledger, jobs: Iterable[NewJob]) -> Iterator[list[Enqueued | Conflict]]:
    """Insert `jobs` and commit, batch by batch; yields the answers of each, in order.

    Jobs are taken as they are needed: while Postgres inserts a batch, the next is made ready, and
    the caller has the answers of the one before. Who stops in the middle leaves at most `AHEAD`
    batches behind: committed, and not told. So does an error.

    Args:
        ledger: where.
        jobs: any number, with ids that were checked.

    Raises:
        Refused: Postgres refuses a batch; those before it are told, none after it is inserted.
        Unavailable: Postgres is away; what was not answered may be sent again.
    """
    parts = batches(jobs, BATCH, size_of)
    first, second = next(parts, None), next(parts, None)
    if first is None:
        return
    if second is None:
        lone = insert_at_once(ledger, first[0]) if len(first) == 1 else None
        yield [lone] if lone else ledger.run_each(lambda connection: insert(connection, first))
        return
    with _Inserting(ledger) as inserting:
        for part in itertools.chain((first, second), parts):
            try:
                inserting.begin(part)
            except Exception:
                yield from inserting.end_all()
                raise
            if inserting.is_full:
                yield inserting.end()
        yield from inserting.end_all()


class _Inserting:
    """Batches that one thread inserts, in their order.

    It takes the next one without waiting for its caller, who may be busy for long: what it has to
    wait for is Postgres, and once a batch for the interpreter's lock.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._thread = ThreadPoolExecutor(1, "enqueue")
        self._begun: deque[tuple[Sequence[NewJob], Future[list[NewRow]]]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    @property
    def is_full(self) -> bool:
        return len(self._begun) > AHEAD

    def begin(self, part: Sequence[NewJob]) -> None:
        """Insert `part` once those before it are inserted."""
        self._begun.append((part, self._thread.submit(self._insert, arrays_of(part))))

    def end(self) -> list[Enqueued | Conflict]:
        """The answers of the first batch that was not ended yet."""
        part, new_rows = self._begun.popleft()
        new = new_rows.result()
        return answers_if_new(part, new) or self._ledger.run_each(
            lambda connection: answers(connection, part, new)
        )

    def end_all(self) -> Iterator[list[Enqueued | Conflict]]:
        """The answers of each batch that was not ended yet."""
        while self._begun:
            yield self.end()

    def _insert(self, arrays: dict[str, str]) -> list[NewRow]:
        if self._failed:
            raise CancelledError
        try:
            return self._ledger.run_each(lambda connection: insert_rows(connection, arrays))
        except BaseException:
            self._failed = True
            raise


def _insert_all_or_none(
    connection: Connection, jobs: Sequence[NewJob]
) -> list[Enqueued | Conflict]:
    answers: list[Enqueued | Conflict] = []
    for batch in batches(jobs, BATCH, size_of):
        answers += insert(connection, batch)
    _raise_conflict(answers)
    return answers


def _raise_conflict(answers: Sequence[Enqueued | Conflict]) -> None:
    for answer in answers:
        if isinstance(answer, Conflict):
            raise answer
