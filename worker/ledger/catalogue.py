"""What workers have published of themselves: their tasks, signatures and queues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from worker.ledger.database import Ledger

_PUBLISH_TASKS = text("""
    INSERT INTO ledger.catalogue (task, parameters)
    SELECT task, CAST(parameters AS jsonb)
    FROM unnest(CAST(:tasks AS text[]), CAST(:parameters AS text[])) AS new (task, parameters)
    ORDER BY task
    ON CONFLICT (task) DO UPDATE
    SET parameters = excluded.parameters, published_at = clock_timestamp()
""")

_PUBLISH_QUEUES = text("""
    INSERT INTO ledger.queues (name) SELECT name FROM unnest(CAST(:queues AS text[])) AS new (name)
    ORDER BY name
    ON CONFLICT (name) DO UPDATE SET consumed_at = clock_timestamp()
""")

_TASKS = text("SELECT task, parameters FROM ledger.catalogue")
_QUEUES = text("SELECT name FROM ledger.queues")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What can be enqueued.

    Attributes:
        tasks: each task's parameters, as `worker.jobs.signature` writes them.
        queues: every queue that some worker has consumed.
    """

    tasks: Mapping[str, Any]
    queues: frozenset[str]


def publish(ledger: Ledger, tasks: Mapping[str, Any], queues: Sequence[str]) -> None:
    """Make known what a worker can run and where it listens."""
    names = sorted(tasks)

    def work(connection: Connection) -> None:
        connection.execute(
            _PUBLISH_TASKS,
            {"tasks": names, "parameters": [json.dumps(tasks[name]) for name in names]},
        )
        connection.execute(_PUBLISH_QUEUES, {"queues": sorted(set(queues))})

    ledger.run(work)


def read_catalogue(ledger: Ledger) -> Catalogue:
    """Everything that workers have published."""
    tasks = {row.task: row.parameters for row in ledger.rows(_TASKS)}
    return Catalogue(tasks, frozenset(row.name for row in ledger.rows(_QUEUES)))
