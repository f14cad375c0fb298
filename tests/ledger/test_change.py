from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import Conflict, NotFound
from worker.jobs.job import Ended, Finish
from worker.jobs.states import State
from worker.ledger.change import cancel, forget, replay
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.finish import finish
from worker.ledger.lease import held


@pytest.mark.parametrize("delay", [None, 60])
def test_a_waiting_job_is_cancelled_and_never_runs(ledger: Ledger, delay: float | None) -> None:
    given.enqueued(ledger, "a", delay=delay)

    cancel(ledger, "a", "not wanted")

    job = given.job_of(ledger, "a")
    assert (job.state, job.error, job.attempts) == (State.CANCELLED, "not wanted", ())
    assert job.finished_at is not None
    assert claim(ledger, given.lease(ledger), ["a"]) == []
    assert dispatch_due(ledger, None) == []


def test_a_running_job_is_cancelled_at_once_with_its_evidence(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    cancel(ledger, "a", "not wanted")

    (attempt,) = given.job_of(ledger, "a").attempts
    assert (attempt.number, attempt.outcome, attempt.error) == (1, "cancelled", "not wanted")
    assert held(ledger, fence.lease) == set()


def test_repeating_a_cancel_is_no_fault(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    cancel(ledger, "a", "first")
    cancel(ledger, "a", "second")

    assert given.job_of(ledger, "a").error == "first"


@pytest.mark.parametrize("end", [given.success, given.failure])
def test_what_has_ended_cannot_be_cancelled(ledger: Ledger, end: Callable[..., object]) -> None:
    finish(ledger, [end(given.running(ledger, "a"))])  # type: ignore[list-item] # both make one

    with pytest.raises(Conflict, match=r"Job a has (succeeded|failed) already"):
        cancel(ledger, "a", "not wanted")


def test_a_cancel_and_a_finish_at_once_have_one_winner(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    doors = [open_ledger(), open_ledger()]
    for number in range(20):
        job_id = f"j{number}"
        fence = given.running(ledger, job_id)

        def try_cancel(job_id: str = job_id) -> bool:
            try:
                cancel(doors[0], job_id, "not wanted")
            except Conflict:
                return False
            return True

        cancelled, finished = given.all_at_once(
            [try_cancel, lambda fence=fence: bool(finish(doors[1], [given.success(fence)]).granted)]  # type: ignore[misc] # a lambda's default
        )

        assert cancelled != finished
        assert given.state_of(ledger, job_id) is (State.CANCELLED if cancelled else State.SUCCEEDED)


def test_a_failed_job_is_replayed_with_its_history(ledger: Ledger) -> None:
    finish(ledger, [given.failure(given.running(ledger, "a", priority=3), traceback="…")])

    ring = replay(ledger, "a")

    job = given.job_of(ledger, "a")
    assert (ring.id, ring.list) == ("a", "celery\x06\x163")
    assert (job.state, job.error, job.traceback, job.finished_at) == (
        State.QUEUED,
        None,
        None,
        None,
    )
    assert given.attempts_of(ledger, "a") == [(1, "failed")]
    (second,) = claim(ledger, given.lease(ledger), ["a"])
    assert second.fence.attempt == 2


def test_poison_is_replayed_with_a_clean_slate(ledger: Ledger) -> None:
    finish(ledger, [given.failure(given.running(ledger, "a"))])
    ledger.execute("UPDATE ledger.jobs SET lost = 3, suspicion = 2")

    replay(ledger, "a")

    job = given.job_of(ledger, "a")
    assert (job.lost, job.suspect) == (0, False)


def test_an_expired_job_can_be_replayed(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", expires=60)
    given.age(ledger, "expires_at", 120, "a")
    cancel(ledger, "a", "expired")

    replay(ledger, "a")

    assert claim(ledger, given.lease(ledger), ["a"])


def test_the_finish_of_a_cancelled_attempt_stays_stale_after_a_replay(ledger: Ledger) -> None:
    first = given.running(ledger, "a")
    cancel(ledger, "a", "not wanted")
    replay(ledger, "a")
    assert finish(ledger, [given.success(first)]).granted == frozenset()
    (second,) = claim(ledger, first.lease, ["a"])  # the very same worker

    assert finish(ledger, [given.success(first)]).granted == frozenset()
    assert finish(ledger, [given.success(second.fence)]).granted == {"a"}


def test_what_has_not_failed_cannot_be_replayed(ledger: Ledger) -> None:
    given.enqueued(ledger, "queued")
    given.enqueued(ledger, "scheduled", delay=60)
    given.running(ledger, "running")
    finish(ledger, [given.success(given.running(ledger, "succeeded"))])

    for job_id in ("queued", "scheduled", "running", "succeeded"):
        with pytest.raises(Conflict, match=f"Job {job_id} is {job_id}"):
            replay(ledger, job_id)


def test_what_never_was_enqueued_cannot_be_replayed(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    finish(ledger, [given.success(fence, ended=(Ended("e", "tests.add", State.FAILED),))])

    with pytest.raises(Conflict, match="never enqueued"):
        replay(ledger, "e")


def test_an_unknown_job_is_not_found(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="No job has the id 'a'"):
        cancel(ledger, "a", "not wanted")
    with pytest.raises(NotFound):
        replay(ledger, "a")


def test_forgetting_drops_the_result_and_keeps_the_end(ledger: Ledger) -> None:
    finish(ledger, [given.success(given.running(ledger, "a"))])

    forget(ledger, "a")

    job = given.job_of(ledger, "a")
    assert (job.state, job.result, job.result_type) == (State.SUCCEEDED, None, None)


def test_what_has_not_ended_is_not_forgotten(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    forget(ledger, "a")

    assert finish(ledger, [given.success(fence)]).granted == {"a"}
    assert given.job_of(ledger, "a").result == b"3"


@pytest.mark.parametrize("end", [given.failure, None])
def test_a_replay_whose_reply_is_lost_is_no_conflict(
    ledger: Ledger,
    proxy: Proxy,
    open_ledger: Callable[..., Ledger],
    end: Callable[..., Finish] | None,
) -> None:
    # Given a dead letter, and a network that swallows the reply to the next COMMIT
    fence = given.running(ledger, "a")
    if end is None:
        cancel(ledger, "a", "not wanted")
    else:
        finish(ledger, [end(fence)])
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    # When it is replayed through it
    ring = replay(door, "a")

    # Then it is queued once, and the doorbell is the one that the ledger knows
    assert proxy.dropped.is_set()
    assert ledger.execute("SELECT state, dispatch_seq FROM ledger.jobs") == [("queued", ring.seq)]
    with pytest.raises(Conflict):  # a second replay is another request
        replay(door, "a")
