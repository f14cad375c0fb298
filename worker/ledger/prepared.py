"""Prepared: what is sent most often is parsed once for each connection, and planned once a second.

To parse and to plan the claim of one job, or the end of one, takes Postgres as long as to do it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, CursorResult, Dialect, TextClause
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.exc import DBAPIError

#: Seconds for which a connection keeps its plans. One that was made when a table was small reads
#: all of it, and Postgres would keep it until the next ANALYZE.
PLANNED: Final = 1.0
#: SQLSTATEs of a statement that is not prepared, is so already, or was before a column's type
#: changed. A pooler hands one connection's statements to several of its own.
NOT_AS_PREPARED: Final = ("26000", "42P05", "0A000")
_ONE_PLAN: Final = "SET plan_cache_mode = force_generic_plan"
_KEY: Final = "celery-ledger's plans"


@dataclass(slots=True)
class _Plans:
    """What one connection has prepared.

    Attributes:
        names: of its statements.
        since: when it last dropped its plans, in seconds of the monotonic clock.
        are_kept: whether what it prepares is there when it is asked for.
    """

    names: set[str] = field(default_factory=set)
    since: float = field(default_factory=lambda: time.monotonic())
    are_kept: bool = True


class Prepared:
    """A statement that is prepared on each connection that sends it.

    Its plan is one for all values. Left to itself Postgres may plan each call for its own after
    all, or not, by the numbers of rows that the first five happened to be about.

    Args:
        clause: the statement. It returns rows, and its parameters' types follow from it.
    """

    def __init__(self, clause: TextClause) -> None:
        self.clause = clause
        numbered = clause.compile(dialect=_dialect(paramstyle="numeric_dollar"))
        names = ", ".join(f"%({name})s" for name in numbered.positiontup or ())
        self._plain = str(clause.compile(dialect=_dialect()))
        # Named by what it says: another version's statement behind the same pooler is another one.
        self._name = f"ledger_{hashlib.sha256(numbered.string.encode()).hexdigest()[:16]}"
        self._prepare = f"{_ONE_PLAN}; PREPARE {self._name} AS {numbered.string}"
        self._execute = f"EXECUTE {self._name}({names})"

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
            if not is_forgotten(exc.orig, proxied.info):
                raise
        return connection.execute(self.clause, parameters)

    def words(self, info: MutableMapping[str, Any], send: Callable[[str], object]) -> str:
        """What to send, in psycopg2's words, on the connection that `info` belongs to.

        Args:
            info: SQLAlchemy's, which lives and dies with a connection.
            send: sends what goes before it.
        """
        plans: _Plans = info.setdefault(_KEY, _Plans())
        if not plans.are_kept:
            return self._plain
        if self._name not in plans.names:
            send(self._prepare)
            plans.names.add(self._name)
        now = time.monotonic()
        if now - plans.since < PLANNED:
            return self._execute
        plans.since = now
        return f"DISCARD PLANS; {self._execute}"


def _dialect(**options: Any) -> Dialect:
    dialect: Dialect = PGDialect_psycopg2(**options)  # type: ignore[no-untyped-call] # SQLAlchemy's
    return dialect


def is_forgotten(error: BaseException | None, info: MutableMapping[str, Any]) -> bool:
    """Whether `error` says that the connection does not keep what it prepares; it did nothing, and
    from now on the connection is sent each statement whole."""
    if getattr(error, "pgcode", None) not in NOT_AS_PREPARED:
        return False
    info[_KEY] = _Plans(are_kept=False)
    return True
