"""The connection to Postgres, and what its errors mean to the rest of the house."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self, TypeVar

import psycopg2
from sqlalchemy import (
    Connection,
    Engine,
    ExceptionContext,
    TextClause,
    create_engine,
    event,
    text,
)

from worker.errors import LedgerUnavailable, NotDurable
from worker.ledger import prepared
from worker.ledger.faults import CONCURRENT, READ_ONLY, ConnectionLost, TryAgain, translated
from worker.ledger.namespace import SCHEMA, rename
from worker.ledger.prepared import Prepared
from worker.ledger.session import lend, look_again, set_up
from worker.ledger.silence import NoAnswer, Patience, patience
from worker.settings import Settings

T = TypeVar("T")

_TRIES = 5
#: The longest wait for an answer, in connect timeouts.
ANSWERS = 2


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
        schema: the Postgres schema that holds the tables.
        bears_unsafe: connect also to a Postgres that may lose what it commits, to look at it.
        trusts_storage: the operator vouches for a Postgres without `fsync`, `full_page_writes`.

    Raises (when it connects):
        NotDurable: this Postgres may lose what it commits, and no session can mend that. One that
            was safe before counts as away instead, so that what waits for it is not lost.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "celery-ledger",
        connect_timeout: float = 5.0,
        connections: int = 4,
        waits_for_ever: bool = False,
        schema: str = SCHEMA,
        bears_unsafe: bool = False,
        trusts_storage: bool = False,
    ) -> None:
        self._pid = os.getpid()
        self.schema = schema
        self._bears_unsafe, self._was_safe = bears_unsafe, False
        self._trusts_storage = trusts_storage
        self._seconds = None if waits_for_ever else ANSWERS * connect_timeout
        watched = (
            {"connection_factory": Patience(self._seconds).connection} if self._seconds else {}
        )
        self._engine = create_engine(
            url,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=connect_timeout,
            isolation_level="AUTOCOMMIT",  # outside of `transaction`
            hide_parameters=True,  # bodies and results must not get into a log
            pool_reset_on_return=None,  # nobody gives back a transaction: see `_together`
            pool_pre_ping=False,  # one more round trip; a dead connection is met by a retry
            connect_args={
                "application_name": name[:63],
                "connect_timeout": max(1, round(connect_timeout)),
                # A role, a database or the address may have another one, which cannot say it all.
                "client_encoding": "utf8",
                # A half-open connection must not hold a thread for the kernel's two hours.
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "tcp_user_timeout": round(connect_timeout * ANSWERS * 1000),
                **watched,
            },
        )

        rename(self._engine, schema)
        event.listen(self._engine, "connect", self._begin)
        event.listen(self._engine, "checkout", lend)
        event.listen(self._engine, "handle_error", _leave_a_standby)

    @classmethod
    def of(cls, settings: Settings, name: str, connections: int) -> Self:
        """The door that the settings describe."""
        return cls(
            settings.database_url.get_secret_value(),
            name=name,
            connect_timeout=settings.connect_timeout_seconds,
            connections=connections,
            schema=settings.ledger_schema,
            trusts_storage=settings.trust_postgres_storage,
        )

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
        with translated(), self.engine.connect() as connection, _together(connection):
            if (milliseconds := self._unusual_bound()) is not None:
                connection.execute(text(f"SET LOCAL statement_timeout = {milliseconds:d}"))
            yield connection

    @contextmanager
    def each(self) -> Iterator[Connection]:
        """A connection on which each statement commits by itself: one round trip, where a
        transaction of one statement takes three.

        Raises:
            Unavailable, Refused: as `transaction`.
        """
        if self._unusual_bound() is not None:  # which is set for a transaction
            with self.transaction() as connection:
                yield connection
            return
        with translated(), self.engine.connect() as connection:
            yield connection

    def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction, tried again after a deadlock; it must bear being repeated.

        A connection that died while idle is met here: the first try of a fresh transaction that
        fails with a lost connection is repeated once, because guards make every write repeatable.

        Raises:
            Unavailable, Refused: as `transaction`.
        """
        return self._run(self.transaction, work)

    def run_each(self, work: Callable[[Connection], T]) -> T:
        """As `run`, but each statement of `work` commits by itself.

        Raises:
            Unavailable, Refused: as `transaction`.
        """
        return self._run(self.each, work)

    def _run(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        work: Callable[[Connection], T],
    ) -> T:
        for attempt in range(_TRIES):
            try:
                with connect() as connection:
                    return work(connection)
            except TryAgain:
                if attempt == _TRIES - 1:
                    raise
            except LedgerUnavailable as exc:
                if attempt or not isinstance(exc, ConnectionLost):
                    raise
        raise AssertionError("unreachable")

    def rows(self, statement: TextClause, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """One statement, committed; its rows, `[]` when it returns none.

        Raises:
            Unavailable, Refused: as `transaction`.
        """

        def work(connection: Connection) -> list[Any]:
            result = connection.execute(statement, parameters or {})
            return list(result) if result.returns_rows else []

        return self.run_each(work)

    def rows_at_once(self, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any] | None:
        """A statement, committed, without what SQLAlchemy adds to each; its rows as tuples. `None`:
        it must be asked in the usual way, because a connection was lost or keeps nothing prepared,
        it met a deadlock, or more patience is asked for.

        Raises:
            Unavailable, Refused: as `transaction`.
        """
        if self._unusual_bound() is not None:
            return None
        engine = self.engine
        with translated():
            connection: Any = engine.raw_connection()
            try:
                return statement.rows(connection, parameters)
            except psycopg2.Error as exc:
                if prepared.gives_up(exc, connection.info):
                    return None
                if is_lost := _is_lost(engine, exc, connection):
                    connection.invalidate(exc)  # the usual way drops every one that is as old
                if isinstance(exc, NoAnswer) or not (is_lost or exc.pgcode in CONCURRENT):
                    raise
                return None
            finally:
                connection.close()

    def execute(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        """`rows` of a statement given as text."""
        return self.rows(text(sql), parameters)

    def _unusual_bound(self) -> int | None:
        """Milliseconds that a statement of this transaction may take, 0 for any time; `None`: as
        the connection has it."""
        if self._seconds is None:
            return 0
        return _milliseconds(self._seconds * patience()) if patience() > 1 else None

    def _begin(self, connection: Any, record: Any) -> None:
        trusts = self._trusts_storage
        session = set_up(connection, _milliseconds(self._seconds or 0.0), trusts_storage=trusts)
        if not self._bears_unsafe:
            self._refuse_unsafe(connection, session.faults)
            look_again(record.info, trusts_storage=trusts)
        prepared.begin(record.info, are_kept=session.is_ours, schema=self.schema)

    def _refuse_unsafe(self, connection: Any, faults: list[str]) -> None:
        if not faults:
            self._was_safe = True
            return
        connection.close()
        if self._was_safe:
            raise LedgerUnavailable(f"Postgres came back unsafe and is not used. {faults[0]}")
        raise NotDurable(faults[0])


@contextmanager
def _together(connection: Connection) -> Iterator[None]:
    """The statements of the block are one transaction of `connection`, which else commits each."""
    driver: Any = connection.connection.dbapi_connection
    driver.autocommit = False  # unlike a change of the isolation level it takes no round trip
    try:
        with connection.begin():
            yield
    finally:
        try:
            driver.autocommit = True
        except psycopg2.Error:  # it is broken, or not out of the transaction: nobody may use it
            connection.invalidate()


def _leave_a_standby(context: ExceptionContext) -> None:
    """Drop the connections to what became a standby: new ones may lead to the primary."""
    if getattr(context.original_exception, "pgcode", None) == READ_ONLY:
        context.is_disconnect = True


def _is_lost(engine: Engine, error: psycopg2.Error, connection: Any) -> bool:
    return error.pgcode == READ_ONLY or engine.dialect.is_disconnect(
        error,  # type: ignore[arg-type] # it means the driver's errors
        connection.dbapi_connection,
        None,
    )


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000)) if seconds else 0
