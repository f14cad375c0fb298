from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import LedgerUnavailable
from worker.jobs.job import Claim, Fence
from worker.jobs.states import State
from worker.ledger import claim as claim_module
from worker.ledger.claim import adopt, claim, claim_suspect, suspects_wait
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.lease import held
from worker.ledger.read import counts
from worker.ledger.rescue import rescue


def suspects(ledger: Ledger, *ids: str) -> None:
    """Queued suspects: lost once with one process."""
    lease = given.lease(ledger)
    given.claimed(ledger, *ids, lease_id=lease)
    given.expire(ledger, lease)
    assert set(rescue(ledger, None, 3).queued) == set(ids)


def test_a_claim_carries_the_fence_and_the_message(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", task="tests.sub", queue="q")
    lease = given.lease(ledger)

    (one,) = claim(ledger, lease, ["a"])

    job = given.job_of(ledger, "a")
    assert one == Claim(Fence("a", 1, lease), "tests.sub", "q", job.message)
    assert (job.state, job.attempt, job.worker) == (State.RUNNING, 1, "w1")
    assert job.started_at is not None


def test_among_fifty_claimers_each_job_is_granted_once(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given 20 jobs, and 50 workers with connections of their own
    ids = given.enqueued(ledger, *(f"j{number:02}" for number in range(20)))
    doors = [(open_ledger(), given.lease(ledger)) for _ in range(50)]

    # When all of them claim all jobs at once
    found = given.all_at_once(
        [lambda door=door, lease=lease: claim(door, lease, ids) for door, lease in doors]  # type: ignore[misc] # a lambda's default
    )

    # Then each job was granted once, and whom it was granted is who holds it
    granted = [one.fence for claims in found for one in claims]
    assert sorted(fence.id for fence in granted) == ids
    assert {fence.attempt for fence in granted} == {1}
    for fence in granted:
        assert (fence.id, 1) in held(ledger, fence.lease)


def test_nothing_is_granted_to_a_lease_that_is_over(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    lease = given.lease(ledger)
    given.expire(ledger, lease)

    assert claim(ledger, lease, ["a"]) == []
    assert given.state_of(ledger, "a") is State.QUEUED


def test_nothing_is_granted_to_a_lease_that_never_was(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")

    assert claim(ledger, "nobody", ["a"]) == []
    assert given.state_of(ledger, "a") is State.QUEUED


def test_a_suspect_is_granted_only_to_who_asks_for_one(ledger: Ledger) -> None:
    suspects(ledger, "a")
    lease = given.lease(ledger, isolated=True)

    assert claim(ledger, lease, ["a"]) == []
    found = claim_suspect(ledger, lease, ["celery"])

    assert found is not None and found.fence == Fence("a", 2, lease)
    assert claim_suspect(ledger, lease, ["celery"]) is None


def test_a_suspect_of_another_queue_is_not_granted(ledger: Ledger) -> None:
    suspects(ledger, "a")

    assert claim_suspect(ledger, given.lease(ledger), ["other"]) is None


def test_two_isolated_workers_get_different_suspects(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    suspects(ledger, "a", "b")
    doors = [(open_ledger(), given.lease(ledger)) for _ in range(2)]

    found = given.all_at_once(
        [lambda d=door, le=lease: claim_suspect(d, le, ["celery"]) for door, lease in doors]  # type: ignore[misc] # a lambda's default
    )

    assert {one.fence.id for one in found if one} == {"a", "b"}


def test_suspects_wait_as_long_as_there_are_more_than_places_for_them(ledger: Ledger) -> None:
    assert not suspects_wait(ledger, ["celery"])
    suspects(ledger, "a", "b")
    assert suspects_wait(ledger, ["celery"])

    leases = [given.lease(ledger, isolated=True) for _ in range(2)]
    assert not suspects_wait(ledger, ["celery"])

    given.expire(ledger, leases[0])
    assert suspects_wait(ledger, ["celery"])


def test_a_process_that_runs_a_suspect_is_no_place_for_another(ledger: Ledger) -> None:
    # Given two suspects, and one process for them
    suspects(ledger, "a", "b")
    lease = given.lease(ledger, isolated=True)

    # When it runs one of them, then the other one waits
    found = claim_suspect(ledger, lease, ["celery"])
    assert found is not None
    assert suspects_wait(ledger, ["celery"])

    # And when that one has ended, it does not
    finish(ledger, [given.success(found.fence)])
    assert not suspects_wait(ledger, ["celery"])


def test_a_claim_says_how_often_the_job_was_lost(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", "b")
    ledger.execute("UPDATE jobs SET lost = 2, suspect = id = 'b'")
    lease = given.lease(ledger)

    (first,) = claim(ledger, lease, ["a"])
    (again,) = claim(ledger, lease, ["a"])
    suspect = claim_suspect(ledger, lease, ["celery"])

    assert suspect is not None
    assert (first.lost, again.lost, suspect.lost) == (2, 2, 2)


@pytest.mark.parametrize("suspect", [False, True])
def test_an_expired_job_is_not_started(ledger: Ledger, suspect: bool) -> None:
    given.enqueued(ledger, "a", expires=60)
    if suspect:
        ledger.execute("UPDATE jobs SET suspect = true")
    given.age(ledger, "expires_at", 120, "a")
    lease = given.lease(ledger)

    assert claim(ledger, lease, ["a"]) == []
    assert claim_suspect(ledger, lease, ["celery"]) is None


def test_only_what_is_queued_is_granted(ledger: Ledger) -> None:
    given.enqueued(ledger, "later", delay=60)
    finish(ledger, [given.success(given.running(ledger, "done"))])
    given.running(ledger, "elsewhere")

    assert claim(ledger, given.lease(ledger), ["later", "done", "elsewhere", "unknown"]) == []


def test_repeating_a_claim_returns_what_this_lease_holds(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", "b")
    lease = given.lease(ledger)
    first = claim(ledger, lease, ["a", "b"])

    assert sorted(claim(ledger, lease, ["b", "a"]), key=str) == sorted(first, key=str)
    assert given.job_of(ledger, "a").attempt == 1


def test_a_claim_whose_reply_is_lost_is_neither_lost_nor_doubled(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a network that swallows the reply to the next COMMIT
    ids = given.enqueued(ledger, "a", "b")
    lease = given.lease(ledger)
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    # When the worker claims through it
    found = claim(door, lease, ids)

    # Then it knows what it holds, once
    assert proxy.dropped.is_set()
    assert {one.fence for one in found} == {Fence("a", 1, lease), Fence("b", 1, lease)}
    assert held(ledger, lease) == {("a", 1), ("b", 1)}


def test_a_claim_cut_off_by_an_outage_is_found_when_it_is_repeated(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a claim whose reply is lost, and an outage right after it
    given.enqueued(ledger, "a")
    lease = given.lease(ledger)
    door = open_ledger(proxy.url)
    claim(door, lease, ["unknown"])  # the connection is up
    proxy.drop_reply_after_next_commit()
    proxy.refusing = True
    with pytest.raises(LedgerUnavailable):
        claim(door, lease, ["a"])
    assert given.until(lambda: held(ledger, lease)) == {("a", 1)}

    # When the ledger is back and the worker repeats its claim
    proxy.heal()
    (one,) = claim(door, lease, ["a"])

    # Then the job is its own, in its first attempt
    assert one.fence == Fence("a", 1, lease)


def test_a_rescue_takes_what_a_late_claim_got(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a claim that is made but not committed, under a lease that expires meanwhile
    given.enqueued(ledger, "a")
    lease = given.lease(ledger)
    door, stop = open_ledger(), threading.Event()
    rescued: list[str] = []
    rounds: list[int] = []

    def keep() -> None:
        while not stop.is_set():
            done = rescue(door, None, 3)
            rescued.extend(done.queued)
            rounds.append(done.leases)

    with ledger.transaction() as connection:
        assert claim_module._claims(connection, lease, ["a"])
        given.expire(ledger, lease)  # a renewal would pass the claim's lock too

        # When the keeper rescues, again and again
        keeper = threading.Thread(target=keep, name="keeper")
        keeper.start()
        given.until(lambda: len(rounds) > 1 or given.waits_for_a_lock(ledger))
        assert rescued == [] and sum(rounds) == 0

    # Then once the claim is committed its job is taken with the lease, and not orphaned
    given.until(lambda: sum(rounds) == 1)
    stop.set()
    given.join([keeper])
    assert rescued == ["a"]
    assert given.state_of(ledger, "a") is State.QUEUED
    assert held(ledger, lease) == set()


def test_a_claim_during_an_expiry_gets_nothing(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given an expiry that has deleted the lease row and is not committed yet
    given.enqueued(ledger, "a")
    lease = given.lease(ledger)
    door = open_ledger()
    found: list[list[Claim]] = []
    with ledger.transaction() as connection:
        connection.execute(text("DELETE FROM workers WHERE lease = :lease"), {"lease": lease})

        # When the worker claims, then it waits
        claimer = threading.Thread(target=lambda: found.append(claim(door, lease, ["a"])))
        claimer.start()
        given.until(lambda: given.waits_for_a_lock(ledger) or found)
        assert found == []

    # Then it gets nothing, and the job is still there for others
    given.join([claimer])
    assert found == [[]]
    assert given.state_of(ledger, "a") is State.QUEUED


def test_a_renewal_does_not_wait_for_a_claim(ledger: Ledger) -> None:
    from worker.ledger.lease import renew

    given.enqueued(ledger, "a")
    lease = given.lease(ledger)
    with ledger.transaction() as connection:
        claim_module._claims(connection, lease, ["a"])
        connection.execute(text("SELECT 1"))
        with ledger.engine.connect() as other:
            other.execute(text("SET lock_timeout = '2s'"))
            other.commit()
        assert renew(ledger, lease, 60)


def test_a_foreign_job_is_adopted_and_granted(ledger: Ledger) -> None:
    lease = given.lease(ledger)

    found = adopt(ledger, lease, [given.job("a"), given.job("later", delay=60)])

    assert [one.fence.id for one in found] == ["a"]
    assert given.state_of(ledger, "later") is State.SCHEDULED


def test_a_foreign_job_that_is_known_is_left_as_it_is(ledger: Ledger) -> None:
    finish(ledger, [given.success(given.running(ledger, "a"))])

    assert adopt(ledger, given.lease(ledger), [given.job("a")]) == []
    assert counts(ledger) == {State.SUCCEEDED: 1}


def test_an_adoption_whose_reply_is_lost_is_found(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    lease = given.lease(ledger)
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    found = adopt(door, lease, [given.job("a")])

    assert proxy.dropped.is_set()
    assert held(ledger, lease) == {("a", 1)}
    assert [one.fence for one in found] == [Fence("a", 1, lease)]
