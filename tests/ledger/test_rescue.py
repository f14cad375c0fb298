from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import text

from tests.ledger import given
from tests.proxy import Proxy
from worker.errors import LeaseLost
from worker.jobs.states import State
from worker.ledger import claim as claim_module
from worker.ledger import rescue as rescue_module
from worker.ledger.claim import claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.lease import close_lease, held
from worker.ledger.rescue import Rescued, rescue


def lose_alone(ledger: Ledger, job_id: str, limit: int = 3) -> None:
    """Let the suspect's own process die."""
    lease = given.lease(ledger, isolated=True)
    assert claim_next(ledger, lease) == [job_id]
    given.expire(ledger, lease)
    rescue(ledger, None, limit)


def claim_next(ledger: Ledger, lease: str, most: int = 1) -> list[str]:
    """The suspects that an isolated process is granted now."""
    found = claim_suspects(ledger, lease, ["celery"], most, idle=True)
    return sorted(one.fence.id for one in found)


def standing(ledger: Ledger, *ids: str) -> list[tuple[int, int]]:
    """Suspicion and counted losses of each job."""
    rows = {
        row.id: (row.suspicion, row.lost) for row in ledger.execute("SELECT * FROM ledger.jobs")
    }
    return [rows[job_id] for job_id in ids]


def suspected(ledger: Ledger, suspicion: int, *ids: str) -> None:
    """Queued suspects."""
    given.enqueued(ledger, *ids)
    ledger.execute(
        "UPDATE ledger.jobs SET suspicion = :suspicion WHERE id = ANY(CAST(:ids AS text[]))",
        {"suspicion": suspicion, "ids": list(ids)},
    )


def renewed_ago(ledger: Ledger, lease: str, seconds: float) -> None:
    """Let the last renewal of a lease of 15 s be so long ago."""
    ledger.execute(
        "UPDATE ledger.workers SET renewed_at = clock_timestamp() - :seconds * interval '1 s',"
        " expires_at = clock_timestamp() + (15 - :seconds) * interval '1 s' WHERE lease = :lease",
        {"seconds": seconds, "lease": lease},
    )


class Pod:
    """A worker with jobs of its own, and its isolated process with suspects."""

    def __init__(self, ledger: Ledger, *suspects: str, level: int = 2, beside: int = 3) -> None:
        self.worker = given.lease(ledger, pod="host:1")
        self.beside = [f"beside-{number}" for number in range(beside)]
        if beside:
            given.claimed(ledger, *self.beside, lease_id=self.worker)
        self.isolated = given.lease(ledger, pod="host:1", isolated=True, slots=4)
        suspected(ledger, level, *suspects)
        if suspects:
            assert claim_next(ledger, self.isolated, 4) == sorted(suspects)


def test_only_expired_leases_are_rescued(ledger: Ledger) -> None:
    dead, alive = given.running(ledger, "a"), given.running(ledger, "b")
    given.expire(ledger, dead.lease)

    done = rescue(ledger, None, 3)

    assert (done.leases, done.queued, done.poisoned, done.full) == (1, ("a",), (), False)
    assert given.state_of(ledger, "a") is State.QUEUED
    assert given.state_of(ledger, "b") is State.RUNNING
    assert ledger.execute("SELECT lease FROM ledger.workers") == [(alive.lease,)]


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


def test_lost_among_suspects_each_must_run_alone_and_none_counts(ledger: Ledger) -> None:
    # Given an isolated process that runs three suspects
    suspected(ledger, 1, "a", "b", "c")
    lease = given.lease(ledger, isolated=True, slots=4)
    assert claim_next(ledger, lease, 4) == ["a", "b", "c"]

    # When it dies as a whole
    given.expire(ledger, lease)
    rescue(ledger, None, 1)

    # Then nobody is accused, and each of them runs truly alone from now on
    assert standing(ledger, "a", "b", "c") == [(2, 0)] * 3
    (lease, other) = (given.lease(ledger, isolated=True, slots=4) for _ in range(2))
    assert claim_next(ledger, lease, 4) == ["a"]
    assert claim_next(ledger, other, 4) == ["b"]


def test_lost_alone_in_an_isolated_process_it_runs_truly_alone(ledger: Ledger) -> None:
    suspected(ledger, 1, "a")
    lose_alone(ledger, "a")

    assert standing(ledger, "a") == [(2, 1)]


def test_an_ordinary_worker_makes_no_worse_suspects(ledger: Ledger) -> None:
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", lease_id=lease)
    ledger.execute("UPDATE ledger.jobs SET suspicion = 1 WHERE id = 'a'")
    given.expire(ledger, lease)

    rescue(ledger, None, 3)

    assert standing(ledger, "a", "b") == [(1, 0), (1, 0)]


def test_a_pod_that_dies_as_a_whole_accuses_what_ran_truly_alone(ledger: Ledger) -> None:
    # Given a job that takes its worker along with its own process, as the OOM killer does
    pod = Pod(ledger, "guilty")

    # When both leases are over
    given.expire(ledger, pod.worker, pod.isolated)
    done = rescue(ledger, None, 3)

    # Then it counts for that job, and the worker's own are suspects only
    assert done.leases == 2
    assert standing(ledger, "guilty") == [(2, 1)]
    assert standing(ledger, *pod.beside) == [(1, 0)] * 3


def test_a_pod_that_dies_as_a_whole_again_and_again_ends(ledger: Ledger) -> None:
    for number in range(3):
        pod = Pod(ledger, *(["guilty"] if number == 0 else []), beside=0)
        if number:
            assert claim_next(ledger, pod.isolated, 4) == ["guilty"]
        given.expire(ledger, pod.worker, pod.isolated)
        rescue(ledger, None, 3)

    job = given.job_of(ledger, "guilty")
    assert (job.state, job.lost) == (State.FAILED, 3)


def test_a_pods_death_accuses_nobody_who_did_not_run_truly_alone(ledger: Ledger) -> None:
    # Given an isolated process with one suspect that only happens to be alone
    pod = Pod(ledger, "a", level=1)

    given.expire(ledger, pod.worker, pod.isolated)
    rescue(ledger, None, 1)

    # Then it is accused of nothing, and is alone next time
    assert standing(ledger, "a") == [(2, 0)]


def test_a_pods_death_does_not_accuse_the_workers_only_job(ledger: Ledger) -> None:
    pod = Pod(ledger, beside=1)

    given.expire(ledger, pod.worker, pod.isolated)
    rescue(ledger, None, 1)

    assert standing(ledger, "beside-0") == [(1, 0)]


@pytest.mark.parametrize("also", ["host:2", "host:1", None])
def test_a_pod_that_dies_with_another_worker_accuses_nobody(
    ledger: Ledger, also: str | None
) -> None:
    pod = Pod(ledger, "a")
    other = given.lease(ledger, pod=also)

    given.expire(ledger, pod.worker, pod.isolated, other)
    rescue(ledger, None, 1)

    assert standing(ledger, "a") == [(2, 0)]


@pytest.mark.parametrize("pods", [("host:1", "host:2"), (None, None)])
def test_an_isolated_process_and_a_stranger_that_die_together_accuse_nobody(
    ledger: Ledger, pods: tuple[str | None, str | None]
) -> None:
    suspected(ledger, 2, "a")
    isolated = given.lease(ledger, isolated=True, pod=pods[0])
    stranger = given.lease(ledger, pod=pods[1])
    assert claim_next(ledger, isolated) == ["a"]

    given.expire(ledger, isolated, stranger)
    rescue(ledger, None, 1)

    assert standing(ledger, "a") == [(2, 0)]


@pytest.mark.parametrize("first", ["worker", "isolated"])
def test_an_expired_lease_waits_for_its_pod_to_expire_too(ledger: Ledger, first: str) -> None:
    # Given a pod that died; its leases were renewed at different moments
    pod = Pod(ledger, "guilty")
    early, late = pod.worker, pod.isolated
    if first == "isolated":
        early, late = late, early
    renewed_ago(ledger, late, 11)
    given.expire(ledger, early)

    # When only one of them is over, then it waits
    assert rescue(ledger, None, 3).leases == 0
    assert given.state_of(ledger, "guilty") is State.RUNNING

    # And when the other one is over too, they end together, and accuse
    given.expire(ledger, late)
    assert rescue(ledger, None, 3).leases == 2
    assert standing(ledger, "guilty") == [(2, 1)]


@pytest.mark.parametrize("renews", [False, True])
def test_an_isolated_process_that_dies_without_its_worker_accuses(
    ledger: Ledger, renews: bool
) -> None:
    # Given a worker that lives, and may be late for a moment
    pod = Pod(ledger, "guilty")
    given.expire(ledger, pod.isolated)
    if renews:
        renewed_ago(ledger, pod.worker, 9)
        assert rescue(ledger, None, 3).leases == 0
    renewed_ago(ledger, pod.worker, 4)

    assert rescue(ledger, None, 3).leases == 1

    assert standing(ledger, "guilty") == [(2, 1)]
    assert {given.state_of(ledger, job_id) for job_id in pod.beside} == {State.RUNNING}


def test_a_worker_that_dies_costs_the_suspect_of_its_isolated_process_nothing(
    ledger: Ledger,
) -> None:
    # Given a worker that was killed; its isolated process lives, drains, and renews meanwhile
    pod = Pod(ledger, "innocent")
    given.expire(ledger, pod.worker)
    renewed_ago(ledger, pod.isolated, 3)

    # When the worker's lease ends, and later the isolated process gives back what it holds
    assert rescue(ledger, None, 1).leases == 1
    assert given.state_of(ledger, "innocent") is State.RUNNING
    close_lease(ledger, pod.isolated)

    # Then nobody is accused, and the suspect runs as before
    assert rescue(ledger, None, 1).leases == 0
    assert standing(ledger, "innocent") == [(2, 0)]
    assert given.state_of(ledger, "innocent") is State.QUEUED


def test_a_pod_beside_a_worker_that_falters_accuses_nobody(ledger: Ledger) -> None:
    pod = Pod(ledger, "a")
    renewed_ago(ledger, given.lease(ledger, pod="host:2"), 9)
    given.expire(ledger, pod.worker, pod.isolated)

    rescue(ledger, None, 1)

    assert standing(ledger, "a") == [(2, 0)]


def test_a_pod_that_dies_right_after_another_lease_accuses_nobody(ledger: Ledger) -> None:
    pod = Pod(ledger, "a")
    given.expire(ledger, pod.worker, pod.isolated)

    rescue(ledger, None, 1, accuse=False)

    assert standing(ledger, "a") == [(2, 0)]


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
    assert claim_next(ledger, given.lease(ledger)) == []


def test_the_innocent_is_no_suspect_after_a_good_end(ledger: Ledger) -> None:
    # Given two jobs lost with one process
    lease = given.lease(ledger)
    given.claimed(ledger, "a", "b", lease_id=lease)
    given.expire(ledger, lease)
    rescue(ledger, None, 3)

    # When one of them runs alone and succeeds
    lease = given.lease(ledger, isolated=True)
    (found,) = claim_suspects(ledger, lease, ["celery"], 1, idle=True)
    finish(ledger, [given.success(found.fence)])

    # Then nothing is held against it
    job = given.job_of(ledger, found.fence.id)
    assert (job.state, job.lost, job.suspect) == (State.SUCCEEDED, 0, False)


def test_what_runs_under_no_lease_at_all_is_swept(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    ledger.execute("DELETE FROM ledger.workers WHERE lease = :lease", {"lease": fence.lease})

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


def test_a_late_rescue_does_not_take_the_next_attempt(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    # Given an orphan that is rescued and claimed anew, in a commit that is still to come
    first = given.running(ledger, "a")
    ledger.execute("DELETE FROM ledger.workers WHERE lease = :lease", {"lease": first.lease})
    door, lease = open_ledger(), "lease-of-the-next"
    found: list[Rescued] = []
    with ledger.transaction() as connection:
        connection.execute(text("UPDATE ledger.jobs SET state = 'queued', lease = NULL"))
        connection.execute(
            text(
                "INSERT INTO ledger.workers (lease, name, queues, expires_at)"
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


def test_a_rescue_whose_reply_is_lost_still_says_what_it_did(
    ledger: Ledger, proxy: Proxy, open_ledger: Callable[..., Ledger]
) -> None:
    # Given a job that was alone in its process, which died, and a network that swallows replies
    fence = given.running(ledger, "a")
    given.expire(ledger, fence.lease)
    door = given.connected(open_ledger(proxy.url))
    proxy.drop_reply_after_next_commit()

    # When it is rescued through it, at the limit
    done = rescue(door, None, 1)

    # Then the keeper's log still says whom it has condemned
    assert proxy.dropped.is_set()
    assert given.state_of(ledger, "a") is State.FAILED
    assert done.poisoned == ("a",) and done.leases >= 1
    assert "a" in {ring.id for ring in done.rings}  # a worker of the app hears of the end
