"""How the service does: keepers, workers, queues; what waits is counted in an index alone."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import text

from worker.jobs.queues import SEPARATOR
from worker.ledger.database import Ledger
from worker.ledger.guards import NOWHERE, is_ahead, is_expired

#: Scheduled jobs that are looked at, the next to run first.
SCHEDULED_MOST: Final = 100_000
#: The name under which keepers lead, and before the names of those that stand by.
LEADER: Final = "keeper"
STANDBY: Final = "keeper standby "

# A lead or a standby lasts for some seconds; further ahead, the clock has stepped back since.
_ALIVE = "(expires_at > statement_timestamp() AND NOT {})".format(
    is_ahead("expires_at - interval '1 minute'")
)

_KEEPERS = text(f"""
    SELECT holder, bool_or(name = :leader) AS leads, bool_or({_ALIVE}) AS alive
    FROM ledger.leaders WHERE name = :leader OR starts_with(name, :standby)
    GROUP BY holder ORDER BY leads DESC, holder
""")  # noqa: S608 -- constants of the ledger

_LED = text(f"SELECT FROM ledger.leaders WHERE name = :leader AND {_ALIVE}")

_WORKERS = text(f"""
    SELECT name, isolated, slots, queues, started_at, renewed_at,
           extract(epoch FROM statement_timestamp() - renewed_at) AS silent,
           NOT {is_expired("workers")} AS alive,
           {is_ahead("renewed_at")} AS ahead,
           (SELECT count(*) FROM ledger.jobs WHERE state = 'running' AND jobs.lease = workers.lease)
           AS running
    FROM ledger.workers ORDER BY name, isolated, started_at
""")  # noqa: S608 -- ditto

_QUEUED = text("""
    SELECT split_part(lists.list, :separator, 1) AS queue, sum(lists.jobs) AS jobs,
           max(extract(epoch FROM statement_timestamp() - oldest.since)) AS oldest
    FROM (SELECT list, count(*) AS jobs FROM ledger.jobs WHERE state = 'queued' GROUP BY list)
         AS lists,
         LATERAL (SELECT min(GREATEST(created_at, run_at)) AS since FROM (
             SELECT created_at, run_at FROM ledger.jobs
             WHERE state = 'queued' AND jobs.list = lists.list ORDER BY dispatch_seq LIMIT 100
         ) AS first) AS oldest
    GROUP BY 1
""")

_SCHEDULED = text("""
    SELECT queue, count(*) AS jobs,
           count(*) FILTER (WHERE starts_with(error, :nowhere)) AS unknown,
           COALESCE(max(extract(epoch FROM statement_timestamp() - run_at))
                    FILTER (WHERE run_at < statement_timestamp()), 0) AS overdue
    FROM (SELECT queue, run_at, error FROM ledger.jobs
          WHERE state = 'scheduled' ORDER BY run_at LIMIT :most) AS soon
    GROUP BY queue
""")

_SUSPECTS = text(
    "SELECT count(*) AS jobs FROM ledger.jobs WHERE suspicion > 0 AND state = 'queued'"
)

_CONSUMED = text("SELECT name FROM ledger.queues")

_NOW = text("SELECT clock_timestamp() AS now")


@dataclass(frozen=True, slots=True)
class Keeper:
    """A keeper, as it last told: `host:pid:…`, whether it leads, whether it is alive."""

    holder: str
    leads: bool
    alive: bool


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker process, as its lease tells.

    Attributes:
        name: Celery's.
        isolated: whether it runs suspects only.
        slots: how many jobs it runs at once.
        queues: those that it consumes.
        started_at, renewed_at: when its lease was opened and last renewed.
        silent: seconds since the last renewal, by Postgres's clock.
        alive: whether its lease holds.
        ahead: whether it was renewed in the future: Postgres's clock has stepped back.
        running: jobs that it runs now.
    """

    name: str
    isolated: bool
    slots: int
    queues: tuple[str, ...]
    started_at: datetime
    renewed_at: datetime
    silent: float
    alive: bool
    ahead: bool
    running: int


@dataclass(slots=True)
class Queue:
    """A queue.

    Attributes:
        name: its name.
        waiting: jobs that are ready for a worker.
        oldest: seconds that the oldest of these is ready, 0 without any.
        scheduled: jobs that wait for their time or for other jobs.
        overdue: seconds by which the first of these is late.
        unknown: of these, jobs whose task no living worker knows.
        served: whether a living worker consumes it.
    """

    name: str
    waiting: int = 0
    oldest: float = 0.0
    scheduled: int = 0
    overdue: float = 0.0
    unknown: int = 0
    served: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """What the ledger knows of the service at `now`, by Postgres's clock."""

    now: datetime
    keepers: tuple[Keeper, ...]
    workers: tuple[Worker, ...]
    queues: tuple[Queue, ...]
    suspects: int


def read_status(ledger: Ledger) -> Status:
    """How the service does.

    Raises:
        Unavailable: Postgres is away.
    """
    workers = [
        Worker(**{**row._mapping, "queues": tuple(row.queues), "silent": float(row.silent)})
        for row in ledger.rows(_WORKERS)
    ]
    ((now,),), ((suspects,),) = ledger.rows(_NOW), ledger.rows(_SUSPECTS)
    keepers = ledger.rows(_KEEPERS, {"leader": LEADER, "standby": STANDBY})
    return Status(
        now,
        tuple(Keeper(*row) for row in keepers),
        tuple(workers),
        tuple(_queues(ledger, workers)),
        int(suspects),
    )


def keeper_leads(ledger: Ledger) -> bool:
    """Whether a keeper is alive and leads.

    Raises:
        Unavailable: Postgres is away.
    """
    return bool(ledger.rows(_LED, {"leader": LEADER}))


def _queues(ledger: Ledger, workers: list[Worker]) -> list[Queue]:
    found: dict[str, Queue] = {}

    def queue(name: str) -> Queue:
        return found.setdefault(name, Queue(name))

    for row in ledger.rows(_CONSUMED):
        queue(row.name)
    for row in ledger.rows(_QUEUED, {"separator": SEPARATOR}):
        one = queue(row.queue)
        one.waiting, one.oldest = int(row.jobs), max(0.0, float(row.oldest or 0))
    for row in ledger.rows(_SCHEDULED, {"nowhere": NOWHERE, "most": SCHEDULED_MOST}):
        one = queue(row.queue)
        one.scheduled, one.unknown = int(row.jobs), int(row.unknown)
        one.overdue = float(row.overdue)
    for worker in workers:
        for name in worker.queues if worker.alive and not worker.isolated else ():
            queue(name).served = True
    return sorted(found.values(), key=lambda each: each.name)
