"""What waits for its time, and what is known of some ids: for those who look at a worker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import text

from worker.jobs.job import Job
from worker.jobs.states import State
from worker.ledger.bulk import Selection, selected
from worker.ledger.database import Ledger
from worker.ledger.read import read_many

#: Jobs that one answer names, and rows of the index that are looked through for them.
MOST: Final = 100
_LOOKED_THROUGH: Final = 10_000

_NEXT = text("""
    SELECT id FROM (
        SELECT id, queue, run_at FROM ledger.jobs
        WHERE state = 'scheduled' AND run_at < 'infinity' ORDER BY run_at LIMIT :window
    ) AS soon
    WHERE queue = ANY(CAST(:queues AS text[])) ORDER BY run_at LIMIT :most
""")

_SCHEDULED = text("""
    SELECT id FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND state = 'scheduled' AND run_at < 'infinity'
          AND queue = ANY(CAST(:queues AS text[]))
    LIMIT :most
""")

_ENDED = text("""
    SELECT id FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND state IN ('succeeded', 'failed', 'cancelled')
""")

_STAMPED = text("""
    SELECT id, envelope FROM ledger.jobs
    WHERE id = ANY(CAST(:ids AS text[])) AND position('"stamped_headers"' IN envelope) > 0
""")


def next_due(ledger: Ledger, queues: Sequence[str]) -> list[Job]:
    """The jobs of `queues` that wait for their time, the next to run first, `MOST` at most.

    Raises:
        Unavailable: Postgres is away.
    """
    parameters = {"queues": list(queues), "window": _LOOKED_THROUGH, "most": MOST}
    return _in_time(read_many(ledger, [row.id for row in ledger.rows(_NEXT, parameters)]))


def scheduled(ledger: Ledger, ids: Sequence[str], queues: Sequence[str]) -> list[Job]:
    """Those of `ids` that wait for their time in one of `queues`, `MOST` at most.

    Raises:
        Unavailable: Postgres is away.
    """
    parameters = {"ids": list(ids), "queues": list(queues), "most": MOST}
    return _in_time(read_many(ledger, [row.id for row in ledger.rows(_SCHEDULED, parameters)]))


def ended(ledger: Ledger, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that are known to have ended.

    Raises:
        Unavailable: Postgres is away.
    """
    return {row.id for row in ledger.rows(_ENDED, {"ids": list(ids)})}


def stamped(
    ledger: Ledger, headers: Mapping[str, Sequence[str]], states: tuple[State, ...]
) -> Iterator[tuple[State, list[str]]]:
    """The ids of jobs in `states` with one of these stamps, a window at a time.

    Args:
        ledger: where.
        headers: for each stamp's name the values looked for, one of which is enough.
        states: of `worker.ledger.bulk.OPEN`.

    Raises:
        Unavailable: Postgres is away.
    """
    for state, ids in selected(ledger, Selection(states)):
        rows = ledger.rows(_STAMPED, {"ids": ids})
        if found := [row.id for row in rows if _has_stamp(row.envelope, headers)]:
            yield state, found


def _has_stamp(envelope: str, headers: Mapping[str, Sequence[str]]) -> bool:
    stamps: Any = json.loads(envelope).get("headers", {}).get("stamps") or {}
    return any(
        set(_strings(stamps.get(name))) & set(_strings(values)) for name, values in headers.items()
    )


def _strings(values: Any) -> list[str]:
    if isinstance(values, (list, tuple, set)):
        return [str(value) for value in values]
    return [] if values is None else [str(values)]


def _in_time(jobs: list[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.run_at is None, job.run_at, job.id))
