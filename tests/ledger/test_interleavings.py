"""Two transactions at once, statement by statement: the pairs of PROTOCOL 6, 11, 18 and 20.

One of them is stopped at a point; the other one runs until it has ended or waits for a lock; then
both go on. What each test expects holds at every point between the two, not only at lucky ones.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from tests.ledger import given
from worker.errors import Conflict, LedgerError
from worker.jobs.job import Fence, Finish
from worker.jobs.states import State
from worker.ledger.change import cancel, replay
from worker.ledger.claim import adopt, claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due, take_lost
from worker.ledger.finish import Finished, finish
from worker.ledger.lease import close_lease, held, renew
from worker.ledger.read import read
from worker.ledger.rescue import rescue
from worker.ledger.retention import expire_late

COMMIT = "COMMIT"
#: The second statements of a rescue and of a lease's end: the lease row is gone, its jobs are not.
TAKE, GIVE_BACK = "orphans", "UPDATE ledger.jobs"
Work = Callable[[Ledger], Any]


class Actor:
    """Somebody's work in a thread, on one connection, stopped once before what `stop` names.

    Args:
        door: a ledger of one connection.
        work: what to do.
        stop: `COMMIT`, or some words of a statement; None to go through.
    """

    def __init__(self, door: Ledger, work: Work, stop: str | None = None) -> None:
        # Its transaction stands still because a test says so: it is not a forgotten one.
        door.execute("SET idle_in_transaction_session_timeout = 0")
        self.stopped, self._go = threading.Event(), threading.Event()
        if stop == COMMIT:
            # What commits with its only statement is stopped between the two all the same: as
            # where Postgres is slow to commit.
            door.run_each = door.run  # type: ignore[method-assign] # of this ledger alone
            door.rows_at_once = lambda *_: None  # type: ignore[method-assign] # ditto
        self._stop = stop
        self._door, self._work = door, work
        self._answer: Any = None
        if stop == COMMIT:
            event.listen(door.engine, "commit", lambda _: self._pause())
        elif stop is not None:
            event.listen(door.engine, "before_cursor_execute", self._look)
        self._thread = threading.Thread(target=self._run, name=f"stops at {stop}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def answer(self) -> Any:
        """Go on to the end; what the work returned, or the error that it raised."""
        self._go.set()
        given.join([self._thread])
        if isinstance(self._answer, Exception) and not isinstance(self._answer, LedgerError):
            raise self._answer
        return self._answer

    def _run(self) -> None:
        try:
            self._answer = self._work(self._door)
        except Exception as exc:
            self._answer = exc

    def _look(self, _: object, __: object, statement: str, *more: object) -> None:
        if self._stop is not None and self._stop in statement:
            self._pause()

    def _pause(self) -> None:
        if not self.stopped.is_set():
            self.stopped.set()
            assert self._go.wait(given.PATIENCE)


@dataclass(frozen=True, slots=True)
class Met:
    """How two transactions met: what each one answered, and whether the second one waited."""

    first: Any
    second: Any
    waited: bool


class Stage:
    """Where actors meet."""

    def __init__(self, ledger: Ledger, open_ledger: Callable[..., Ledger]) -> None:
        self.ledger, self._open = ledger, open_ledger

    def stopped(self, work: Work, stop: str = COMMIT) -> Actor:
        """An actor that has come to `stop`."""
        actor = Actor(self._open(), work, stop)
        assert given.until(lambda: actor.stopped.is_set() or actor.is_over)
        assert actor.stopped.is_set(), actor.answer()
        return actor

    def waiting(self, work: Work) -> tuple[Actor, bool]:
        """An actor that has ended, or waits for a lock; and whether it waits."""
        actor = Actor(self._open(), work)
        given.until(lambda: actor.is_over or given.waits_for_a_lock(self.ledger))
        return actor, not actor.is_over

    def meet(self, first: Work, second: Work, stop: str = COMMIT) -> Met:
        """Stop `first`, let `second` run as far as it gets, and let both end."""
        one = self.stopped(first, stop)
        two, waited = self.waiting(second)
        return Met(one.answer(), two.answer(), waited)


@pytest.fixture
def stage(ledger: Ledger, open_ledger: Callable[..., Ledger]) -> Stage:
    return Stage(ledger, open_ledger)


def save(rescued: Ledger) -> Any:
    """The keeper's round."""
    return rescue(rescued, None, 3)


def ends(*finishes: Finish) -> Work:
    return lambda door: finish(door, finishes)


def stops(job_id: str, *, running: bool = True) -> Work:
    return lambda door: cancel(door, job_id, "not wanted", running=running)


def is_granted(done: Finished) -> bool:
    return bool(done.granted)


def retried_at_once(fence: Fence) -> Finish:
    return Finish(fence, State.QUEUED, "retried")


# A claim and the end of its lease (PROTOCOL 6)


def claims_doorbell(ledger: Ledger, lease: str) -> Work:
    given.enqueued(ledger, "a")
    return lambda door: claim(door, lease, ["a"])


def adopts(ledger: Ledger, lease: str) -> Work:
    given.enqueued(ledger, "a")
    return lambda door: adopt(door, lease, [given.job("a")])


def claims_suspect(ledger: Ledger, lease: str) -> Work:
    given.enqueued(ledger, "a")
    ledger.execute("UPDATE ledger.jobs SET suspicion = 1")
    return lambda door: claim_suspects(door, lease, ["celery"], 1, idle=True)


CLAIMS = pytest.mark.parametrize("claims", [claims_doorbell, adopts, claims_suspect])
LEASE_ENDS = pytest.mark.parametrize("by", ["expiry", "closing"])


@CLAIMS
@LEASE_ENDS
def test_a_claim_between_the_two_statements_of_a_leases_end_gets_nothing(
    ledger: Ledger, stage: Stage, claims: Callable[[Ledger, str], Work], by: str
) -> None:
    # Given a lease whose row is gone already, in a transaction that has not looked for jobs yet
    lease = given.lease(ledger)
    work = claims(ledger, lease)
    if by == "expiry":
        given.expire(ledger, lease)
        ending = stage.stopped(save, TAKE)
    else:
        ending = stage.stopped(lambda door: close_lease(door, lease), GIVE_BACK)

    # When the lease's worker claims
    claimer, waited = stage.waiting(work)
    ending.answer()

    # Then it gets nothing, and the job waits for others
    assert claimer.answer() == []
    assert waited or by == "expiry"  # by the clock alone it gets nothing either
    job = given.job_of(ledger, "a")
    assert (job.state, job.attempt) == (State.QUEUED, 0)


@CLAIMS
def test_a_lease_is_closed_with_what_a_claim_under_way_gets(
    ledger: Ledger, stage: Stage, claims: Callable[[Ledger, str], Work]
) -> None:
    lease = given.lease(ledger)

    met = stage.meet(claims(ledger, lease), lambda door: close_lease(door, lease))

    assert met.waited and len(met.first) == 1
    assert met.second == ["a"]
    assert given.state_of(ledger, "a") is State.QUEUED
    assert given.attempts_of(ledger, "a") == [(1, "released")]


@CLAIMS
def test_a_lease_does_not_expire_under_a_claim_under_way_and_takes_its_job_with_it_after(
    ledger: Ledger, stage: Stage, claims: Callable[[Ledger, str], Work]
) -> None:
    # Given a claim that is made and not committed, under a lease that expires meanwhile
    lease = given.lease(ledger)
    claimer = stage.stopped(claims(ledger, lease))
    given.expire(ledger, lease)

    # When the keeper rescues, then it passes over the lease
    assert save(ledger).leases == 0
    assert len(claimer.answer()) == 1

    # And its next round finds the lease and the job
    done = save(ledger)
    assert (done.leases, done.queued) == (1, ("a",))


def test_a_claim_that_waits_for_a_row_keeps_its_lease_until_it_has_its_jobs(
    ledger: Ledger, stage: Stage
) -> None:
    # Given a claim of two jobs that waits, because one of them is being cancelled
    lease = given.lease(ledger)
    given.enqueued(ledger, "a", "b")
    canceller = stage.stopped(stops("a"))
    claimer, waited = stage.waiting(lambda door: claim(door, lease, ["a", "b"]))
    assert waited

    # When its lease expires and the keeper rescues
    given.expire(ledger, lease)
    first = save(ledger)
    canceller.answer()
    (granted,) = claimer.answer()
    second = save(ledger)

    # Then the job that it got goes with the lease, and the cancelled one stays cancelled
    assert granted.fence == Fence("b", 1, lease)
    assert (first.leases, second.leases, second.queued) == (0, 1, ("b",))
    assert given.state_of(ledger, "a") is State.CANCELLED


# A lease's renewal and its end (PROTOCOL 11)


def test_a_renewal_under_way_saves_the_lease(ledger: Ledger, stage: Stage) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    met = stage.meet(lambda door: renew(door, fence.lease, 60), save)

    assert met.first is True
    assert (met.second.leases, met.second.queued) == (0, ())
    assert held(ledger, fence.lease) == {("a", 1)}


@pytest.mark.parametrize("stop", [TAKE, COMMIT])
def test_a_renewal_that_meets_a_rescue_learns_that_the_lease_is_gone(
    ledger: Ledger, stage: Stage, stop: str
) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    met = stage.meet(save, lambda door: renew(door, fence.lease, 60), stop)

    assert met.waited and met.second is False
    assert met.first.queued == ("a",)


# A finish and the end of its lease (PROTOCOL 11, 18)

NEXT = pytest.mark.parametrize(
    ("end", "state"),
    [
        (given.success, State.SUCCEEDED),
        (given.failure, State.FAILED),
        (given.retry, State.SCHEDULED),
        (retried_at_once, State.QUEUED),
    ],
)


@NEXT
def test_a_finish_under_way_is_not_rescued(
    ledger: Ledger, stage: Stage, end: Callable[[Fence], Finish], state: State
) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    met = stage.meet(ends(end(fence)), save)

    assert met.waited and is_granted(met.first)
    assert (met.second.leases, met.second.queued) == (1, ())
    job = given.job_of(ledger, "a")
    assert (job.state, job.lost, job.suspect) == (state, 0, False)
    assert "lost" not in dict(given.attempts_of(ledger, "a")).values()


@NEXT
def test_a_finish_that_meets_a_rescue_is_stale_and_nothing_follows(
    ledger: Ledger, stage: Stage, end: Callable[..., Finish], state: State
) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)
    more = {"outbox": (given.job("next"),)} if state is State.SUCCEEDED else {}

    met = stage.meet(save, ends(end(fence, **more)))

    assert met.waited and not is_granted(met.second)
    assert met.first.queued == ("a",)
    assert given.state_of(ledger, "a") is State.QUEUED
    assert given.attempts_of(ledger, "a") == [(1, "lost")]
    assert read(ledger, "next") is None


def test_a_finish_between_the_two_statements_of_a_rescue_counts(
    ledger: Ledger, stage: Stage
) -> None:
    # The lease row is gone in a transaction that is not committed: the fence alone decides
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    met = stage.meet(save, ends(given.success(fence, outbox=(given.job("next"),))), TAKE)

    assert not met.waited and is_granted(met.second)
    assert (met.first.leases, met.first.queued) == (1, ())
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    assert given.state_of(ledger, "next") is State.QUEUED


def test_a_finish_under_way_is_not_given_back(ledger: Ledger, stage: Stage) -> None:
    fence = given.running(ledger, "a")

    met = stage.meet(ends(given.success(fence)), lambda door: close_lease(door, fence.lease))

    assert met.waited and is_granted(met.first)
    assert met.second == []
    assert given.state_of(ledger, "a") is State.SUCCEEDED


def test_a_finish_that_meets_its_leases_closing_is_stale(ledger: Ledger, stage: Stage) -> None:
    fence = given.running(ledger, "a")

    met = stage.meet(lambda door: close_lease(door, fence.lease), ends(given.success(fence)))

    assert met.waited and not is_granted(met.second)
    assert met.first == ["a"]
    assert given.attempts_of(ledger, "a") == [(1, "released")]


def test_a_finish_that_is_repeated_before_the_first_is_committed_is_written_once(
    ledger: Ledger, stage: Stage
) -> None:
    # Given a worker that lost its connection in the middle of a commit (PROTOCOL 20)
    fence = given.running(ledger, "a")
    end = given.success(fence, outbox=(given.job("next"),))

    met = stage.meet(ends(end), ends(end))

    assert met.waited and is_granted(met.first) and is_granted(met.second)
    assert (len(met.first.rings), len(met.second.rings)) == (1, 0)
    assert given.state_of(ledger, "next") is State.QUEUED


# An end, and somebody who cancels


def test_a_cancel_that_meets_a_finish_comes_too_late(ledger: Ledger, stage: Stage) -> None:
    fence = given.running(ledger, "a")

    met = stage.meet(ends(given.success(fence)), stops("a"))

    assert met.waited and isinstance(met.second, Conflict)
    assert given.state_of(ledger, "a") is State.SUCCEEDED
    assert given.attempts_of(ledger, "a") == []


@NEXT
def test_an_end_that_meets_a_cancel_is_stale_and_nothing_follows(
    ledger: Ledger, stage: Stage, end: Callable[..., Finish], state: State
) -> None:
    fence = given.running(ledger, "a")
    more = {"outbox": (given.job("next"),)} if state is State.SUCCEEDED else {}

    met = stage.meet(stops("a"), ends(end(fence, **more)))

    assert met.waited and not is_granted(met.second)
    job = given.job_of(ledger, "a")
    assert (job.state, job.result) == (State.CANCELLED, None)
    assert given.attempts_of(ledger, "a") == [(1, "cancelled")]
    assert read(ledger, "next") is None


@pytest.mark.parametrize("end", [given.retry, retried_at_once])
def test_a_cancel_that_meets_a_retry_cancels_the_next_attempt(
    ledger: Ledger, stage: Stage, end: Callable[[Fence], Finish]
) -> None:
    fence = given.running(ledger, "a")

    met = stage.meet(ends(end(fence)), stops("a"))

    # The retry is told as it was; the cancel is not lost with it
    assert met.waited and is_granted(met.first) and met.second is None
    assert given.state_of(ledger, "a") is State.CANCELLED
    assert given.attempts_of(ledger, "a") == [(1, "retried")]
    assert claim(ledger, given.lease(ledger), ["a"]) == []


def test_a_cancel_of_what_waits_that_meets_a_claim_comes_too_late(
    ledger: Ledger, stage: Stage
) -> None:
    given.enqueued(ledger, "a")
    lease = given.lease(ledger)

    met = stage.meet(lambda door: claim(door, lease, ["a"]), stops("a", running=False))

    assert met.waited and isinstance(met.second, Conflict)
    assert held(ledger, lease) == {("a", 1)}


def test_a_cancel_that_meets_a_claim_stops_the_attempt(ledger: Ledger, stage: Stage) -> None:
    given.enqueued(ledger, "a")
    lease = given.lease(ledger)

    met = stage.meet(lambda door: claim(door, lease, ["a"]), stops("a"))

    assert met.waited and met.second is None
    assert given.state_of(ledger, "a") is State.CANCELLED
    assert given.attempts_of(ledger, "a") == [(1, "cancelled")]
    assert not is_granted(finish(ledger, [given.success(met.first[0].fence)]))


def test_a_cancel_that_meets_a_rescue_cancels_what_was_queued_again(
    ledger: Ledger, stage: Stage
) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    met = stage.meet(save, stops("a"))

    assert met.waited and met.second is None
    assert given.state_of(ledger, "a") is State.CANCELLED
    assert given.attempts_of(ledger, "a") == [(1, "lost")]


def test_a_rescue_that_meets_a_cancel_leaves_the_job_cancelled(
    ledger: Ledger, stage: Stage
) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    met = stage.meet(stops("a"), save)

    assert met.waited and met.second.queued == ()
    assert given.state_of(ledger, "a") is State.CANCELLED
    assert given.attempts_of(ledger, "a") == [(1, "cancelled")]


# What the keeper does to waiting jobs, and who else wants them


def due(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", delay=60)
    given.make_due(ledger, "a")


def test_a_cancel_that_meets_a_dispatch_is_not_lost(ledger: Ledger, stage: Stage) -> None:
    due(ledger)

    met = stage.meet(lambda door: dispatch_due(door, None), stops("a"))

    assert met.waited and met.second is None
    assert [ring.id for ring in met.first] == ["a"]  # the doorbell rings for nobody
    assert given.state_of(ledger, "a") is State.CANCELLED
    assert claim(ledger, given.lease(ledger), ["a"]) == []


def test_a_dispatch_that_meets_a_cancel_leaves_the_job_alone(ledger: Ledger, stage: Stage) -> None:
    due(ledger)

    met = stage.meet(stops("a"), lambda door: dispatch_due(door, None))

    assert not met.waited and met.second == []
    assert dispatch_due(ledger, None) == []
    assert given.state_of(ledger, "a") is State.CANCELLED


def test_a_claim_that_meets_the_next_doorbell_is_granted(ledger: Ledger, stage: Stage) -> None:
    given.enqueued(ledger, "a")
    given.age(ledger, "dispatched_at", 99, "a")
    lease = given.lease(ledger)

    met = stage.meet(
        lambda door: take_lost(door, None, "celery", None, 1),
        lambda door: claim(door, lease, ["a"]),
    )

    assert met.waited and [ring.id for ring in met.first] == ["a"]
    assert [one.fence for one in met.second] == [Fence("a", 1, lease)]


@pytest.mark.parametrize(
    "sweep",
    [
        lambda door: take_lost(door, None, "celery", None, 1),
        lambda door: ["a"] * expire_late(door, None).count,
    ],
)
def test_what_a_claim_under_way_has_is_neither_rung_for_nor_expired(
    ledger: Ledger, stage: Stage, sweep: Work
) -> None:
    given.enqueued(ledger, "a", expires=60)
    given.age(ledger, "dispatched_at", 99, "a")
    lease = given.lease(ledger)
    claimer = stage.stopped(lambda door: claim(door, lease, ["a"]))

    # The row is locked; a sweep passes over it, now and when it runs
    assert sweep(ledger) == []
    assert len(claimer.answer()) == 1
    given.age(ledger, "expires_at", 99, "a")
    assert sweep(ledger) == []
    assert held(ledger, lease) == {("a", 1)}


# Replays


def test_a_late_finish_that_meets_a_replay_is_stale_before_and_after(
    ledger: Ledger, stage: Stage
) -> None:
    # Given an attempt that was cancelled, and goes on because nobody could stop it
    fence = given.running(ledger, "a")
    cancel(ledger, "a", "not wanted")

    # When it ends while somebody replays the job
    met = stage.meet(lambda door: replay(door, "a"), ends(given.success(fence)))

    # Then it is stale, and stays so beside the next attempt of its own worker
    assert not is_granted(met.second) and met.first.id == "a"
    (second,) = claim(ledger, fence.lease, ["a"])
    assert not is_granted(finish(ledger, [given.success(fence, b"late")]))
    assert is_granted(finish(ledger, [given.success(second.fence, b"second")]))
    assert given.job_of(ledger, "a").result == b"second"


def test_a_replay_before_the_failure_is_committed_is_a_conflict(
    ledger: Ledger, stage: Stage
) -> None:
    fence = given.running(ledger, "a")

    met = stage.meet(ends(given.failure(fence)), lambda door: replay(door, "a"))

    assert is_granted(met.first) and isinstance(met.second, Conflict)
    assert given.state_of(ledger, "a") is State.FAILED


def test_of_two_replays_at_once_one_is_a_conflict(ledger: Ledger, stage: Stage) -> None:
    finish(ledger, [given.failure(given.running(ledger, "a"))])

    met = stage.meet(lambda door: replay(door, "a"), lambda door: replay(door, "a"))

    assert met.waited and isinstance(met.second, Conflict)
    assert given.job_of(ledger, "a").state is State.QUEUED


# Many rows at once (PROTOCOL 20)


def test_batches_of_every_kind_never_wait_for_each_other_in_a_ring(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given jobs of one lease, which is over
    ids = [f"j{number:03}" for number in range(100)]
    doors = [open_ledger() for _ in range(4)]
    deadlocks: list[object] = []
    for door in doors:
        event.listen(
            door.engine,
            "handle_error",
            lambda context: deadlocks.append(context.original_exception),
        )
    given.enqueued(ledger, *ids)
    for _ in range(15):
        lease, other = given.lease(ledger), given.lease(ledger)
        fences = [one.fence for one in claim(ledger, lease, ids)]
        given.expire(ledger, lease)

        # When its worker finishes and closes, the keeper rescues and another worker claims
        given.all_at_once(
            [
                partial(ends(*map(retried_at_once, reversed(fences[::2]))), doors[0]),
                partial(close_lease, doors[1], lease),
                partial(save, doors[2]),
                partial(claim, doors[3], other, ids[::-1]),
            ]
        )
        close_lease(ledger, other)
        ledger.execute("UPDATE ledger.jobs SET suspicion = 0")

        # Then nobody was ended by Postgres, and all wait again
        assert deadlocks == []
        assert ledger.execute("SELECT DISTINCT state FROM ledger.jobs") == [("queued",)]
