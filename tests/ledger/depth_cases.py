"""The ledger's statements, each made ready to be sent once in a deep ledger."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from tests.ledger import depth as deep
from tests.ledger import given
from tests.ledger.depth import (
    ENDED,
    FORGOTTEN,
    RARE,
    RUNNING,
    SCHEDULED,
    WAITING,
    Depth,
)
from tests.ledger.plans import VAIN_EACH
from worker.jobs.job import Finish
from worker.jobs.states import State
from worker.ledger import bulk, change, lease, read
from worker.ledger.claim import adopt, claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.dispatch import WINDOW, dispatch_due, take_lost, take_unsure, waiting_lists
from worker.ledger.enqueue import enqueue
from worker.ledger.finish import finish, note_progress
from worker.ledger.rescue import rescue
from worker.ledger.retention import drop_old, expire_late
from worker.ledger.strangers import put_off
from worker.ledger.suspects import wanted

#: What the ledger's functions are given here, when they are given many.
MANY = 64

#: Makes what a statement needs, by the unwatched door; what it returns runs the statement.
Case = Callable[[Depth], Callable[[Ledger], Any]]


# Producers


def enqueueing(depth: Depth) -> Callable[[Ledger], Any]:
    jobs = [given.job(key=str(uuid.uuid4())) for _ in range(MANY)]
    return lambda ledger: enqueue(ledger, jobs)


def enqueueing_again(depth: Depth) -> Callable[[Ledger], Any]:
    jobs = [given.job(job_id) for job_id in depth.waiting(MANY)]
    return lambda ledger: enqueue(ledger, jobs)


def enqueueing_again_by_key(depth: Depth) -> Callable[[Ledger], Any]:
    jobs = [given.job(key=f"order-{number * 50}") for number in range(1000, 1000 + MANY)]
    return lambda ledger: enqueue(ledger, jobs)


def filling_what_is_awaited(depth: Depth) -> Callable[[Ledger], Any]:
    (one,) = depth.running(1)
    finish(depth.ledger, [Finish(one.fence, State.SCHEDULED, "replaced", delay=float("inf"))])
    return lambda ledger: enqueue(ledger, [given.job(one.fence.id)])


# Workers


def claiming(depth: Depth) -> Callable[[Ledger], Any]:
    ids, lease_id = depth.waiting(MANY), depth.lease()
    return lambda ledger: claim(ledger, lease_id, ids)


def claiming_one(depth: Depth) -> Callable[[Ledger], Any]:
    ids, lease_id = depth.waiting(1), depth.lease()
    return lambda ledger: claim(ledger, lease_id, ids)


def claiming_again(depth: Depth) -> Callable[[Ledger], Any]:
    fences = [one.fence for one in depth.running(MANY)]
    return lambda ledger: claim(ledger, fences[0].lease, [fence.id for fence in fences])


def claiming_suspects(depth: Depth) -> Callable[[Ledger], Any]:
    lease_id = depth.lease()
    return lambda ledger: claim_suspects(ledger, lease_id, ["celery"], 4, idle=True, known=[])


def adopting(depth: Depth) -> Callable[[Ledger], Any]:
    lease_id, jobs = depth.lease(), [given.job() for _ in range(MANY)]
    return lambda ledger: adopt(ledger, lease_id, jobs)


def ending(end: Callable[..., Finish], count: int = MANY) -> Case:
    def case(depth: Depth) -> Callable[[Ledger], Any]:
        ends = [end(one.fence) for one in depth.running(count)]
        return lambda ledger: finish(ledger, ends)

    return case


def ending_again(depth: Depth) -> Callable[[Ledger], Any]:
    ends = [given.success(one.fence) for one in depth.running(MANY)]
    finish(depth.ledger, ends)
    return lambda ledger: finish(ledger, ends)


def noting_progress(depth: Depth) -> Callable[[Ledger], Any]:
    (one,) = depth.running(1)
    fence = one.fence
    return lambda ledger: note_progress(ledger, fence.id, fence.attempt, fence.lease, b"", "HALF")


def asking_what_is_held(depth: Depth) -> Callable[[Ledger], Any]:
    lease_id = depth.running(MANY)[0].fence.lease
    return lambda ledger: lease.held(ledger, lease_id)


def closing_a_lease(depth: Depth) -> Callable[[Ledger], Any]:
    lease_id = depth.running(MANY)[0].fence.lease
    return lambda ledger: lease.close_lease(ledger, lease_id)


def asking_for_places(depth: Depth) -> Callable[[Ledger], Any]:
    lease_id = depth.lease()
    return lambda ledger: wanted(ledger, lease_id, ["celery"])


# The keeper


def dispatching(depth: Depth) -> Callable[[Ledger], Any]:
    deep.late(depth, "run_at", depth.ids(MANY, "state = 'scheduled'"))
    return lambda ledger: dispatch_due(ledger, None)


def finding_the_lists(depth: Depth) -> Callable[[Ledger], Any]:
    return waiting_lists


def losing(name: str, front: str, grace: float) -> Case:
    def case(depth: Depth) -> Callable[[Ledger], Any]:
        ((seq,),) = depth.ledger.execute(
            f"SELECT {front} FROM ledger.jobs WHERE state = 'queued' AND list = :list",
            {"list": name},
        )
        return lambda ledger: take_lost(ledger, None, name, seq, grace)

    return case


def in_doubt(depth: Depth) -> Callable[[Ledger], Any]:
    return lambda ledger: take_unsure(ledger, None, "celery")


def expiring(depth: Depth) -> Callable[[Ledger], Any]:
    waiting = "state = 'queued' AND list = 'celery' AND expires_at > now()"
    deep.late(depth, "expires_at", depth.ids(MANY, waiting))
    return lambda ledger: expire_late(ledger, None)


def rescuing(depth: Depth) -> Callable[[Ledger], Any]:
    deep.expired_worker(depth, MANY)
    return lambda ledger: rescue(ledger, None, 3)


def dropping(depth: Depth) -> Callable[[Ledger], Any]:
    return lambda ledger: drop_old(ledger, None, succeeded_days=7, failed_days=7)


# People


def listing(**filters: Any) -> Case:
    def case(depth: Depth) -> Callable[[Ledger], Any]:
        found = dict(filters)
        if "before" in found:
            (found["before"],) = depth.ids(1, found["before"])
        return lambda ledger: read.read_list(ledger, **found)

    return case


def reading(depth: Depth) -> Callable[[Ledger], Any]:
    ids = depth.ids(MANY, "state = 'failed'")
    return lambda ledger: read.read_many(ledger, ids)


def counting_some(depth: Depth) -> Callable[[Ledger], Any]:
    ids = depth.waiting(MANY)
    return lambda ledger: read.counts(ledger, ids)


def one_job(where: str, run: Callable[[Ledger, str], Any]) -> Case:
    def case(depth: Depth) -> Callable[[Ledger], Any]:
        (job_id,) = depth.ids(1, where)
        return lambda ledger: run(ledger, job_id)

    return case


def cancelling(ledger: Ledger, job_id: str) -> None:
    change.cancel(ledger, job_id, "not wanted")


def counting(*states: State, **more: Any) -> Case:
    return lambda depth: lambda ledger: bulk.count(ledger, bulk.Selection(states, **more))


def cancelling_many(depth: Depth) -> Callable[[Ledger], Any]:
    ids = depth.waiting(MANY)
    return lambda ledger: bulk.cancel_batch(ledger, ids, bulk.OPEN, "not wanted")


def replaying_many(depth: Depth) -> Callable[[Ledger], Any]:
    ids = depth.ids(MANY, "state = 'failed'")
    return lambda ledger: bulk.replay_batch(ledger, ids, bulk.ENDED_BADLY)


def putting_off(depth: Depth) -> Callable[[Ledger], Any]:
    ids = depth.waiting(MANY)
    return lambda ledger: put_off(ledger, ids, ["mine"])


def recalling(depth: Depth) -> Callable[[Ledger], Any]:
    ids = depth.waiting(MANY)
    put_off(depth.ledger, ids, ["mine"])
    known = [f"shop.tasks.receipt_{number}" for number in range(20)]
    return lambda ledger: lease.open_lease(ledger, "w2", ["celery"], 3600, tasks=known)


BATCH = 500
# What a statement is about may be more than it changes: all that a list says it reads.
WAIT = FORGOTTEN + WAITING
DEAD = ENDED // 60
WINDOWS = read.LAST_WINDOW // 50
LISTED = {
    State.SCHEDULED: SCHEDULED,
    State.QUEUED: WAIT,
    State.RUNNING: RUNNING,
    State.SUCCEEDED: WINDOWS,
    State.FAILED: 50,
    State.CANCELLED: 50,
}
CASES: dict[str, tuple[Case, int]] = {
    "enqueue": (enqueueing, MANY),
    "enqueue: known by their ids": (enqueueing_again, MANY),
    "enqueue: known by their keys": (enqueueing_again_by_key, MANY),
    "enqueue: awaited": (filling_what_is_awaited, 1),
    "claim": (claiming, MANY),
    "claim: one": (claiming_one, 1),
    "claim: granted before": (claiming_again, MANY),
    "claim suspects": (claiming_suspects, 60),
    "adopt": (adopting, MANY),
    "finish: succeeded": (ending(given.success), MANY),
    "finish: many": (ending(given.success, BATCH), BATCH),
    "finish: one": (ending(given.success, 1), 1),
    "finish: failed": (ending(given.failure), MANY),
    "finish: retried": (ending(given.retry), MANY),
    "finish: written before": (ending_again, MANY),
    "progress": (noting_progress, 1),
    "lease: held": (asking_what_is_held, MANY),
    "lease: closed": (closing_a_lease, MANY * MANY // VAIN_EACH),
    "places for suspects": (asking_for_places, 60),
    "dispatch": (dispatching, MANY),
    "lists that wait": (finding_the_lists, 10),
    "ring: all are lost": (losing("celery", "max(NULL::bigint)", 5), BATCH),
    "ring: below the front": (losing("celery", "min(dispatch_seq) + 50", 5), 50),
    "ring: none below the front": (losing("celery", "min(dispatch_seq)", 5), 1),
    "ring: none is past the grace": (losing("celery", "max(NULL::bigint)", 7200), WINDOW),
    "ring: a short list": (losing("small", "max(NULL::bigint)", 7200), 10),
    "ring: in doubt": (in_doubt, WINDOW),
    "expire": (expiring, MANY),
    "rescue": (rescuing, RUNNING),
    "rescue: none": (lambda depth: lambda ledger: rescue(ledger, None, 3), RUNNING),
    "retention": (dropping, 1000),
    "list": (listing(), 50),
    **{f"list: {state}": (listing(state=state), LISTED[state]) for state in State},
    **{
        f"list: {state}, a queue": (listing(state=state, queue="celery"), LISTED[state])
        for state in State
    },
    "list: an old page": (listing(before="state = 'failed'"), 50),
    "list: failed, a rare task": (listing(state=State.FAILED, task=RARE), DEAD),
    "list: queued, old and forgotten": (listing(state=State.QUEUED, queue="lost"), WAIT),
    "list: a queue": (listing(queue="celery"), 50),
    "list: a task": (listing(task="shop.tasks.receipt_3"), 50),
    "read": (one_job("state = 'failed'", read.read), 1),
    "read: many": (reading, MANY),
    "counts: some": (counting_some, MANY),
    "counts: all": (lambda depth: read.counts, WAIT),
    "cancel: waiting": (one_job("state = 'scheduled'", cancelling), 1),
    "cancel: running": (one_job("state = 'running'", cancelling), 1),
    "replay": (one_job("state = 'failed'", change.replay), 1),
    "forget": (one_job("state = 'succeeded'", change.forget), 1),
    **{f"count: {state}": (counting(state), bulk.WINDOW) for state in bulk.OPEN},
    **{f"count: {state}": (counting(state), bulk.WINDOW) for state in bulk.ENDED_BADLY},
    "cancel: many": (cancelling_many, MANY),
    "replay: many": (replaying_many, MANY),
    "put off": (putting_off, MANY),
    "lease: opened, with jobs that it can do": (recalling, MANY),
}
