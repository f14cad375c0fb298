"""What is kept of a run that stands still: rows, lists, stacks, logs, in a folder of its own."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg2
import redis

from tests.bench import usage
from tests.bench.contenders import Contender
from tests.bench.field import Field, Place, Team
from tests.bench.tally import ticked

FOLDER = Path("build")
_numbers = itertools.count(1)

#: What is asked of Postgres, by the name of the file.
QUESTIONS = {
    "states": "SELECT state, list, task, count(*), min(dispatch_seq), max(dispatch_seq),"
    " max(rings), max(attempt), max(suspicion), min(error) FROM ledger.jobs GROUP BY 1, 2, 3",
    "open": "SELECT id, state, attempt, lost, suspicion, lease, worker, list, dispatch_seq,"
    " dispatched_at, rings, created_at, started_at FROM ledger.jobs"
    " WHERE state NOT IN ('succeeded', 'failed', 'cancelled') ORDER BY dispatch_seq LIMIT 200",
    "workers": "SELECT * FROM ledger.workers",
    "leaders": "SELECT *, clock_timestamp() FROM ledger.leaders",
    "attempts": "SELECT outcome, count(*), min(error) FROM ledger.attempts GROUP BY 1",
    "activity": "SELECT pid, application_name, state, wait_event_type, wait_event,"
    " clock_timestamp() - query_start, left(query, 300) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend'",
    "locks": "SELECT pid, locktype, relation::regclass, mode, granted FROM pg_locks"
    " WHERE NOT granted",
}


def keep(
    what: str, field: Field, contender: Contender, place: Place, team: Team, tally: Path
) -> Path:
    """Write everything down; the folder."""
    folder = FOLDER / f"standstill-{time.strftime('%H%M%S')}-{next(_numbers)}-{contender.name}"
    folder.mkdir(parents=True)
    print(f"\n{contender.name}: {what}, and nothing moves; see {folder}", flush=True)
    counted = {"what": what, "ticked": ticked(tally), "setting": place.setting}
    counted |= {"alive": team.alive, "pids": team.all_pids}
    _write(folder / "what.json", counted)
    # The stacks first: the other questions take time, and it may go on meanwhile.
    for pid in itertools.chain.from_iterable(usage.tree(pid) for pid in team.all_pids):
        _dump(pid, folder / f"stack-{pid}.txt")
    _write(folder / "redis.json", _lists(place))
    for name, question in QUESTIONS.items():
        try:
            rows: list[Any] = place.execute(question)
        except psycopg2.Error as exc:
            rows = [str(exc)]
        _write(folder / f"{name}.json", rows)
    for log in tally.glob("*.log"):
        shutil.copy(log, folder / log.name)
    shutil.copy(field.postgres.data / "postgres.log", folder / "postgres.log")
    return folder


def _dump(pid: int, path: Path) -> None:
    program = Path(sys.executable).with_name("py-spy")
    found = str(program) if program.exists() else shutil.which("py-spy")
    if found is None:
        path.write_text("py-spy is not installed.\n")
        return
    with path.open("w") as output:
        subprocess.run([found, "dump", "--pid", str(pid)], stdout=output, stderr=output)


def _lists(place: Place) -> dict[str, Any]:
    """Every key of Redis: how long it is, and the ends of a list."""
    found: dict[str, Any] = {}
    with redis.Redis.from_url(place.redis, decode_responses=True) as client:
        for key in itertools.islice(client.scan_iter(count=1000), 200):
            kind: Any = client.type(key)
            if kind == "list":
                ends = [client.lrange(key, 0, 2), client.lrange(key, -3, -1)]
                found[key] = {"length": client.llen(key), "ends": ends}
            else:
                found[key] = {"type": kind}
    return found


def _write(path: Path, what: object) -> None:
    path.write_text(json.dumps(what, indent=1, default=str) + "\n")
