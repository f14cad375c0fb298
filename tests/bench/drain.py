"""One timed run: fill a queue, start the workers, and see how fast what is in it ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psycopg2

from tests.bench import standstill, usage
from tests.bench.contenders import CORES, Contender
from tests.bench.field import Field, Place, Team
from tests.bench.runs import Failed, Run
from tests.bench.tally import ticked

#: The part of the jobs that has ended when the clock begins: every worker is at it by then.
WARM = 0.1
#: Seconds between two looks at how far it is.
LOOK = 0.02
#: Seconds in which no job ends, after which evidence is kept; and the same for the first job.
STILL, START = 5.0, 20.0
#: Jobs that one producer enqueues alone.
MANY = 10_000
#: Seconds that a run may take, and how much longer than its expected rate lets it.
PATIENCE, FACTOR = 60.0, 4.0
#: Whose processor time a job costs.
PROGRAMS = ("worker", "postgres", "redis")


def drain(
    field: Field, contender: Contender, workload: str, jobs: int, rate: float, place: Place
) -> Run:
    """Fill, start the workers, time them.

    Args:
        field: where.
        contender: who.
        workload: what the jobs do.
        jobs: how many.
        rate: jobs a second that are expected.
        place: where the stores are.

    Raises:
        Failed: not every job ran just once.
    """
    place.empty()
    tally = field.tally()
    final = None
    if contender.final:
        (began,) = place.execute("SELECT clock_timestamp()::text")[0]
        final = "SELECT count(*) " + contender.final.format(began=began)
    fill(field, contender, workload, jobs, tally, place)
    if not place.keeps:
        place.execute("ANALYZE")
    with field.team(contender, tally, place) as team:
        limit = PATIENCE + FACTOR * jobs / rate
        run = _Watch(field, contender, place, tally, team, limit).timed(workload, jobs, final)
    if (ran := ticked(tally)) != jobs:
        raise Failed(f"{contender.name} ran {ran} of {jobs} jobs, or some of them twice.")
    shutil.rmtree(tally)
    return run


def fill(
    field: Field, contender: Contender, workload: str, jobs: int, tally: Path, place: Place
) -> None:
    """Enqueue so many; not timed, so many jobs are enqueued by a producer on each core."""
    producers = CORES if jobs > MANY else 1
    parts = [jobs // producers] * producers
    parts[0] += jobs - sum(parts)
    way = contender.ways[-1]
    field.run(contender, place, tally, *([contender.app, way, workload, part, 0] for part in parts))


class _Watch:
    """Follows one run."""

    def __init__(
        self,
        field: Field, contender: Contender, place: Place, tally: Path, team: Team, limit: float,
    ) -> None:  # fmt: skip
        self._field, self._contender, self._place = field, contender, place
        self._tally, self._team = tally, team
        self._limit = time.monotonic() + limit
        self._seen, self._moved, self._pause, self._kept = -1, time.monotonic(), 0.0, False

    def timed(self, workload: str, jobs: int, final: str | None) -> Run:
        """Time the run from the first tenth of its jobs to the last final row."""
        warm = self._until(lambda: ticked(self._tally), WARM * jobs)
        self._pause = 0.0
        began, before = time.monotonic(), self._cpu()
        meter = usage.Meter([*self._field.pids, *self._place.between, *self._team.all_pids])
        self._until(lambda: ticked(self._tally), jobs)
        if final:
            self._await_rows(final, jobs)
        seconds = time.monotonic() - began
        spent = {name: after - before[name] for name, after in self._cpu().items()}
        timed = jobs - warm
        figures = {
            "rate": timed / seconds,
            **{name: spent[name] / timed * 1e6 for name in PROGRAMS},
            "cpu": sum(spent[name] for name in PROGRAMS) / timed * 1e6,
            "proxy_load": spent["proxy"] / seconds,
            "others": meter.others(),
            "pause": self._pause,
            "memory": usage.memory(self._team.pids),
        }
        who = self._contender
        setting = self._place.setting
        return Run("drain", who.name, who.title, workload, setting, jobs, seconds, figures)

    def _await_rows(self, final: str, jobs: int) -> None:
        """Wait until another connection sees that every job has its final row."""
        connection = psycopg2.connect(self._place.postgres)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:

                def visible() -> int:
                    cursor.execute(final)
                    (count,) = cursor.fetchone() or (0,)
                    return int(count)

                self._until(visible, jobs)
        finally:
            connection.close()

    def _until(self, count: Callable[[], int], wanted: float) -> int:
        """Wait until the count is there; what it is then."""
        while (found := count()) < wanted:
            self._look(found)
            time.sleep(LOOK)
        self._moved = time.monotonic()
        return found

    def _look(self, found: int) -> None:
        now = time.monotonic()
        if found != self._seen:
            self._pause = max(self._pause, now - self._moved)
            self._seen, self._moved, self._kept = found, now, False
        dead = not self._team.alive
        still = now - self._moved > (STILL if found else START)
        if still and not self._kept:
            self._kept = True
            self._evidence(f"{found} jobs have ended")
        if now > self._limit or dead:
            where = self._evidence(f"given up after {found} jobs")
            what = "has a process that ended" if dead else "is far too slow, or stands still"
            raise Failed(f"{self._contender.name} {what}; see {where}.")

    def _evidence(self, what: str) -> Path:
        return standstill.keep(
            what, self._field, self._contender, self._place, self._team, self._tally
        )

    def _cpu(self) -> dict[str, float]:
        return {
            "worker": usage.seconds(self._team.all_pids),
            "postgres": usage.seconds([self._field.postgres.pid]),
            "redis": usage.seconds([self._field.redis.pid]),
            "proxy": usage.seconds(self._place.between),
        }
