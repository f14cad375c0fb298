"""The connection to Postgres, and what its errors mean to the rest of the house."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    ExceptionContext,
    TextClause,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from worker.errors import InvalidSettings, LedgerError, LedgerUnavailable, SchemaMissing
from worker.ledger.silence import NoAnswer, Patience, patience

T = TypeVar("T")

#: SQLSTATEs after which the same transaction may simply be tried again.
_DEADLOCK, _SERIALIZATION = "40P01", "40001"
#: The server refuses or ends the session: crash, shutdown, too many connections, starting up.
_AWAY_CLASSES = ("08", "57P", "53", "25P03")
#: What is wrong with the data: out of range, against a constraint, or too large for an index.
_REFUSED_CLASSES = ("22", "23", "54")
_UNDEFINED_TABLE = "42P01"
#: A write where none is taken: after a failover the connection leads to what is a standby now.
_READ_ONLY = "25006"
#: What Postgres could not do, though it is there: it took too long, for a timeout or whoever ended
#: the statement, or a lock did; or it met a fault of its own, in the system below it or in itself
#: (XX). A restart of ours would mend neither.
_NOT_DONE_CLASSES = ("57014", "55P03", "58", "XX")
_TRIES = 5
#: The longest wait for an answer, in connect timeouts.
ANSWERS = 2
#: Seconds after which Postgres ends a transaction of ours that does nothing; none should.
IDLE_TRANSACTION_SECONDS = 5
#: Bytes of data in one statement, about. Postgres takes no message above 1 GB, where bytes stand as
#: hexadecimal digits, and drops the connection of who sends a larger one.
STATEMENT_BYTES = 16 << 20


# An operator's own shorter limit stays.
_SET_BOUNDS = """
    SELECT set_config('idle_in_transaction_session_timeout', %s, false),
           set_config('statement_timeout',
                      CASE WHEN %s > 0 AND (setting::bigint = 0 OR setting::bigint > %s)
                           THEN %s::text ELSE setting END, false)
    FROM pg_settings WHERE name = 'statement_timeout'
"""


class Refused(LedgerError):
    """Postgres refuses the data itself: trying again cannot help."""


class Ledger:
    """One process's door to the ledger: an engine, and errors in the house's words.

    Every statement that changes jobs runs in READ COMMITTED. Safe to use from several threads;
    after a fork, the child gets connections of its own.

    Args:
        url: SQLAlchemy URL, `postgresql+psycopg2://…`.
        name: shown in `pg_stat_activity` as `application_name`.
        connect_timeout: seconds until an unreachable server counts as away. One that is silent
            does when the answer to a statement has not come in `ANSWERS` times as many.
        waits_for_ever: let a statement take any time, as a migration may. Else Postgres itself ends
            one after `ANSWERS` connect timeouts, so that nobody's locks outlast their holder.
        connections: the most connections this process opens.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "celery-ledger",
        connect_timeout: float = 5.0,
        connections: int = 4,
        waits_for_ever: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self._seconds = None if waits_for_ever else ANSWERS * connect_timeout
        watched = (
            {"connection_factory": Patience(self._seconds).connection} if self._seconds else {}
        )
        self._engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=connect_timeout,
            hide_parameters=True,  # bodies and results must not get into a log
            pool_pre_ping=False,  # one more round trip; a dead connection is met by a retry
            connect_args={
                "application_name": name[:63],
                "connect_timeout": max(1, round(connect_timeout)),
                # A half-open connection must not hold a thread for the kernel's two hours.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": round(connect_timeout * ANSWERS * 1000),
                **watched,
            },
        )

        event.listen(self._engine, "connect", self._set_bounds)
        event.listen(self._engine, "handle_error", _leave_a_standby)

    @property
    def engine(self) -> Engine:
        """The engine of this process; the parent's connections are never used after a fork."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return self._engine

    def close(self) -> None:
        """Close every idle connection."""
        self.engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, rolled back when it raises.

        Raises:
            Unavailable: Postgres is away; whether a commit in flight took effect is unknown.
            Refused: Postgres refuses the data.
        """
        with translated(), self.engine.begin() as connection:
            if (milliseconds := self._unusual_bound()) is not None:
                connection.execute(text(f"SET LOCAL statement_timeout = {milliseconds:d}"))
            yield connection

    def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction, tried again after a deadlock; it must bear being repeated.

        A connection that died while idle is met here: the first try of a fresh transaction that
        fails with a lost connection is repeated once, because guards make every write repeatable.

        Raises:
            Unavailable, Refused: as `transaction`.
        """
        for attempt in range(_TRIES):
            try:
                with self.transaction() as connection:
                    return work(connection)
            except _Again:
                if attempt == _TRIES - 1:
                    raise
            except LedgerUnavailable as exc:
                if attempt or not isinstance(exc, ConnectionLost):
                    raise
        raise AssertionError("unreachable")

    def rows(self, statement: TextClause, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """One statement in a transaction of its own; its rows, `[]` when it returns none.

        Raises:
            Unavailable, Refused: as `transaction`.
        """

        def work(connection: Connection) -> list[Any]:
            result = connection.execute(statement, parameters or {})
            return list(result) if result.returns_rows else []

        return self.run(work)

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """`rows` of a statement given as text."""
        return self.rows(text(sql), parameters)

    def _unusual_bound(self) -> int | None:
        """Milliseconds that a statement of this transaction may take, 0 for any time; `None`: as
        the connection has it."""
        if self._seconds is None:
            return 0
        return _milliseconds(self._seconds * patience()) if patience() > 1 else None

    def _set_bounds(self, connection: Any, _: Any) -> None:
        """End a transaction whose process was stopped in its middle: it holds locks that others
        need, such as a lease's that cannot be rescued, or the lead that cannot be taken over. And
        a statement whose answer nobody waits for any more. A commit is bounded by neither."""
        with connection.cursor() as cursor:
            cursor.execute(
                _SET_BOUNDS,
                (f"{IDLE_TRANSACTION_SECONDS}s", *[_milliseconds(self._seconds or 0.0)] * 3),
            )
        connection.commit()


def _leave_a_standby(context: ExceptionContext) -> None:
    """Drop the connections to what became a standby: new ones may lead to the primary."""
    if getattr(context.original_exception, "pgcode", None) == _READ_ONLY:
        context.is_disconnect = True


class NotDone(LedgerUnavailable):
    """Postgres did not do this in time, or met a fault of its own. Less at once may be done, or the
    same in more time; it may also be away."""


class ConnectionLost(LedgerUnavailable):
    """An established connection broke; a new one may work at once."""


class _Again(LedgerUnavailable):
    """A deadlock or serialization failure: Postgres rolled back, try again."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLAlchemy and psycopg2 raise into `worker.errors`."""
    try:
        yield
    except PoolTimeout:
        raise LedgerUnavailable(
            "No connection to Postgres became free in time; try again, or allow more connections."
        ) from None
    except DBAPIError as exc:
        meaning = _meaning(exc)
        # Postgres quotes the refused row in its detail: the cause must not get into a log.
        raise meaning from None if isinstance(meaning, Refused) else exc
    except UnicodeEncodeError as exc:
        raise Refused("Postgres refuses a lone surrogate in text.") from exc
    except ValueError as exc:
        if "NUL" not in str(exc):  # psycopg2 refuses a NUL in text before it is sent
            raise
        raise Refused("Postgres refuses a NUL character in text.") from exc


def _meaning(error: DBAPIError) -> Exception:
    if isinstance(error.orig, NoAnswer):  # not tried again: the next wait would be as long
        return NotDone(f"Postgres is not available: {error.orig}.")
    state = getattr(error.orig, "pgcode", None) or ""
    if state in (_DEADLOCK, _SERIALIZATION):
        return _Again("Postgres rolled the transaction back because of a concurrent one.")
    if state == _READ_ONLY:
        return ConnectionLost("This Postgres takes no writes: it is a standby, or set read-only.")
    if error.connection_invalidated or (not state and isinstance(error, InterfaceError)):
        return ConnectionLost("The connection to Postgres was lost; try again.")
    if state.startswith(_AWAY_CLASSES) or (not state and isinstance(error, OperationalError)):
        return LedgerUnavailable(f"Postgres is not available: {first_line(error.orig)}")
    if state.startswith(_NOT_DONE_CLASSES):
        return NotDone(f"Postgres could not do it: {first_line(error.orig)}")
    if isinstance(error, DataError) or state.startswith(_REFUSED_CLASSES):
        return Refused(f"Postgres refuses the data: {first_line(error.orig)}")
    if not state and isinstance(error, ProgrammingError):
        return InvalidSettings(f"DATABASE_URL cannot be used: {first_line(error.orig)}")
    if state == _UNDEFINED_TABLE:
        return SchemaMissing()
    return error


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000)) if seconds else 0


def first_line(error: BaseException | None) -> str:
    """The first line of an error's text: what it says, without hints and the statement."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows turned into one list a column, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * width


def batches(items: Iterable[T], most: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """`items` in their order, in parts of at most `most` items and about `STATEMENT_BYTES`."""
    part: list[T] = []
    size = 0
    for item in items:
        weight = size_of(item)
        if part and (len(part) == most or size + weight > STATEMENT_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += weight
    if part:
        yield part
