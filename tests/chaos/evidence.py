"""The evidence: the history files, loaded beside the audit into temporary tables of one session.

said      what producers and tasks were answered, an event a row
runs      executions, each with its start and its end, and when at the latest it was over
moves     the audit of jobs, each with the state that the move before left, and the job's life:
          how often it had been replayed
leases    one row a lease: whose, from when, until when, and who ended it
found     the jobs as they are, each with its kind and the token of the execution it has a result of
unjudged  jobs of Celery's own
followers what comes after other jobs, and whether these ended as it waits for
deps      the parents of each follower
told      one row a job that anybody spoke of: what of it was acknowledged, what it was to do
deaths    processes that are gone, by the file that they wrote
steps     steps of Postgres's clock
stops     when processes were stopped, by the beginning of their files' names, or held by their GIL

Times are Unix seconds of the wall clock, the database's among them: it is the same machine. Where
the database's clock was stepped its times are put right: a step is longer than a run.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2.extensions

from tests.chaos.believed import FIELDS, believed
from tests.chaos.clock import STEP, Clock
from tests.chaos.history import Event

#: Seconds by which a death may be noted late: what ran in that process is given that much less.
NOTED_LATE = 0.5
#: The fault that stops a worker's processes for a while.
STOP = "pause-worker"

#: Seconds before the first `clock` event at which no time of the database can be.
BEFORE = 3600.0

_TABLES = """
    CREATE TEMP TABLE said (
        t float8, file text, event text, job text COLLATE "C", kind text, key text COLLATE "C",
        state text, digest text, failures int, countdown float8, after text, upon text,
        expires float8);
    CREATE TEMP TABLE runs (
        run text, job text COLLATE "C", attempt int, lease text COLLATE "C", kind text, file text,
        began float8, ended float8, how text, over float8);
    CREATE TEMP TABLE deaths (file text, t float8);
    CREATE TEMP TABLE steps (t float8, seconds float8);
    CREATE TEMP TABLE stops (files text, began float8, ended float8);
"""

_DERIVED = """
    CREATE FUNCTION pg_temp.wall(told timestamptz) RETURNS float8 LANGUAGE sql AS $$
        SELECT %(began)s + (e - %(began)s) - floor((e - %(began)s) / %(step)s) * %(step)s
        FROM (SELECT extract(epoch FROM told)::float8 AS e) AS told
    $$;
    CREATE FUNCTION pg_temp.run_of(result bytea) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        RETURN convert_from(result, 'UTF8')::json ->> 'run';
    EXCEPTION WHEN others THEN
        RETURN NULL;  -- no JSON object: no token
    END $$;

    -- Celery's own, such as what joins a chord: no producer knows of them, and no journal.
    CREATE TEMP TABLE unjudged AS
    SELECT id AS job, task, state,
           -- An enqueue of a chord that was cut short may leave what would join it, and no parts.
           task = 'celery.chord_unlock' AND EXISTS (
               SELECT FROM json_array_elements(
                   convert_from(body, 'UTF8')::json -> 1 -> 'result') AS part
               WHERE NOT EXISTS (SELECT FROM ledger.jobs p WHERE p.id = part -> 0 ->> 0)) AS is_cut
    FROM ledger.jobs WHERE (task LIKE 'celery.%%' OR starts_with(task, 'celery_ledger.'))
      AND id NOT IN (SELECT job FROM said WHERE job IS NOT NULL);

    CREATE TEMP TABLE moves AS
    SELECT n, pg_temp.wall(at) AS t, xid, by, job, old_state, new_state,
           old_attempt, new_attempt, old_lease, new_lease, old_worker, new_worker, new_lost,
           changed, lag(new_state) OVER life AS before_state,
           COALESCE(lag(new_lost) OVER life, 0) AS before_lost,
           lead(n) OVER life IS NULL AS is_last,
           count(*) FILTER (WHERE old_state IN ('succeeded', 'failed', 'cancelled')
                              AND new_state = 'queued') OVER life AS life
    FROM audit_moves WHERE job NOT IN (SELECT job FROM unjudged)
    WINDOW life AS (PARTITION BY job ORDER BY n);
    CREATE INDEX ON moves (job, n);
    CREATE INDEX ON runs (job, attempt);
    CREATE INDEX ON said (job);

    CREATE TEMP TABLE leases AS
    SELECT lease, max(name) AS name, left(max(name), 63) AS writer,
           left(max(name) || ' lease', 63) AS renewer,
           pg_temp.wall(min(at) FILTER (WHERE what = 'open')) AS opened,
           pg_temp.wall(min(at) FILTER (WHERE what = 'end')) AS ended,
           min(by) FILTER (WHERE what = 'end') AS ended_by,
           max(expires) FILTER (WHERE what = 'end') AS end_expires,
           (array_agg(expires ORDER BY n DESC) FILTER (
               WHERE what <> 'end' AND by IN (left(name, 63), left(name || ' lease', 63))
           ))[1] AS granted_until,
           max(expires) AS expires,
           extract(epoch FROM max(expires_at - renewed_at))::float8 AS seconds
    FROM (SELECT *, pg_temp.wall(renewed_at)
                    + extract(epoch FROM expires_at - renewed_at)::float8 AS expires
          FROM audit_leases) AS granted
    GROUP BY lease;

    CREATE TEMP TABLE found AS
    SELECT id AS job, substring(task FROM '[^.]*$') AS kind, state, attempt, lost, lease, worker,
           key, error, state IN ('succeeded', 'failed', 'cancelled') AS is_final,
           COALESCE(state = 'failed' AND error LIKE 'poison%%', false) AS is_poison,
           CASE WHEN state = 'succeeded' THEN pg_temp.run_of(result) END AS run
    FROM ledger.jobs WHERE id NOT IN (SELECT job FROM unjudged);
    CREATE UNIQUE INDEX ON found (job);

    -- A keyed enqueue that raised does not know its job's id.
    UPDATE said SET job = found.job FROM found WHERE said.job IS NULL AND said.key = found.key
        AND said.event IN ('accepted', 'unsure');

    CREATE TEMP TABLE told AS
    SELECT job, max(kind) AS kind, bool_or(event = 'accepted') AS accepted,
           bool_or(event IN ('accepted', 'unsure')) AS spoken_of,
           bool_or(event = 'cancelled') AS cancelled,
           bool_or(event IN ('cancelled', 'cancel-unsure')) AS cancel_asked,
           max(failures) AS failures, max(countdown) AS countdown,
           max(after) AS after, max(upon) AS upon, max(expires) AS expires
    FROM said WHERE job IS NOT NULL GROUP BY job;
    CREATE UNIQUE INDEX ON told (job);
    -- What a job is, its producer knows better than the service.
    UPDATE found SET kind = told.kind FROM told WHERE told.job = found.job
        AND told.kind <> found.kind;
    -- What follows others: whether they ended as it waits for, and whether it was promised.
    CREATE TEMP TABLE deps AS
    SELECT job, unnest(string_to_array(after, ' ')) COLLATE "C" AS parent,
           CASE upon WHEN 'success' THEN 'succeeded' ELSE 'failed' END AS asked
    FROM told WHERE after IS NOT NULL;
    CREATE TEMP TABLE followers AS
    SELECT deps.job, bool_and(COALESCE(state = asked, false)) AS is_due,
           bool_and(COALESCE(accepted, false)) AS is_promised
    FROM deps LEFT JOIN found ON found.job = parent LEFT JOIN told ON told.job = parent
    GROUP BY deps.job;
    INSERT INTO stops SELECT file, began, over FROM runs WHERE kind = 'gil';
    ANALYZE said; ANALYZE runs; ANALYZE moves; ANALYZE leases; ANALYZE found; ANALYZE told;
"""


@dataclass
class Evidence:
    """A session that holds the evidence, and what of the history is not worth a table.

    Attributes:
        cursor: of the session.
        clock: the wall clock at any time of the history.
        nemesis: its events, in their order, with `wall` of each.
        faults: what is wrong with the logs themselves.
    """

    cursor: psycopg2.extensions.cursor
    clock: Clock
    nemesis: list[Event]
    faults: list[str] = field(default_factory=list)


def load(folder: Path, cursor: psycopg2.extensions.cursor) -> Evidence:
    """Read every file of `folder` into the session of `cursor`.

    Raises:
        ValueError: there is no history, or it cannot be tied to the wall clock.
    """
    faults: list[str] = []
    nemesis = list(believed(folder / "nemesis.jsonl", faults))
    evidence = Evidence(cursor, Clock.of(nemesis), nemesis, faults)
    for event in nemesis:
        if event["event"] != "clock":
            event["wall"] = evidence.clock.wall(event["t"])
    cursor.execute(_TABLES)
    _copy(cursor, "deaths", _deaths(nemesis))
    _copy(cursor, "stops", _stops(nemesis))
    steps = [event for event in nemesis if event["event"] == "step"]
    _copy(cursor, "steps", ((event["wall"], event["seconds"]) for event in steps))
    for path in sorted(folder.glob("producer-*.jsonl")):
        events = list(believed(path, faults))
        if not any(event["event"] in FIELDS["producer"] for event in events):
            faults.append(f"{path.name}: a producer that has nothing to say")
        _copy(cursor, "said", _said(path, events, evidence.clock))
    deaths = defaultdict(list)
    for file, t in _deaths(nemesis):
        deaths[file].append(t)
    for path in sorted(folder.glob("execution-*.jsonl")):
        events = list(believed(path, faults))
        _copy(cursor, "said", _said(path, events, evidence.clock))
        _copy(cursor, "runs", _runs(path, events, evidence, deaths[path.name]))
    cursor.execute(_DERIVED, {"began": evidence.clock.began - BEFORE, "step": STEP})
    return evidence


def _deaths(nemesis: list[Event]) -> Iterator[tuple[Any, ...]]:
    for event in nemesis:
        if event["event"] == "death":
            yield Path(event["file"]).name, event["wall"] - NOTED_LATE


def _stops(nemesis: list[Event]) -> Iterator[tuple[Any, ...]]:
    began: dict[str, float] = {}
    for event in nemesis:
        if event.get("fault") == STOP and event["event"] == "begin":
            began[event["target"]] = event["wall"]
        elif event.get("fault") == STOP and event["event"] == "end" and event["target"] in began:
            files = f"execution-{event['target'].partition('@')[0]}-"
            yield files, began.pop(event["target"]), event["wall"]


def _said(path: Path, events: Iterable[Event], clock: Clock) -> Iterator[tuple[Any, ...]]:
    known = FIELDS[path.stem.partition("-")[0]]
    for event in events:
        if event["event"] in ("start", "end"):
            continue
        told = event if event["event"] in known else {}  # what is for people is not looked into
        arguments = told.get("arguments") or {}
        fields = [told.get(name) for name in ("job", "kind", "key", "state", "digest")]
        asked = [arguments.get(name) for name in ("failures", "countdown")]
        more = [" ".join(told.get("after") or ()) or None, told.get("upon"), told.get("expires")]
        yield (clock.wall(event["t"]), path.name, event["event"], *fields, *asked, *more)


def _runs(
    path: Path, events: list[Event], evidence: Evidence, deaths: list[float]
) -> Iterator[tuple[Any, ...]]:
    """The executions of one process; one without an end was over when its process was."""
    wall = evidence.clock.wall
    over = max([*(wall(event["t"]) for event in events), *deaths], default=0.0)
    ends = {event["run"]: event for event in events if event["event"] == "end"}
    for event in events:
        if event["event"] != "start":
            continue
        end = ends.pop(event["run"], None)
        if end and any(end[name] != event[name] for name in ("job", "attempt", "lease")):
            evidence.faults.append(f"{path.name}: an end that is not its start's: {end}")
        ended = wall(end["t"]) if end else None
        told = [event[name] for name in ("run", "job", "attempt", "lease", "kind")]
        how = end["how"] if end else None
        yield (*told, path.name, wall(event["t"]), ended, how, over if ended is None else ended)
    for event in ends.values():
        evidence.faults.append(f"{path.name}: an end without its start: {event}")


def _copy(cursor: psycopg2.extensions.cursor, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    text = "".join("\t".join(map(_field, row)) + "\n" for row in rows)
    cursor.copy_expert(f"COPY {table} FROM STDIN", io.StringIO(text))


def _field(value: Any) -> str:
    """As COPY reads it."""
    if value is None:
        return r"\N"
    text = str(value).replace("\\", "\\\\").replace("\0", "")
    return text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
