from __future__ import annotations

from tests.ledger import given
from worker.jobs.job import Finish
from worker.jobs.states import State
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.interrupted import INTERRUPTED, MOST
from worker.ledger.lease import close_lease, forfeit_lease, held, renew
from worker.ledger.rescue import rescue

ALL = {"guilty", "unstarted", "retried"}


def test_a_lease_id_is_never_used_again(ledger: Ledger) -> None:
    assert len({given.lease(ledger) for _ in range(20)}) == 20


def test_a_renewed_lease_is_not_rescued(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    ledger.execute("UPDATE ledger.workers SET expires_at = clock_timestamp() + interval '10 ms'")

    assert renew(ledger, fence.lease, 60)

    assert rescue(ledger, None, 3).leases == 0
    assert given.state_of(ledger, "a") is State.RUNNING


def test_an_expired_lease_can_be_renewed_until_it_is_rescued(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    assert renew(ledger, fence.lease, 60)

    assert rescue(ledger, None, 3).leases == 0
    given.enqueued(ledger, "b")
    assert claim(ledger, fence.lease, ["b"])


def test_a_rescued_lease_cannot_be_renewed(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)
    rescue(ledger, None, 3)

    assert not renew(ledger, fence.lease, 60)


def test_what_is_held_is_what_runs_under_the_lease(ledger: Ledger) -> None:
    lease = given.lease(ledger)
    first, _ = (one.fence for one in given.claimed(ledger, "a", "b", lease_id=lease))
    given.running(ledger, "elsewhere")

    assert held(ledger, lease) == {("a", 1), ("b", 1)}
    finish(ledger, [given.success(first)])
    assert held(ledger, lease) == {("b", 1)}


def test_closing_gives_everything_back_and_counts_no_crash(ledger: Ledger) -> None:
    # Given a worker that ends while it holds two jobs, beside one that goes on
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", lease_id=lease)
    given.running(ledger, "elsewhere")

    # When it closes its lease
    assert sorted(close_lease(ledger, lease)) == ["a", "b"]

    # Then its jobs wait for anybody, with a new doorbell's number and a row of evidence
    for job_id in ("a", "b"):
        job = given.job_of(ledger, job_id)
        assert (job.state, job.lost, job.suspect) == (State.QUEUED, 0, False)
        assert given.attempts_of(ledger, job_id) == [(1, "released")]
    assert given.state_of(ledger, "elsewhere") is State.RUNNING
    assert not renew(ledger, lease, 60)
    assert len(claim(ledger, given.lease(ledger), ["a", "b"])) == 2


def test_who_runs_at_each_of_several_shutdowns_is_a_suspect(ledger: Ledger) -> None:
    # Given a job that is running whenever its worker shuts down, between two of them in a child
    # that dies meanwhile; beside it, one that was not started once, and one that asked for a retry
    given.enqueued(ledger, "guilty", "unstarted", "retried")
    for number in range(1, MOST + 1):
        lease = given.lease(ledger)
        claims = {one.fence.id: one.fence for one in claim(ledger, lease, list(ALL))}
        assert claims.keys() == ALL
        ends = {
            2: Finish(claims["guilty"], State.QUEUED, "released", error=f"{INTERRUPTED}: died"),
            3: Finish(claims["unstarted"], State.QUEUED, "released", error="the worker shut down"),
            4: Finish(claims["retried"], State.QUEUED, "retried"),
        }
        finish(ledger, [ends[number]] if number in ends else [])
        close_lease(ledger, lease)
        # Then it is a suspect after the last of them, which no ordinary claim takes
        guilty = given.job_of(ledger, "guilty")
        assert (guilty.state, guilty.lost, guilty.suspect) == (State.QUEUED, 0, number == MOST)

    # And the others are not
    assert not given.job_of(ledger, "unstarted").suspect
    assert not given.job_of(ledger, "retried").suspect


def test_the_last_of_several_interruptions_may_be_a_childs_death(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    for _ in range(MOST - 1):
        lease = given.lease(ledger)
        claim(ledger, lease, ["a"])
        close_lease(ledger, lease)
    (last,) = claim(ledger, given.lease(ledger), ["a"])

    done = finish(ledger, [Finish(last.fence, State.QUEUED, "released", error=f"{INTERRUPTED}: x")])

    assert given.job_of(ledger, "a").suspect
    assert done.rings == ()  # an isolated process asks for it


def test_a_finish_after_closing_is_stale(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    close_lease(ledger, fence.lease)
    (second,) = claim(ledger, given.lease(ledger), ["a"])

    assert finish(ledger, [given.success(fence)]).granted == frozenset()
    assert finish(ledger, [given.success(second.fence)]).granted == {"a"}


def test_closing_twice_gives_back_nothing_more(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")

    assert close_lease(ledger, fence.lease) == ["a"]
    assert close_lease(ledger, fence.lease) == []


def test_what_a_faulty_worker_forfeits_is_lost_at_once_and_suspect(ledger: Ledger) -> None:
    # Given a worker with two jobs that a fault ends, beside one that goes on
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", lease_id=lease)
    given.running(ledger, "elsewhere")

    # When it forfeits its lease
    assert forfeit_lease(ledger, lease)

    # Then the next rescue takes its jobs, and blames none of the two
    assert sorted(rescue(ledger, None, 3).queued) == ["a", "b"]
    for job_id in ("a", "b"):
        job = given.job_of(ledger, job_id)
        assert (job.state, job.lost, job.suspect) == (State.QUEUED, 0, True)
        assert given.attempts_of(ledger, job_id) == [(1, "lost")]
    assert given.state_of(ledger, "elsewhere") is State.RUNNING


def test_a_loss_counts_for_the_job_that_a_faulty_worker_held_alone(ledger: Ledger) -> None:
    forfeit_lease(ledger, given.running(ledger, "a").lease)

    assert rescue(ledger, None, 1).poisoned == ("a",)


def test_a_faulty_worker_that_holds_nothing_just_closes_its_lease(ledger: Ledger) -> None:
    lease = given.lease(ledger)

    assert not forfeit_lease(ledger, lease)
    assert rescue(ledger, None, 3).leases == 0
    assert not renew(ledger, lease, 60)
