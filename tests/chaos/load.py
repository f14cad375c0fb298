"""The load of a chaos run: how fast the mix drains, who enqueues it, and that it all ends."""

from __future__ import annotations

import logging
import math
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg2
import redis

from tests.chaos import kinds
from tests.chaos.history import Journal
from tests.chaos.rig import Rig
from tests.chaos.roads import told
from worker.client import Client
from worker.jobs.message import new_job
from worker.settings import Settings

#: Seconds until the workers must have their leases.
START = 60.0
#: Seconds that the measured jobs get to end: some, and one for so many jobs.
DRAIN, DRAINED_PER_SECOND = 60.0, 50
#: Of the measured jobs, those between these parts of them make the rate.
BETWEEN = (0.1, 0.9)
#: Kinds that are left out of the measured mix: they wait for a time, not for a worker.
WAITING = ("long", "retrying")
#: Jobs in one batch of the measured ones.
BATCH = 500
#: Jobs a second that are accepted at the least.
LEAST_RATE = 320.0
#: The part of the drain rate at which jobs are enqueued; half is what the proof asks for.
LOAD = 0.55
#: Seconds that what was accepted is given to end, once nothing breaks any more, and how many of
#: these may pass without an end: half an hour leaves more jobs behind than a slow machine runs in
#: a few minutes, and no job runs for as long as that.
SETTLE, STUCK = 3600.0, 180.0
#: Seconds between two looks at how many are left.
LOOK_EVERY = 5.0
#: Seconds of the settling after which chords are joined, if nothing else is left.
JOINED = 20.0

UNFINISHED = "SELECT count(*) FROM ledger.jobs WHERE state IN ('scheduled', 'queued', 'running')"
# From when on each worker is at it: before that the others drain alone.
_DRAINED = """
    WITH ended AS (
        SELECT finished_at, percent_rank() OVER (ORDER BY finished_at) AS part
        FROM ledger.jobs WHERE finished_at IS NOT NULL
    ), edges AS (
        SELECT greatest(
                   (SELECT min(finished_at) FROM ended WHERE part >= %s),
                   (SELECT max(first) FROM (
                       SELECT min(started_at) AS first FROM ledger.jobs
                       WHERE worker IN (SELECT name FROM ledger.workers WHERE NOT isolated)
                       GROUP BY worker) AS starts)) AS began,
               (SELECT max(finished_at) FROM ended WHERE part <= %s) AS ended
    )
    SELECT (SELECT count(*) FROM ended
            WHERE finished_at > edges.began AND finished_at <= edges.ended),
           extract(epoch FROM edges.ended - edges.began)::float8
    FROM edges
"""
_WHOLE = """
    SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM ledger.jobs
"""


class Stuck(Exception):
    """The service did not do, before anything was broken, what every run begins with."""


def drain_rate(rig: Rig, count: int, mix: dict[str, int], seed: str) -> float:
    """Jobs of the mix a second that the workers end, from a full queue.

    The queue is filled before a worker runs. Children count, as they are jobs too; the last tenth
    does not, for it waits for the retries.

    Raises:
        Stuck: the workers did not start, or did not end the jobs.
    """
    _hold_workers(rig)
    _fill(rig, count, mix, seed)
    for worker in rig.workers:
        worker.is_stopped = False
        worker.start()
    _await(rig, START, f"The workers did not start in {START:.0f} s", all_have_leases)
    limit = DRAIN + count / DRAINED_PER_SECOND
    _await(
        rig,
        limit,
        f"The {count} measured jobs did not end in {limit:.0f} s",
        lambda r: left(r) == 0,
    )
    for query, parameters in ((_DRAINED, BETWEEN), (_WHOLE, ())):
        ((jobs, seconds),) = rig.query(query, *parameters)
        if jobs and seconds and seconds > 0:
            return float(jobs / seconds)
    raise Stuck(f"The {count} measured jobs are too few to measure by.")


def all_have_leases(rig: Rig) -> bool:
    """Whether every worker has its lease, and with it the catalogue its tasks."""
    leased = rig.leased()
    return all(worker.node in leased for worker in rig.workers)


def left(rig: Rig) -> int:
    """Jobs that have not ended."""
    ((jobs,),) = rig.query(UNFINISHED)
    return int(jobs)


def produce(rig: Rig, rate: float, mix: dict[str, int]) -> None:
    """Start the producers: by these `rate` jobs are accepted a second, and a few more are foreign.

    Three use the client, one is a Celery app, one knows nothing of the ledger. A sixth composes
    canvases, of about three jobs each.
    """
    for name in ("p1", "p2", "p3"):
        rig.produce(name, "client", rate * 0.31, mix)
    rig.produce("p4", "celery", rate * 0.05, mix)
    rig.produce("p6", "canvas", rate * 0.02, mix)
    rig.produce("p5", "foreign", rate * 0.02, mix)


def settle(rig: Rig, look: Callable[[], None]) -> None:
    """Wait until every job has ended and Redis is empty, or nothing has ended for `STUCK` seconds.

    Entries that died with a worker before they were rows are put back only after a while: until
    then Redis holds jobs that nobody else knows of.
    """
    began = time.monotonic()
    progress = _Progress(rig)
    while not is_quiet(rig) and time.monotonic() - began < SETTLE and not progress.is_over():
        # What would join a chord whose enqueue was cut short looks for its parts for ever.
        if time.monotonic() - began > JOINED and _only_joins(rig):
            break
        rig.look_after()
        look()
        time.sleep(0.1)
    rig.note_clock()


class _Progress:
    """Whether ever fewer jobs are left."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._least = math.inf
        self._looked = self._moved = time.monotonic()

    def is_over(self) -> bool:
        """Whether none has ended for `STUCK` seconds."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            with suppress(psycopg2.Error):
                if (count := left(self._rig)) < self._least:
                    self._least, self._moved = count, now
        return now - self._moved > STUCK


def _only_joins(rig: Rig) -> bool:
    try:
        ((jobs,),) = rig.query(f"{UNFINISHED} AND task <> 'celery.chord_unlock'")
        return int(jobs) == 0
    except psycopg2.Error:
        return False


def is_quiet(rig: Rig) -> bool:
    """Whether nothing is left to do; not while a store cannot say so."""
    try:
        # Redis first: what leaves it is a row afterwards.
        return doorbells(rig) == 0 and left(rig) == 0
    except (psycopg2.Error, redis.RedisError):
        return False


def doorbells(rig: Rig) -> int:
    """Entries of Redis's lists, and those that were popped and are not yet rows."""
    with rig.doorbells() as client:
        lists = [key for key in client.scan_iter(_type="list") if not key.startswith(b"ledger:")]
        return int(client.hlen("ledger:unacked")) + sum(int(client.llen(key)) for key in lists)


def _hold_workers(rig: Rig) -> None:
    """End the workers, which have only just been started, until the queue is full."""
    for worker in rig.workers:
        worker.is_stopped = True
        worker.send(signal.SIGTERM)
    for worker in rig.workers:
        if worker.process is not None and not worker.process.wait(rig.terms.drain + 10):
            raise Stuck(f"{worker.name} did not end after SIGTERM; see {rig.logs}.")


def _fill(rig: Rig, count: int, mix: dict[str, int], seed: str) -> None:
    dice = random.Random(f"{seed} drain")
    measured = {kind: n for kind, n in mix.items() if kind not in WAITING and n} or mix
    journal = Journal(rig.history / "producer-measure.jsonl")
    settings = Settings.load(database_url=rig.postgres.url, redis_url=rig.redis.url)
    # That no worker has published its tasks yet is as it must be here.
    logging.getLogger("worker.flows.enqueue").setLevel(logging.ERROR)
    with Client(settings) as client:
        for begin in range(0, count, BATCH):
            drawn: list[tuple[str, dict[str, Any]]] = [
                kinds.draw(dice, measured, rig.terms.lease)
                for _ in range(min(BATCH, count - begin))
            ]
            jobs = [new_job(f"chaos.{kind}", [], arguments) for kind, arguments in drawn]
            client.enqueue_many(jobs)
            for job, each in zip(jobs, drawn, strict=True):
                journal.note("accepted", **told(each, job.id))


def _await(rig: Rig, seconds: float, otherwise: str, is_so: Callable[[Rig], bool]) -> None:
    until = time.monotonic() + seconds
    while not is_so(rig):
        if time.monotonic() > until:
            raise Stuck(f"{otherwise}: {left(rig)} have not; see {rig.logs}.")
        time.sleep(0.05)
