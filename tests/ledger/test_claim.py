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
from worker.ledger.claim import adopt, claim, claim_suspects
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


def claim_more(ledger: Ledger, lease: str, most: int = 8, *, idle: bool = True) -> list[str]:
    """The ids of the suspects that `lease` is granted now."""
    return sorted(
        one.fence.id for one in claim_suspects(ledger, lease, ["celery"], most, idle=idle)
    )


def must_run_alone(ledger: Ledger, *ids: str) -> None:
    ledger.execute(
        "UPDATE ledger.jobs SET suspicion = 2 WHERE id = ANY(CAST(:ids AS text[]))",
        {"ids": list(ids)},
    )


def dispatched(ledger: Ledger, *ids: str) -> None:
    """Let the jobs have been dispatched in this order."""
    for job_id in ids:
        ledger.execute(
            "UPDATE ledger.jobs SET dispatch_seq = nextval('ledger.dispatch_seq') WHERE id = :id",
            {"id": job_id},
        )


def test_a_suspect_is_granted_only_to_who_asks_for_one(ledger: Ledger) -> None:
    suspects(ledger, "a")
    lease = given.lease(ledger, isolated=True)

    assert claim(ledger, lease, ["a"]) == []
    (found,) = claim_suspects(ledger, lease, ["celery"], 1, idle=True)

    assert (found.fence, found.suspicion) == (Fence("a", 2, lease), 1)
    assert claim_more(ledger, lease) == []


def test_a_suspect_of_another_queue_is_not_granted(ledger: Ledger) -> None:
    suspects(ledger, "a")

    assert claim_suspects(ledger, given.lease(ledger), ["other"], 1, idle=True) == []


def test_suspects_are_granted_to_each_free_slot_the_oldest_first(ledger: Ledger) -> None:
    # Given five suspects
    suspects(ledger, *"abcde")
    dispatched(ledger, *"edcba")
    lease = given.lease(ledger, isolated=True)

    # When a process has room for three, then for one
    assert claim_more(ledger, lease, 3) == ["c", "d", "e"]
    assert claim_more(ledger, lease, 1, idle=False) == ["b"]

    # Then without room nothing is granted, and nothing to a lease that is over
    assert claim_more(ledger, lease, 0) == []
    given.expire(ledger, lease)
    assert claim_more(ledger, lease, 8) == []


def test_isolated_processes_that_claim_at_once_get_different_suspects(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    ids = [f"j{number:02}" for number in range(30)]
    suspects(ledger, *ids)
    doors = [(open_ledger(), given.lease(ledger)) for _ in range(4)]

    def claim_all(door: Ledger, lease: str) -> list[str]:
        found: list[str] = []
        while one := claim_more(door, lease, 3, idle=False):
            found += one
        return found

    found = given.all_at_once(
        [lambda d=door, le=lease: claim_all(d, le) for door, lease in doors]  # type: ignore[misc] # a lambda's default
    )

    # One that finds only what others are about to get may stop early: the rest is still there.
    granted = [job_id for part in found for job_id in part]
    granted += claim_more(ledger, given.lease(ledger), 30)
    assert sorted(granted) == ids


def test_what_must_run_alone_waits_until_the_process_is_idle_and_holds_up_the_younger(
    ledger: Ledger,
) -> None:
    # Given a process that runs a suspect, and three more, the oldest of which must run alone
    suspects(ledger, *"abcd")
    dispatched(ledger, *"abcd")
    must_run_alone(ledger, "b")
    lease = given.lease(ledger, isolated=True)
    (first,) = claim_suspects(ledger, lease, ["celery"], 1, idle=True)
    assert first.fence.id == "a"

    # When it asks for more, it gets nothing, whatever it says of itself
    assert claim_more(ledger, lease, idle=False) == []
    assert claim_more(ledger, lease, idle=True) == []

    # Then idle, it gets that one alone
    finish(ledger, [given.success(first.fence)])
    assert claim_more(ledger, lease, idle=False) == []
    (alone,) = claim_suspects(ledger, lease, ["celery"], 8, idle=True)
    assert (alone.fence.id, alone.suspicion) == ("b", 2)

    # And while it runs that one nothing else, and the others after it
    assert claim_more(ledger, lease, idle=True) == []
    finish(ledger, [given.success(alone.fence)])
    assert claim_more(ledger, lease) == ["c", "d"]


def test_what_must_run_alone_waits_its_turn(ledger: Ledger) -> None:
    suspects(ledger, *"abc")
    dispatched(ledger, *"acb")
    must_run_alone(ledger, "b")

    assert claim_more(ledger, given.lease(ledger, isolated=True)) == ["a", "c"]
    assert claim_more(ledger, given.lease(ledger, isolated=True)) == ["b"]


@pytest.mark.parametrize("level", [1, 2])
def test_a_claim_of_suspects_whose_reply_is_lost_is_neither_lost_nor_doubled(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger], level: int
) -> None:
    # Given four suspects, and a network that swallows the reply to the next COMMIT
    suspects(ledger, *"abcd")
    dispatched(ledger, *"abcd")
    ledger.execute("UPDATE ledger.jobs SET suspicion = :level", {"level": level})
    lease = given.lease(ledger, isolated=True)
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    # When a process with two children claims through it
    found = claim_suspects(door, lease, ["celery"], 2, idle=True, known=())

    # Then it knows what it holds, and holds no more than it can run
    assert proxy.dropped.is_set()
    assert [one.fence.id for one in found] == (["a", "b"] if level == 1 else ["a"])
    assert held(ledger, lease) == {(one.fence.id, one.fence.attempt) for one in found}


def test_suspects_that_an_outage_cut_off_are_found_before_others_are_claimed(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a process that runs one suspect; its claim of two more is committed, and then an outage
    suspects(ledger, *"abcde")
    dispatched(ledger, *"abcde")
    lease = given.lease(ledger, isolated=True)
    door = open_ledger(proxy.url)
    assert len(claim_suspects(door, lease, ["celery"], 1, idle=True, known=())) == 1
    proxy.drop_reply_after_next_commit()
    proxy.refusing = True
    with pytest.raises(LedgerUnavailable):
        claim_suspects(door, lease, ["celery"], 2, idle=False, known=["a"])
    given.until(lambda: len(held(ledger, lease)) == 3)

    def claim_with(most: int, *known: str) -> list[str]:
        found = claim_suspects(door, lease, ["celery"], most, idle=False, known=known)
        return [one.fence.id for one in found]

    # When the ledger is back, then it gets these, as many as it has children for, and others later
    proxy.heal()
    assert claim_with(1, "a") == ["b"]
    assert claim_with(3, "a", "b") == ["c"]
    assert claim_with(3, "a", "b", "c") == ["d", "e"]


def test_a_claim_says_how_often_the_job_was_lost(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", "b")
    ledger.execute(
        "UPDATE ledger.jobs SET lost = 2, suspicion = CASE id WHEN 'b' THEN 1 ELSE 0 END"
    )
    lease = given.lease(ledger)

    (first,) = claim(ledger, lease, ["a"])
    (again,) = claim(ledger, lease, ["a"])
    (suspect,) = claim_suspects(ledger, lease, ["celery"], 1, idle=True)

    assert (first.lost, again.lost, suspect.lost) == (2, 2, 2)


@pytest.mark.parametrize("suspicion", [0, 1, 2])
def test_an_expired_job_is_not_started(ledger: Ledger, suspicion: int) -> None:
    given.enqueued(ledger, "a", expires=60)
    ledger.execute("UPDATE ledger.jobs SET suspicion = :level", {"level": suspicion})
    given.age(ledger, "expires_at", 120, "a")
    lease = given.lease(ledger)

    assert claim(ledger, lease, ["a"]) == []
    assert claim_more(ledger, lease) == []


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
        connection.execute(
            text("DELETE FROM ledger.workers WHERE lease = :lease"), {"lease": lease}
        )

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
