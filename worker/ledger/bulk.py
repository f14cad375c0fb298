"""Many jobs at once: count those that a selection names, cancel them, replay them, in batches."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from worker.errors import Conflict
from worker.jobs.job import Ring
from worker.jobs.states import State
from worker.ledger.continuations import carry_on
from worker.ledger.database import Ledger

#: Rows of an index that one statement looks through, and jobs that one transaction changes.
WINDOW: Final = 1000

#: What can be cancelled and what can be replayed.
OPEN: Final = (State.SCHEDULED, State.QUEUED, State.RUNNING)
ENDED_BADLY: Final = (State.FAILED, State.CANCELLED)

# Each state is walked in the order of the index that it has; the walk goes on behind the last row
# that it saw, so that what a batch changes is not seen again. The types of its two columns.
_WALKS: Final = {
    State.SCHEDULED: (("run_at", "timestamptz"), ("id", "text")),
    State.QUEUED: (("list", "text"), ("dispatch_seq", "bigint")),
    State.RUNNING: (("lease", "text"), ("id", "text")),
    State.FAILED: (("created_at", "timestamptz"), ("id", "text")),
    State.CANCELLED: (("created_at", "timestamptz"), ("id", "text")),
}

_NOW = text("SELECT clock_timestamp() AS now")


def _page(state: State, *, is_first: bool) -> Any:
    (first, first_type), (second, second_type) = _WALKS[state]
    behind = (
        "TRUE"
        if is_first
        else f"({first}, {second}) > (CAST(:first AS {first_type}), CAST(:second AS {second_type}))"
    )
    return text(f"""
        WITH seen AS MATERIALIZED (
            SELECT id, {first} AS first, {second} AS second,
                   (CAST(:queue AS text) IS NULL OR queue = :queue)
                   AND (CAST(:task AS text) IS NULL OR task = :task)
                   AND created_at <= :until
                   AND (:parked OR state <> 'scheduled' OR run_at < 'infinity') AS wanted
            FROM ledger.jobs
            WHERE state = '{state}' AND {behind}
            ORDER BY {first}, {second} LIMIT :window
        )
        SELECT count(*) AS seen, array_agg(id ORDER BY id) FILTER (WHERE wanted) AS ids,
               (array_agg(CAST(first AS text) ORDER BY first DESC, second DESC))[1] AS first,
               (array_agg(CAST(second AS text) ORDER BY first DESC, second DESC))[1] AS second
        FROM seen
    """)  # noqa: S608 -- constants of this module


_FIRST_PAGES = {state: _page(state, is_first=True) for state in _WALKS}
_NEXT_PAGES = {state: _page(state, is_first=False) for state in _WALKS}

# The walk may take any plan but a sort of all that there is, which looks cheap while the statistics
# do not know of it, and would be made for each page. What is sorted within the order of an index is
# another thing to Postgres.
_BY_INDEX = text("""
    SELECT set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)
""")

# Guarded by the states that were asked for: a job that has moved on meanwhile is left alone.
_CANCEL = text("""
    WITH locked AS MATERIALIZED (
        SELECT id, state AS was, lease AS held_by FROM ledger.jobs
        WHERE id = ANY(CAST(:ids AS text[])) AND state = ANY(CAST(:states AS text[]))
              AND state IN ('scheduled', 'queued', 'running')
        ORDER BY id FOR UPDATE
    ), moved AS (
        UPDATE ledger.jobs
        SET state = 'cancelled', error = :reason, finished_at = clock_timestamp(), lease = NULL,
            run_at = NULLIF(run_at, 'infinity')
        FROM locked WHERE jobs.id = locked.id
        RETURNING jobs.id, jobs.attempt, jobs.worker, jobs.started_at, locked.was, locked.held_by
    ), noted AS (
        INSERT INTO ledger.attempts (job_id, number, outcome, lease, worker, started_at, error)
        SELECT id, attempt, 'cancelled', held_by, worker, started_at, :reason FROM moved
        WHERE was = 'running'
        ON CONFLICT DO NOTHING
    )
    SELECT id FROM moved
""")

_REPLAY = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM ledger.jobs
        WHERE id = ANY(CAST(:ids AS text[])) AND state = ANY(CAST(:states AS text[]))
              AND state IN ('failed', 'cancelled') AND list <> ''
        ORDER BY id FOR UPDATE
    )
    UPDATE ledger.jobs
    SET state = 'queued', lost = 0, suspicion = 0, lease = NULL, result = NULL,
        result_type = NULL, children = NULL, error = NULL, traceback = NULL, finished_at = NULL,
        progress = NULL, progress_state = NULL, expires_at = NULL, run_at = NULL,
        dispatch_seq = nextval('ledger.dispatch_seq'), dispatched_at = clock_timestamp(), rings = 1
    FROM locked WHERE jobs.id = locked.id
    RETURNING jobs.id, jobs.list, jobs.dispatch_seq
""")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs are meant.

    Attributes:
        states: those of `OPEN`, or those of `ENDED_BADLY`.
        queue, task: only these.
        older_than: only jobs that were created so many seconds ago or earlier.
        parked: whether also those that wait for other jobs, without a time of their own.
    """

    states: tuple[State, ...]
    queue: str | None = None
    task: str | None = None
    older_than: float = 0.0
    parked: bool = True

    def check(self, states: Collection[State], done: str) -> None:
        """Make sure that it names nothing but `states`.

        Args:
            states: those that can be `done`.
            done: what is to be done, as "cancelled".

        Raises:
            Conflict: it names another one.
        """
        for state in self.states:
            if state not in states:
                raise Conflict(
                    f"Jobs that are {state} cannot be {done}; only {', '.join(states)} ones can."
                )


def count(ledger: Ledger, selection: Selection) -> dict[State, int]:
    """How many jobs of each state are meant now; states without any are left out.

    Raises:
        Conflict: as `selected`.
        Unavailable: Postgres is away.
    """
    found: dict[State, int] = {}
    for state, ids in selected(ledger, selection):
        found[state] = found.get(state, 0) + len(ids)
    return found


def selected(ledger: Ledger, selection: Selection) -> Iterator[tuple[State, list[str]]]:
    """The ids that are meant, a window of one state at a time.

    What is created after the first step is not looked for: the walk ends, whatever comes.

    Raises:
        Conflict: a state is none of `OPEN` and `ENDED_BADLY`.
        Unavailable: Postgres is away.
    """
    selection.check(_WALKS, "selected")
    ((now,),) = ledger.rows(_NOW)
    try:
        until = now - timedelta(seconds=selection.older_than)
    except OverflowError:  # before all time: nothing is so old
        return
    parameters = {
        "queue": selection.queue,
        "task": selection.task,
        "until": until,
        "parked": selection.parked,
    }
    for state in selection.states:
        for ids in _walk(ledger, state, parameters):
            yield state, ids


def _walk(ledger: Ledger, state: State, parameters: dict[str, Any]) -> Iterator[list[str]]:
    last: dict[str, Any] = {}
    while True:
        statement = _NEXT_PAGES[state] if last else _FIRST_PAGES[state]
        row = ledger.run(
            functools.partial(_seen, statement, parameters | last | {"window": WINDOW})
        )
        if row.ids:
            yield list(row.ids)
        if row.seen < WINDOW:
            return
        last = {"first": row.first, "second": row.second}


def _seen(statement: Any, parameters: dict[str, Any], connection: Connection) -> Any:
    connection.execute(_BY_INDEX)
    return connection.execute(statement, parameters).one()


def cancel_batch(ledger: Ledger, ids: Sequence[str], states: Sequence[State], reason: str) -> int:
    """Cancel those of `ids` that are still in one of `states`, in one transaction; how many.

    What was to follow one, as the later steps of its chain, is cancelled with it, and not counted.

    Raises:
        Unavailable: Postgres is away; none was cancelled, or all were.
    """
    parameters = {"ids": list(ids), "states": [str(state) for state in states], "reason": reason}

    def work(connection: Connection) -> int:
        cancelled = [row.id for row in connection.execute(_CANCEL, parameters)]
        carry_on(connection, cancelled)
        return len(cancelled)

    return ledger.run(work)


def replay_batch(ledger: Ledger, ids: Sequence[str], states: Sequence[State]) -> list[Ring]:
    """Queue those of `ids` again that are still in one of `states`; their doorbells are yet to
    ring.

    Raises:
        Unavailable: Postgres is away. If they were queued after all, the keeper rings for them.
    """
    parameters = {"ids": list(ids), "states": [str(state) for state in states]}

    def work(connection: Connection) -> list[Ring]:
        return [Ring(*row) for row in connection.execute(_REPLAY, parameters)]

    return ledger.run(work)
