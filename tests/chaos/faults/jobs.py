"""Jobs that harm the worker that runs them."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Generator
from typing import Any

from tests.chaos import history
from tests.chaos.faults.registry import Course, begin, end, fault, met
from tests.chaos.members import Member
from tests.chaos.rig import Rig
from tests.chaos.tails import Tail
from worker.client import Client
from worker.errors import LedgerError
from worker.settings import Settings

#: Seconds in which such a job is to begin. Both come by a queue of one pool, past any backlog.
BEGUN = 90.0


def _enqueue(rig: Rig, kind: str, queue: str, **arguments: Any) -> str | None:
    """The job, when it was accepted."""
    settings = Settings.load(database_url=rig.postgres.url, redis_url=rig.redis.url)
    journal = history.Journal(rig.history / "producer-nemesis.jsonl")
    with Client(settings) as client:
        key = uuid.uuid4().hex
        try:
            job = client.enqueue(f"chaos.{kind}", [], arguments, key=key, queue=queue).id
        except LedgerError as exc:
            journal.note("unsure", job=None, kind=kind, key=key, error=str(exc))
            return None
        journal.note("accepted", job=job, kind=kind, key=key)
        return job


def _begun(tail: Tail, job: str | None) -> Generator[float, None, str]:
    """Wait until the job starts; the file that tells of it, or nothing."""
    before = time.monotonic() + BEGUN
    while job and time.monotonic() < before:
        for file, event in tail.new(job):
            if event["event"] == "start" and event["job"] == job:
                return file
        yield 0.05
    return ""


@fault("gil")
def gil(rig: Rig, dice: random.Random) -> Course:
    """Enqueue a job that holds the GIL past the lease, where it stops a whole worker: in threads.

    In a prefork child it would stop nobody else, so it is for a queue that these do not consume.
    """
    begin(rig, "gil", "")
    tail, seconds = Tail(rig.history), round(rig.terms.lease * 1.7, 1)
    job = _enqueue(rig, "gil", "threads", seconds=seconds)
    file = yield from _begun(tail, job)
    member = _worker_of(rig, file)
    if member is not None:
        with rig.striking(member):
            met(rig, "gil", member.node, job=job, file=file)
            yield seconds
    end(rig, "gil", member.node if member else "")


def _worker_of(rig: Rig, file: str) -> Member | None:
    """The worker with threads whose own process writes this file."""
    for member in rig.workers:
        if member.pool == "threads" and file == f"{member.prefix}{member.started_pid}.jsonl":
            return member
    return None


@fault("poison")
def poison(rig: Rig, dice: random.Random) -> Course:
    """Enqueue a job that kills its process: always, or once; in a prefork pool a child."""
    pool = dice.choice(sorted({member.pool for member in rig.workers}))
    begin(rig, "poison", "")
    tail = Tail(rig.history)
    if dice.random() < 0.5:
        job = _enqueue(rig, "dying", pool)
    else:
        mark = rig.folder / f"died-{dice.getrandbits(64):016x}"
        job = _enqueue(rig, "dying_once", pool, mark=str(mark))
    file = yield from _begun(tail, job)
    if file:
        met(rig, "poison", file, job=job)
    end(rig, "poison", file)
