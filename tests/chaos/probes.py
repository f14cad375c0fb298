"""Whether every worker still takes work: never silently stuck."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.chaos import history
from tests.chaos.members import Member
from tests.chaos.tails import Tail
from worker.client import Client
from worker.errors import LedgerError
from worker.jobs.message import new_job
from worker.settings import Settings

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

#: Jobs that are offered at once, so that every slot is wanted, and how long each takes.
OFFERED, SECONDS = 600, 0.2
#: Seconds in which every worker is to have opened its lease, when nothing breaks any more.
LEASED = 60.0
#: Seconds between two looks.
LOOK = 0.1

_QUEUED = "SELECT count(*) FROM ledger.jobs WHERE state IN ('queued', 'running')"


def probe_each_worker(rig: Rig, seconds: float) -> list[str]:
    """Offer work until every worker has started a job.

    A worker has `seconds` for that, from when it has a lease and work is offered. Nothing may
    break meanwhile.

    Returns: a sentence for every worker that is stuck.
    """
    began = time.monotonic()
    tail, idle, since = Tail(rig.history), list(rig.workers), dict[str, float]()
    with Client(Settings.load(database_url=rig.postgres.url, redis_url=rig.redis.url)) as client:
        while idle and time.monotonic() - began < LEASED + seconds:
            rig.look_after()
            _offer(rig, client)
            started = {file for file, event in tail.new('"start"') if event["event"] == "start"}
            idle = [member for member in idle if not started & _files(rig, member)]
            for node in rig.leased():
                since.setdefault(node, time.monotonic())
            if all(since.get(m.node, began + LEASED) + seconds < time.monotonic() for m in idle):
                break
            time.sleep(LOOK)
        until = time.monotonic() + LEASED
        while rig.query(_QUEUED) != [(0,)] and time.monotonic() < until:
            time.sleep(LOOK)  # what was offered is to end, as everything that was accepted
    return [
        f"{member.node} has started no job in {seconds:g} s of work on offer"
        if member.node in since
        else f"{member.node} has no lease, {LEASED:g} s after nothing breaks any more"
        for member in idle
    ]


def _offer(rig: Rig, client: Client) -> None:
    """Top up what is queued, for the pools of every worker."""
    ((queued,),) = rig.query(_QUEUED)
    if queued >= OFFERED / 2:
        return
    journal = history.Journal(rig.history / "producer-nemesis.jsonl")
    jobs = [new_job("chaos.sleep", [], {"seconds": SECONDS}) for _ in range(OFFERED)]
    for job in jobs:
        journal.note("unsure", job=job.id, kind="sleep", key=None, error="about to be enqueued")
    try:
        client.enqueue_many(jobs)
    except LedgerError:
        return  # the next look offers others
    for job in jobs:
        journal.note("accepted", job=job.id, kind="sleep", key=None)


def _files(rig: Rig, member: Member) -> set[str]:
    """What the processes of a worker's own pool write; its isolated process is another's proof."""
    pids = [member.started_pid, *member.children]
    return {f"{member.prefix}{pid}.jsonl" for pid in pids}
