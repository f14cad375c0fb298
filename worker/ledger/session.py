"""A session with Postgres: what is set in it, and whether it keeps what is committed in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.ledger.safety import JUDGED, faults_of

#: Seconds after which Postgres ends a transaction of ours that does nothing; none should.
IDLE_TRANSACTION_SECONDS = 5

# An operator's own shorter limit stays, and a stronger commit. A pooler gives a number of its own
# for that of the server's process: behind one, what is prepared may be asked for elsewhere, and a
# setting is others' too. Where it is prepared, it has one plan for all values: left to itself
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
           CASE WHEN pg_backend_pid() = %s
                     AND current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
                THEN set_config('synchronous_commit', 'on', false)
                ELSE current_setting('synchronous_commit') END,
           current_setting('synchronous_standby_names')
    FROM pg_settings WHERE name = 'statement_timeout'
"""


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


def set_up(connection: Any, milliseconds: int) -> Session:
    """Bound a session of psycopg2's, and let its commits be durable; in one statement.

    A transaction whose process was stopped in its middle ends: it holds locks that others need,
    such as a lease's that cannot be rescued, or the lead that cannot be taken over. So does a
    statement whose answer nobody waits for any more. A commit is bounded by neither.

    Args:
        connection: new.
        milliseconds: what a statement may take, 0 for any time.
    """
    pid = connection.info.backend_pid
    bounds = (f"{IDLE_TRANSACTION_SECONDS}s", *[milliseconds] * 3)
    with connection.cursor() as cursor:
        cursor.execute(_SET_BOUNDS, (*bounds, pid, pid))
        *_, planned, fsync, whole_pages, level, standbys = cursor.fetchone()
    connection.commit()
    is_ours = planned is not None
    found = dict(zip(JUDGED, (fsync, whole_pages, level, standbys), strict=True))
    return Session(is_ours, faults_of(found, is_pooled=not is_ours))
