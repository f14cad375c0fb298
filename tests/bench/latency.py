"""How long a job takes from the call that enqueues it until it starts, and until its result."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.contenders import PYTHON, Contender
from tests.bench.field import Field, Place, Team
from tests.bench.runs import Failed, Run, percentile
from tests.bench.tally import ticked
from tests.bench.usage import Meter
from worker.stack.process import Process

PACED, LOADING = "tests.bench.apps.paced", "tests.bench.apps.loading"
#: Mean seconds between two jobs whose latency is taken.
PAUSE = 0.02
#: Jobs that run before the first of these; seconds that the load runs before it.
WARM, STEADY = 50, 2.0
PATIENCE = 60.0

#: When each result was committed, by its id: seconds of the epoch.
_COMMITS = {
    "jobs": "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM ledger.jobs"
    " WHERE state = 'succeeded' AND id = ANY(%s)",
    "celery_taskmeta": "SELECT task_id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
    " FROM celery_taskmeta WHERE status = 'SUCCESS' AND task_id = ANY(%s)",
}


def latency(field: Field, contender: Contender, load: float, seconds: float, place: Place) -> Run:
    """Enqueue stamped jobs at a pace, beside `load` no-ops a second.

    Raises:
        Failed: not every job ran.
    """
    place.empty()
    tally = field.tally()
    count = max(20, int(seconds / PAUSE))
    began = time.monotonic()
    with field.team(contender, tally, place) as team:
        way = contender.ways[-1]
        field.run(contender, place, tally, [contender.app, way, "noop", WARM, 0])
        _await(lambda: ticked(tally) >= WARM, contender, team, "warm up")
        meter = Meter([*field.pids, *place.between, *team.all_pids])
        with _loaded(field, contender, load, tally, place):
            sent = field.run(contender, place, tally, [PACED, contender.app, count, PAUSE])[0]
        others = meter.others()
        _await(lambda: len(_starts(tally)) >= count, contender, team, "start every job")
        starts = _starts(tally)
        ends = _ends(contender, place, [job for _, job in sent], team)
    began_jobs = [(starts[number] - at) * 1000 for number, (at, _) in enumerate(sent)]
    figures = _figures("start", began_jobs)
    if ends:
        figures |= _figures("result", [(ends[job] - at) * 1000 for at, job in sent])
    figures |= {"load": load, "others": others}
    shutil.rmtree(tally)
    setting = "half load" if load else "idle"
    return Run(
        "latency", contender.name, contender.title, "stamp",
        f"{setting}, {place.setting}" if place.setting else setting,
        count, time.monotonic() - began, figures,
    )  # fmt: skip


def _figures(name: str, milliseconds: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p{part}_ms": percentile(milliseconds, part / 100) for part in (50, 99)}


@contextmanager
def _loaded(
    field: Field, contender: Contender, load: float, tally: Path, place: Place
) -> Iterator[None]:
    """The load, when there is to be one."""
    if not load:
        yield
        return
    process = Process(
        [*PYTHON, LOADING, contender.app, str(load)],
        log=tally / "loading.log",
        environment=field.near(contender, tally, place),
        death_signal=signal.SIGKILL,
    )
    try:
        process.start()
        time.sleep(STEADY)
        yield
        if not process.alive:
            raise Failed(f"The load of {contender.name} ended: {process.log_tail()}")
    finally:
        process.kill()


def _starts(tally: Path) -> dict[int, float]:
    """When each job started, monotonic."""
    found: dict[int, float] = {}
    for path in tally.glob("starts-*"):
        for line in path.read_text().splitlines():
            number, at = line.split()
            if int(number) >= 0:
                found.setdefault(int(number), float(at))
    return found


def _ends(contender: Contender, place: Place, jobs: list[str], team: Team) -> dict[str, float]:
    """When each result was committed, monotonic; empty where no result is kept in Postgres."""
    table = contender.final.split()[1] if contender.final else ""
    if table not in _COMMITS:
        return {}

    def committed() -> dict[str, float]:
        rows = place.execute(_COMMITS[table], [jobs])
        apart = time.time() - time.monotonic()
        return {str(job): float(at) - apart for job, at in rows}

    _await(lambda: len(committed()) >= len(jobs), contender, team, "keep every result")
    return committed()


def _await(is_so: Callable[[], bool], contender: Contender, team: Team, what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > until or not team.alive:
            raise Failed(f"{contender.name} did not {what} within {PATIENCE:.0f} s.")
        time.sleep(0.05)
