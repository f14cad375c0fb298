"""A session with Postgres: what is set in it, and whether it keeps what is committed in it."""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg2
from sqlalchemy.exc import DisconnectionError

from worker.ledger.safety import JUDGED, faults_of, trusted

logger = logging.getLogger(__name__)

#: Seconds after which Postgres ends a transaction of ours that does nothing; none should.
IDLE_TRANSACTION_SECONDS = 5
#: Seconds after which a session is judged again when it is used.
LOOK_EVERY = 30.0
#: SQLAlchemy's note on a connection: when that is, and whether the storage is trusted.
_LOOK: Final = "ledger_look"

# An operator's own shorter limit stays, and a stronger commit, which is set all the same: what a
# session has set, no reload of the server's configuration changes. A pooler gives a number of its
# own for that of the server's process: behind one, what is prepared may be asked for elsewhere, and
# a setting is others' too. Where it is prepared, it has one plan for all values: left to itself
# Postgres may plan each call for its own after all, or not, by the numbers of rows that the first
# five happened to be about.
_SET_BOUNDS = """
    SELECT set_config('default_transaction_isolation', 'read committed', false),
           set_config('idle_in_transaction_session_timeout', %s, false),
           set_config('statement_timeout',
                      CASE WHEN %s > 0 AND (setting::bigint = 0 OR setting::bigint > %s)
                           THEN %s::text ELSE setting END, false),
           CASE WHEN pg_backend_pid() = %s
                THEN set_config('plan_cache_mode', 'force_generic_plan', false) END AS planned,
           current_setting('fsync'), current_setting('full_page_writes'),
           CASE WHEN pg_backend_pid() <> %s THEN current_setting('synchronous_commit')
                ELSE set_config('synchronous_commit',
                                CASE current_setting('synchronous_commit')
                                     WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END,
                                false) END,
           current_setting('synchronous_standby_names')
    FROM pg_settings WHERE name = 'statement_timeout'
"""
_SETTINGS: Final = "SELECT " + ", ".join(f"current_setting('{name}')" for name in JUDGED)


@dataclass(frozen=True, slots=True)
class Session:
    """A session that was set up.

    Attributes:
        is_ours: whether the next statement meets this session too, and not, behind a pooler, one
            that is others' as well.
        faults: a sentence for each setting by which Postgres may lose what is committed in it.
    """

    is_ours: bool
    faults: list[str]


def set_up(connection: Any, milliseconds: int, *, trusts_storage: bool = False) -> Session:
    """Bound a session of psycopg2's, and let its commits be durable; in one statement.

    A transaction whose process was stopped in its middle ends: it holds locks that others need,
    such as a lease's that cannot be rescued, or the lead that cannot be taken over. So does a
    statement whose answer nobody waits for any more. A commit is bounded by neither.

    Args:
        connection: new.
        milliseconds: what a statement may take, 0 for any time.
        trusts_storage: whether Postgres may do without `fsync` and `full_page_writes`; the log says
            once that it does.
    """
    pid = connection.info.backend_pid
    bounds = (f"{IDLE_TRANSACTION_SECONDS}s", *[milliseconds] * 3)
    with connection.cursor() as cursor:
        cursor.execute(_SET_BOUNDS, (*bounds, pid, pid))
        *_, planned, fsync, whole_pages, level, standbys = cursor.fetchone()
    connection.commit()
    is_ours = planned is not None
    found = dict(zip(JUDGED, (fsync, whole_pages, level, standbys), strict=True))
    faults = faults_of(found, is_pooled=not is_ours, trusts_storage=trusts_storage)
    if trusts_storage and (told := trusted(found)):
        _say_once(told)
    return Session(is_ours, faults)


def look_again(info: dict[Any, Any], *, trusts_storage: bool) -> None:
    """Note that `lend` is to judge a session, which was found to be safe now, from time to time.

    Args:
        info: SQLAlchemy's notes on its connection.
        trusts_storage: as in `set_up`.
    """
    info[_LOOK] = time.monotonic() + LOOK_EVERY, trusts_storage


def lend(driver: Any, record: Any, _: Any) -> None:
    """Give out no connection that would keep its statements for a COMMIT, nor one whose server was
    made unsafe by a reload of its configuration: a new one is judged as each is.

    An exception of a signal handler may have come between the steps of a transaction. One that is
    known to be closed would not be found out by its user: the pool drops what a statement finds
    dead, and before a transaction psycopg2 raises without one.

    Raises:
        DisconnectionError: the pool takes another one.
    """
    if driver.closed or not driver.autocommit:
        raise DisconnectionError
    due, trusts_storage = record.info.get(_LOOK, (None, False))
    if due is None or time.monotonic() < due:
        return
    look_again(record.info, trusts_storage=trusts_storage)
    try:
        with driver.cursor() as cursor:
            cursor.execute(_SETTINGS)
            found = dict(zip(JUDGED, cursor.fetchone(), strict=True))
    except psycopg2.Error as exc:
        raise DisconnectionError from exc
    if faults_of(found, trusts_storage=trusts_storage):
        raise DisconnectionError


@functools.cache
def _say_once(sentence: str) -> None:
    logger.warning(sentence)
