"""Insert jobs and commit: the moment from which they cannot be lost."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Final, ParamSpec, Self, TypeVar

from sqlalchemy import Connection

from worker.errors import Conflict
from worker.jobs.ids import checked_id
from worker.jobs.job import Enqueued, NewJob, Ring
from worker.ledger.batches import batches
from worker.ledger.database import Ledger
from worker.ledger.insert import (
    NewRow,
    answers_if_new,
    answers_of,
    arrays_of,
    insert,
    insert_at_once,
    insert_rows,
    size_of,
)

P = ParamSpec("P")
T = TypeVar("T")

#: Rows in one INSERT: large enough to amortise the round trip, small enough to bound memory.
BATCH: Final = 1000
#: Seconds after which a batch gets no more jobs: a source may be slow.
OPEN: Final = 1.0
#: Batches that were given to Postgres, or stand next, while the caller has the one before them.
AHEAD: Final = 2

#: The rows that a batch made, and its answers where these are not all that there is to it.
_Inserted = tuple[list[NewRow], list[Enqueued | Conflict] | None]


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
    if atomic:
        return ledger.run(lambda connection: _insert_all_or_none(connection, jobs))
    if len(jobs) == 1:
        return _insert(ledger, jobs)
    with closing(enqueue_in_parts(ledger, jobs)) as parts:
        return [answer for part in parts for answer in part]


def enqueue_in_parts(
    ledger: Ledger,
    jobs: Iterable[NewJob],
    on_committed: Callable[[Sequence[Ring]], object] = lambda rings: None,
) -> Generator[list[Enqueued | Conflict], None, None]:
    """Insert `jobs` and commit, batch by batch; yields the answers of each, in order.

    Jobs are taken as they are needed: while Postgres inserts one batch and `on_committed` has the
    one before, the caller makes the next ready. Who stops in the middle leaves at most `AHEAD`
    batches behind that are committed and not told; after an error it is one more, of which it is
    unknown.

    Args:
        ledger: where.
        jobs: any number, with ids that were checked. What it raises ends everything at once. Where
            it is no list, a batch that is `OPEN` seconds old is closed when the next job comes.
        on_committed: given the doorbells of each batch in their order, before its answers are
            yielded; by another thread, unless everything is one batch of a list.

    Raises:
        Refused: Postgres refuses a batch; those before it are told.
        Unavailable: Postgres is away; what was not answered may be sent again.
    """
    parts = batches(jobs, BATCH, size_of, math.inf if isinstance(jobs, Sequence) else OPEN)
    if isinstance(jobs, Sequence) and len(jobs) <= BATCH:
        first = next(parts, [])
        if len(first) == len(jobs):
            if first:
                told = _insert(ledger, first)
                on_committed(rings_of(told))
                yield told
            return
        parts = itertools.chain((first,), parts)
    with _Inserting(ledger, on_committed) as inserting:
        for part in parts:
            try:
                inserting.begin(part)
            except Exception:
                yield from inserting.take_rest()
                raise
            while inserting.is_full or inserting.has_answers:
                yield inserting.take()
        yield from inserting.take_rest()


def _insert(ledger: Ledger, batch: Sequence[NewJob]) -> list[Enqueued | Conflict]:
    lone = insert_at_once(ledger, batch[0]) if len(batch) == 1 else None
    return [lone] if lone else ledger.run_each(lambda connection: insert(connection, batch))


def rings_of(told: Iterable[Enqueued | Conflict]) -> list[Ring]:
    """The doorbells to push, in their order."""
    rings = [one.ring for one in told if isinstance(one, Enqueued) and one.ring is not None]
    return sorted(rings, key=lambda ring: ring.seq)


class _Inserting:
    """Batches on their way: one thread inserts them in their order, another one passes them on.

    Each takes the next without waiting for the caller, who may be busy for long: all that they wait
    for is Postgres, or Redis, and once a batch for the interpreter's lock.
    """

    def __init__(self, ledger: Ledger, on_committed: Callable[[Sequence[Ring]], object]) -> None:
        self._ledger, self._on_committed = ledger, on_committed
        self._inserter = ThreadPoolExecutor(1, "enqueue")
        self._passer = ThreadPoolExecutor(1, "enqueue-committed")
        self._has_threads = True
        self._begun: deque[Future[list[Enqueued | Conflict]]] = deque()
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inserter.shutdown(cancel_futures=True)
        self._passer.shutdown()  # what is committed is passed on

    @property
    def is_full(self) -> bool:
        """Whether answers must be taken before another batch begins."""
        return len(self._begun) > AHEAD

    @property
    def has_answers(self) -> bool:
        """Whether the next answers can be taken at once."""
        return bool(self._begun) and self._begun[0].done()

    def begin(self, part: Sequence[NewJob]) -> None:
        """Insert `part` once those before it are inserted."""
        inserted = self._submit(self._inserter, self._insert, part, arrays_of(part))
        self._begun.append(self._submit(self._passer, self._pass_on, part, inserted))

    def take(self) -> list[Enqueued | Conflict]:
        """The answers of the first batch whose answers were not taken yet."""
        return self._begun.popleft().result()

    def take_rest(self) -> Iterator[list[Enqueued | Conflict]]:
        """The answers of each batch whose answers were not taken yet."""
        while self._begun:
            yield self.take()

    def _submit(
        self, thread: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """`work` by `thread`; here, once no thread can start any more: the interpreter is at its
        end, or the system has no more of them."""
        if self._has_threads:
            try:
                return thread.submit(work, *args, **kwargs)
            except RuntimeError:
                self._has_threads = False  # for good: its work may stand in line there all the same
        wait(self._begun)
        done: Future[T] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except Exception as exc:
            done.set_exception(exc)
        return done

    def _insert(self, part: Sequence[NewJob], arrays: dict[str, str]) -> _Inserted:
        if self._failed:
            raise CancelledError  # which nobody is told: the batch that failed ends everything

        def work(connection: Connection) -> _Inserted:
            new = insert_rows(connection, arrays)
            return new, None if len(new) == len(part) else answers_of(connection, part, new)

        try:
            return self._ledger.run_each(work)
        except BaseException:
            self._failed = True
            raise

    def _pass_on(
        self, part: Sequence[NewJob], inserted: Future[_Inserted]
    ) -> list[Enqueued | Conflict]:
        new, told = inserted.result()
        if told is None:
            told = answers_if_new(part, new)
        self._on_committed(rings_of(told))
        return told


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
