from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.ledger import given
from worker.errors import LeaseLost
from worker.jobs.states import State
from worker.ledger import claim as claim_module
from worker.ledger import rescue as rescue_module
from worker.ledger.claim import claim, claim_suspect
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.lease import held
from worker.ledger.rescue import Rescued, rescue, uptime


def lose_alone(ledger: Ledger, job_id: str, limit: int = 3) -> None:
    """Let the suspect's own process die."""
    lease = given.lease(ledger, isolated=True)
    found = claim_suspect(ledger, lease, ["celery"])
    assert found is not None and found.fence.id == job_id
    given.expire(ledger, lease)
    rescue(ledger, None, limit)


def test_only_expired_leases_are_rescued(ledger: Ledger) -> None:
    dead, alive = given.running(ledger, "a"), given.running(ledger, "b")
    given.expire(ledger, dead.lease)

    done = rescue(ledger, None, 3)

    assert (done.leases, done.queued, done.poisoned, done.full) == (1, ("a",), (), False)
    assert given.state_of(ledger, "a") is State.QUEUED
    assert given.state_of(ledger, "b") is State.RUNNING
    assert ledger.execute("SELECT lease FROM workers") == [(alive.lease,)]


def test_a_rescue_leaves_the_attempt_as_evidence(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    rescue(ledger, None, 3)

    (attempt,) = given.job_of(ledger, "a").attempts
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "lost", "w1")
    assert attempt.started_at is not None
    assert "stopped renewing its lease while it held 1 job(s)" in str(attempt.error)


def test_a_job_lost_alone_counts_and_is_a_suspect(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    rescue(ledger, None, 3)

    job = given.job_of(ledger, "a")
    assert (job.lost, job.suspect) == (1, True)


def test_of_jobs_lost_together_all_are_suspects_and_none_counts(ledger: Ledger) -> None:
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", "c", lease_id=lease)
    given.expire(ledger, lease)

    rescue(ledger, None, 1)  # the strictest limit

    for job_id in ("a", "b", "c"):
        job = given.job_of(ledger, job_id)
        assert (job.state, job.lost, job.suspect) == (State.QUEUED, 0, True)


def test_leases_that_expire_together_count_nothing(ledger: Ledger) -> None:
    leases = [given.running(ledger, job_id).lease for job_id in ("a", "b")]
    given.expire(ledger, *leases)

    done = rescue(ledger, None, 1)

    assert done.leases == 2 and set(done.queued) == {"a", "b"}
    assert [given.job_of(ledger, job_id).lost for job_id in ("a", "b")] == [0, 0]


def test_at_the_limit_a_job_is_poison_with_its_evidence(ledger: Ledger) -> None:
    # Given a job that kills each worker that runs it
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)
    rescue(ledger, None, 3)
    lose_alone(ledger, "a")
    assert given.state_of(ledger, "a") is State.QUEUED

    # When it has done so for the third time
    lose_alone(ledger, "a")

    # Then it is failed, says why, and nobody gets it
    job = given.job_of(ledger, "a")
    assert job.state is State.FAILED and job.finished_at is not None
    assert job.error == "poison: 3 attempts were lost with their process"
    assert given.attempts_of(ledger, "a") == [(1, "lost"), (2, "lost"), (3, "lost")]
    assert claim_suspect(ledger, given.lease(ledger), ["celery"]) is None


def test_the_innocent_is_no_suspect_after_a_good_end(ledger: Ledger) -> None:
    # Given two jobs lost with one process
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", lease_id=lease)
    given.expire(ledger, lease)
    rescue(ledger, None, 3)

    # When one of them runs alone and succeeds
    found = claim_suspect(ledger, given.lease(ledger, isolated=True), ["celery"])
    assert found is not None
    finish(ledger, [given.success(found.fence)])

    # Then nothing is held against it
    job = given.job_of(ledger, found.fence.id)
    assert (job.state, job.lost, job.suspect) == (State.SUCCEEDED, 0, False)


def test_what_runs_under_no_lease_at_all_is_swept(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    ledger.execute("DELETE FROM workers WHERE lease = :lease", {"lease": fence.lease})

    done = rescue(ledger, None, 1)

    assert (done.leases, done.queued) == (0, ("a",))
    assert given.job_of(ledger, "a").lost == 0  # nobody saw a process die


def test_what_finished_before_the_rescue_is_left_alone(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    finish(ledger, [given.success(fence)])
    given.expire(ledger, fence.lease)

    assert rescue(ledger, None, 3).queued == ()
    assert given.state_of(ledger, "a") is State.SUCCEEDED


def test_two_keepers_rescue_each_job_once(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    ids = [f"j{number:02}" for number in range(40)]
    leases = [given.running(ledger, job_id).lease for job_id in ids]
    given.expire(ledger, *leases)
    doors = [open_ledger() for _ in range(4)]

    found = given.all_at_once(
        [lambda door=door: rescue(door, None, 3).queued for door in doors]  # type: ignore[misc] # a lambda's default
    )

    assert sorted(job_id for queued in found for job_id in queued) == ids
    for job_id in ids:
        assert given.attempts_of(ledger, job_id) == [(1, "lost")]


def test_a_large_rescue_says_that_there_is_more(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue_module, "BATCH", 2)
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", "c", lease_id=lease)
    given.expire(ledger, lease)

    first, second = rescue(ledger, None, 1), rescue(ledger, None, 1)

    assert (first.full, second.full) == (True, False)
    assert {*first.queued, *second.queued} == {"a", "b", "c"}
    assert all(given.job_of(ledger, job_id).lost == 0 for job_id in "abc")


def test_a_keeper_that_lost_the_lead_rescues_nothing(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)

    with pytest.raises(LeaseLost):
        rescue(ledger, Leadership("keeper", "nobody", 5), 3)

    assert given.state_of(ledger, "a") is State.RUNNING
    assert claim(ledger, given.lease(ledger), ["a"]) == []


def test_the_uptime_is_that_of_postgres(ledger: Ledger) -> None:
    assert 0 < uptime(ledger) < 86400


def test_a_late_rescue_does_not_take_the_next_attempt(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given an orphan that is rescued and claimed anew, in a commit that is still to come
    first = given.running(ledger, "a")
    ledger.execute("DELETE FROM workers WHERE lease = :lease", {"lease": first.lease})
    door, lease = open_ledger(), "lease-of-the-next"
    found: list[Rescued] = []
    with ledger.transaction() as connection:
        connection.execute(text("UPDATE jobs SET state = 'queued', lease = NULL"))
        connection.execute(
            text(
                "INSERT INTO workers (lease, name, queues, expires_at)"
                " VALUES (:lease, 'w2', '{celery}', clock_timestamp() + interval '600 s')"
            ),
            {"lease": lease},
        )
        (second,) = claim_module._claims(connection, lease, ["a"])

        # When another keeper, which does not see that yet, rescues the orphan
        keeper = threading.Thread(target=lambda: found.append(rescue(door, None, 3)))
        keeper.start()
        given.until(lambda: given.waits_for_a_lock(ledger))

    # Then the new attempt goes on, and no loss is noted
    given.join([keeper])
    assert [done.queued for done in found] == [()]
    assert held(ledger, lease) == {("a", 2)}
    assert given.attempts_of(ledger, "a") == []
    assert finish(ledger, [given.success(second.fence)]).granted == {"a"}
