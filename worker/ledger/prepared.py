"""Prepared: what is sent most often is parsed once for each connection, and planned once a second.

To parse and to plan the claim of one job, or the end of one, takes Postgres as long as to do it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, CursorResult, Dialect, TextClause
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import DBAPIError

from worker.ledger.namespace import SCHEMA, in_schema

logger = logging.getLogger(__name__)

#: Seconds for which a connection keeps its plans. One that was made when a table was small reads
#: all of it, and Postgres would keep it until the next ANALYZE.
PLANNED: Final = 1.0
#: What makes Postgres plan anew what is prepared; it goes before the statement, in one message.
AFRESH: Final = "DISCARD PLANS; "
#: SQLSTATEs of a statement that is not prepared, is so already, or does not fit the tables any
#: more; of these last Postgres knows several, all of one class.
_NOT_AS_PREPARED: Final = ("26000", "42", "0A000")
_KEY: Final = "celery-ledger's plans"
_CURSOR: Final = "celery-ledger's cursor"
#: Bytes of a statement that a cursor may hold on to.
_LITTLE: Final = 1 << 16


@dataclass(slots=True)
class _Plans:
    """What one connection has prepared.

    Attributes:
        are_kept: whether what it prepares is there when it is asked for.
        schema: that its statements name.
        names: of its statements.
        since: when it last dropped its plans, in seconds of the monotonic clock.
    """

    are_kept: bool
    schema: str
    names: set[str] = field(default_factory=set)
    since: float = field(default_factory=lambda: time.monotonic())


def begin(info: MutableMapping[str, Any], *, are_kept: bool, schema: str = SCHEMA) -> None:
    """A connection is new.

    Args:
        info: SQLAlchemy's, which lives and dies with a connection.
        are_kept: whether it leads to one server process for all its life, and to no pooler.
        schema: that its statements are to name.
    """
    info[_KEY] = _Plans(are_kept, schema)


def gives_up(error: BaseException | None, info: MutableMapping[str, Any]) -> bool:
    """Whether `error` says that the connection does not keep what it prepares, or may say so; then
    nothing was done, and from now on the connection is sent each statement whole."""
    state = getattr(error, "pgcode", None) or ""
    if not state.startswith(_NOT_AS_PREPARED) or not info[_KEY].are_kept:
        return False
    logger.info(
        "A connection to Postgres is sent whole statements from now on (SQLSTATE %s)", state
    )
    begin(info, are_kept=False, schema=info[_KEY].schema)
    return True


@dataclass(frozen=True, slots=True)
class _Words:
    """A statement in psycopg2's words: whole, prepared under a name, and by that name."""

    whole: str
    name: str
    prepare: str
    execute: str


class Prepared:
    """A statement that is prepared on each connection that sends it.

    Args:
        name: a word that operators read in `pg_stat_activity`.
        clause: the statement. It returns rows, and its parameters' types follow from it.
    """

    def __init__(self, name: str, clause: TextClause) -> None:
        self.clause = clause
        self._title = name
        self._words = {SCHEMA: self._put_into_words(SCHEMA)}

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        """The statement on `connection`; prepared where each statement commits by itself: in a
        transaction an error could not be taken back."""
        proxied = connection.connection
        if not getattr(proxied.dbapi_connection, "autocommit", False):
            return connection.execute(self.clause, parameters)
        try:
            words = self.words(proxied.info, connection.exec_driver_sql)
            return connection.exec_driver_sql(words, dict(parameters))
        except DBAPIError as exc:
            if not gives_up(exc.orig, proxied.info):
                raise
        return connection.execute(self.clause, parameters)

    def rows(self, connection: Any, parameters: Mapping[str, Any]) -> list[Any]:
        """The statement past SQLAlchemy; its rows, as tuples.

        Args:
            connection: as `Engine.raw_connection` gives it. Its cursor stays with it: to make one
                for each statement takes longer.
            parameters: by name.

        Raises:
            psycopg2.Error: see `gives_up`.
        """
        info = connection.info
        cursor = info.get(_CURSOR)
        if cursor is None:
            cursor = info[_CURSOR] = connection.cursor()
        cursor.execute(self.words(info, cursor.execute), parameters)
        rows = list(cursor.fetchall())
        # It holds what it sent and got until its next statement: a number, say, and no bodies.
        if len(cursor.query) > _LITTLE or sum(map(len, rows)) > 1:
            del info[_CURSOR]
        return rows

    def words(
        self, info: MutableMapping[str, Any], send: Callable[[str, dict[str, Any]], object]
    ) -> str:
        """What to send, in psycopg2's words, on the connection that `info` belongs to.

        Args:
            info: the connection's, which has begun.
            send: sends what goes before it.
        """
        plans: _Plans = info[_KEY]
        words = self._words.get(plans.schema)
        if words is None:
            words = self._words[plans.schema] = self._put_into_words(plans.schema)
        if not plans.are_kept:
            return words.whole
        if words.name not in plans.names:
            send(words.prepare, {})
            plans.names.add(words.name)
        now = time.monotonic()
        if now - plans.since < PLANNED:
            return words.execute
        plans.since = now
        return AFRESH + words.execute

    def _put_into_words(self, schema: str) -> _Words:
        numbered = self.clause.compile(dialect=_dialect(paramstyle="numeric_dollar"))
        parameters = ", ".join(f"%({name})s" for name in numbered.positiontup or ())
        sent = in_schema(numbered.string, schema)
        # Named by what it says: another version's statement behind the same pooler is another one,
        # and so is another schema's.
        version = hashlib.sha256(sent.encode()).hexdigest()[:16]
        name = f"ledger_{self._title}_{version}"
        return _Words(
            whole=in_schema(str(self.clause.compile(dialect=_dialect())), schema),
            name=name,
            prepare=f"PREPARE {name} AS {sent}".replace("%", "%%"),
            execute=f"EXECUTE {name}" + (f"({parameters})" if parameters else ""),
        )


def _dialect(**options: Any) -> Dialect:
    dialect: Dialect = PGDialect_psycopg2(**options)  # type: ignore[no-untyped-call] # SQLAlchemy's
    return dialect
