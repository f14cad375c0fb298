"""The tables, as SQLAlchemy Core knows them; a test holds them equal to the migrations."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from worker.jobs.states import State
from worker.ledger.namespace import SCHEMA

metadata: Final = MetaData(schema=SCHEMA)

# Ids compare byte by byte: the same order in Python, in every database, and the fastest there is.
_ID: Final = Text(collation="C")
_TIME: Final = DateTime(timezone=True)
_STATES: Final = ", ".join(f"'{state}'" for state in State)

#: Every dispatch takes the next number; the keeper compares it with the list's front.
dispatch_seq: Final = Sequence("dispatch_seq", metadata=metadata)

jobs: Final = Table(
    "jobs",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("list", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    # Attempts lost with a process that ran nothing else: at the limit the job is poison.
    Column("lost", Integer, nullable=False, server_default=text("0")),
    # 0: nothing is held against it. 1: lost with an ordinary worker, runs in a child of its own.
    # 2: lost with an isolated process, runs truly alone, so that only the guilty is condemned.
    Column("suspicion", SmallInteger, nullable=False, server_default=text("0")),
    # Whose attempt it is; kept by a finish, so that repeating it is known to have succeeded.
    Column("lease", _ID),
    Column("worker", Text),
    Column("dispatch_seq", BigInteger),
    # When it was rung for last; of a scheduled job, when its `run_at` was computed.
    Column("dispatched_at", _TIME),
    Column("rings", SmallInteger, nullable=False, server_default=text("0")),
    Column("created_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("run_at", _TIME),
    Column("expires_at", _TIME),
    Column("started_at", _TIME),
    Column("finished_at", _TIME),
    Column("key", _ID),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("parent_id", Text),
    Column("root_id", Text),
    Column("group_id", Text),
    # The message, verbatim: jsonb would turn 1e+22 into an integer and refuse NaN and NUL.
    Column("envelope", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("result", LargeBinary),
    Column("result_type", Text),
    Column("children", Text),
    Column("error", Text),
    Column("traceback", Text),
    Column("progress", LargeBinary),
    Column("progress_state", Text),
    CheckConstraint("octet_length(id) BETWEEN 1 AND 255", name="jobs_id_length"),
    CheckConstraint(f"state IN ({_STATES})", name="jobs_state_known"),
    CheckConstraint("state <> 'running' OR lease IS NOT NULL", name="jobs_running_is_leased"),
    CheckConstraint("state <> 'scheduled' OR run_at IS NOT NULL", name="jobs_scheduled_has_time"),
    Index("jobs_key", "key", unique=True, postgresql_where=text("key IS NOT NULL")),
    Index("jobs_due", "run_at", postgresql_where=text("state = 'scheduled'")),
    Index("jobs_waiting", "list", "dispatch_seq", postgresql_where=text("state = 'queued'")),
    Index("jobs_running", "lease", postgresql_where=text("state = 'running'")),
    Index(
        "jobs_suspects",
        "queue",
        "dispatch_seq",
        postgresql_where=text("suspicion > 0 AND state = 'queued'"),
    ),
    Index(
        "jobs_expiring",
        "expires_at",
        postgresql_where=text("expires_at IS NOT NULL AND state IN ('scheduled', 'queued')"),
    ),
    Index("jobs_succeeded", "finished_at", postgresql_where=text("state = 'succeeded'")),
    Index(
        "jobs_ended_badly",
        "finished_at",
        postgresql_where=text("state IN ('failed', 'cancelled')"),
    ),
    # For people, who list jobs by time: ids of Celery's have no order. The time alone, which costs
    # every move of a job the least.
    Index("jobs_created", "created_at"),
    # For people, who list dead letters by time. For no other state: claims and successes write
    # nothing here, and old statistics make it look as good as the index that a state has.
    Index(
        "jobs_dead_letters",
        "state",
        "created_at",
        "id",
        postgresql_include=["queue", "task"],
        postgresql_where=text("state IN ('failed', 'cancelled')"),
    ),
    # Three versions of a row are normal in its life: leave room, and vacuum early. A backlog that
    # the statistics do not know is met with bad plans: take them early too.
    postgresql_with={
        "fillfactor": "80",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_insert_scale_factor": "0.05",
        "autovacuum_analyze_scale_factor": "0.02",
    },
)

attempts: Final = Table(
    "attempts",
    metadata,
    Column("job_id", _ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("outcome", Text, nullable=False),
    Column("lease", _ID),
    Column("worker", Text),
    Column("started_at", _TIME),
    Column("ended_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("error", Text),
    Column("traceback", Text),
    postgresql_with={"autovacuum_vacuum_scale_factor": "0.05"},
)

#: One row per worker process: its lease. No index but the key's, and half of each page free: a
#: renewal is a HOT update.
workers: Final = Table(
    "workers",
    metadata,
    Column("lease", _ID, primary_key=True),
    Column("name", Text, nullable=False),
    Column("isolated", Boolean, nullable=False, server_default=text("false")),
    # What dies together: a worker and the isolated process that it started share it.
    Column("pod", Text),
    # How many jobs it runs at once.
    Column("slots", Integer, nullable=False, server_default=text("1")),
    Column("queues", ARRAY(Text), nullable=False),
    # Those that it knows, and alone is granted; null for any.
    Column("tasks", ARRAY(Text)),
    Column("started_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("renewed_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Column("expires_at", _TIME, nullable=False),
    Index("workers_expiring", "expires_at"),
    postgresql_with={"fillfactor": "50"},
)

#: One row per kind of leader: its lease.
leaders: Final = Table(
    "leaders",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_at", _TIME, nullable=False),
)

#: The tasks that workers have published, with what their arguments must look like.
catalogue: Final = Table(
    "catalogue",
    metadata,
    Column("task", Text, primary_key=True),
    Column("parameters", JSONB, nullable=False),
    Column("published_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
)

#: The queues that workers have consumed.
queues: Final = Table(
    "queues",
    metadata,
    Column("name", Text, primary_key=True),
    Column("consumed_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
)

#: Results of groups saved by `GroupResult.save()`.
groups: Final = Table(
    "groups",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("result", LargeBinary, nullable=False),
    Column("created_at", _TIME, nullable=False, server_default=text("clock_timestamp()")),
    Index("groups_created", "created_at"),
)
