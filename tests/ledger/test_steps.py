"""Steps of Postgres's clock: what each statement that compares times does after one."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.ledger import given
from worker.jobs.states import State
from worker.ledger.claim import claim
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due, take_lost, take_unsure
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership
from worker.ledger.lease import renew
from worker.ledger.look import Look, look_at
from worker.ledger.rescue import rescue
from worker.ledger.retention import drop_old, expire_late
from worker.ledger.steps import move_back
from worker.ledger.strangers import LONGEST, put_off
from worker.ledger.suspects import wanted

HOUR, MINUTE = 3600.0, 60.0
BACK = pytest.mark.parametrize("seconds", [-HOUR, -MINUTE], ids=["an hour", "a minute"])
ANY_STEP = pytest.mark.parametrize(
    "seconds", [-HOUR, -MINUTE, HOUR], ids=["an hour back", "a minute back", "an hour ahead"]
)


def late_by(ledger: Ledger, job_id: str, column: str) -> float:
    """In how many seconds a time of a job comes."""
    ((seconds,),) = ledger.execute(
        f"SELECT extract(epoch FROM {column} - clock_timestamp()) FROM ledger.jobs WHERE id = :id",
        {"id": job_id},
    )
    return float(seconds)


@ANY_STEP
def test_a_dead_workers_lease_expires_after_a_step(ledger: Ledger, seconds: float) -> None:
    given.running(ledger, "a", lease_id=given.lease(ledger, 15))

    given.step_clock(ledger, seconds)

    assert rescue(ledger, None, 3).queued == ("a",)


@ANY_STEP
def test_a_worker_that_has_renewed_since_the_step_is_not_rescued(
    ledger: Ledger, seconds: float
) -> None:
    fence = given.running(ledger, "a", lease_id=given.lease(ledger, 15))
    given.step_clock(ledger, seconds)

    assert renew(ledger, fence.lease, 15)

    assert rescue(ledger, None, 3).leases == 0
    assert given.state_of(ledger, "a") is State.RUNNING


@pytest.mark.parametrize("seconds", [-0.5, 0.5])
def test_a_clock_that_is_corrected_by_little_takes_no_lease(ledger: Ledger, seconds: float) -> None:
    given.running(ledger, "a", lease_id=given.lease(ledger, 15))

    given.step_clock(ledger, seconds)

    assert rescue(ledger, None, 3).leases == 0


@BACK
def test_a_rescued_worker_claims_and_records_nothing_under_its_lease(
    ledger: Ledger, seconds: float
) -> None:
    # Given a lease that looks valid for as long as the clock went back, and was taken
    fence = given.running(ledger, "a", lease_id=given.lease(ledger, 15))
    given.enqueued(ledger, "b")
    given.step_clock(ledger, seconds)
    rescue(ledger, None, 3)

    # When its worker goes on
    assert not claim(ledger, fence.lease, ["b"])
    assert not finish(ledger, [given.success(fence)]).granted
    assert not renew(ledger, fence.lease, 15)


@BACK
def test_a_pod_that_died_before_the_step_is_rescued_together(
    ledger: Ledger, seconds: float
) -> None:
    own = given.lease(ledger, 15, pod="host:1")
    given.running(ledger, "own", lease_id=own)
    isolated = given.lease(ledger, 15, pod="host:1", isolated=True)
    given.running(ledger, "guilty", lease_id=isolated)
    ledger.execute("UPDATE ledger.jobs SET suspicion = 2 WHERE id = 'guilty'")

    given.step_clock(ledger, seconds)

    assert rescue(ledger, None, 3).leases == 2
    jobs = [given.job_of(ledger, job_id) for job_id in ("own", "guilty")]
    assert [(job.state, job.lost) for job in jobs] == [(State.QUEUED, 0), (State.QUEUED, 1)]


@BACK
def test_nothing_is_rescued_of_a_clock_that_stepped_since_the_look(
    ledger: Ledger, seconds: float
) -> None:
    # Given a look, and a step between it and the rescue
    given.running(ledger, "a", lease_id=given.lease(ledger, 15))
    look = look_at(ledger, lambda: 0.0)
    given.step_clock(ledger, seconds)
    stepped = Look(look.started, look.clock - timedelta(seconds=seconds), 0.0, 0.0)

    # Then every lease looks expired, and none is taken
    assert rescue(ledger, None, 3, look=stepped).leases == 0

    # But after the next look it is
    assert rescue(ledger, None, 3, look=look_at(ledger, lambda: 0.0)).leases == 1


def test_nothing_is_rescued_of_a_clock_that_stepped_ahead_since_the_look(ledger: Ledger) -> None:
    given.running(ledger, "a", lease_id=given.lease(ledger, 15))
    look = look_at(ledger, lambda: 0.0)
    given.step_clock(ledger, HOUR)
    stepped = Look(look.started, look.clock - timedelta(seconds=HOUR), 0.0, 0.0)

    assert rescue(ledger, None, 3, look=stepped).leases == 0


def test_nothing_is_rescued_of_another_server_than_the_one_looked_at(ledger: Ledger) -> None:
    # Given what runs under no lease, as after a failover that lost the lease's row
    given.running(ledger, "a")
    ledger.execute("DELETE FROM ledger.workers")
    look = look_at(ledger, lambda: 0.0)
    other = Look(look.started - timedelta(seconds=1), look.clock, 0.0, 0.0)

    assert not rescue(ledger, None, 3, look=other).queued

    assert rescue(ledger, None, 3, look=look).queued == ("a",)


@ANY_STEP
def test_a_dead_leader_is_followed_after_a_step(ledger: Ledger, seconds: float) -> None:
    dead, other = Leadership("keeper", "dead", 5), Leadership("keeper", "other", 5)
    assert dead.take(ledger)
    assert not other.take(ledger)

    given.step_clock(ledger, seconds)

    assert other.take(ledger)
    assert not dead.take(ledger)


@BACK
def test_a_leader_that_lives_keeps_the_lead_over_a_step(ledger: Ledger, seconds: float) -> None:
    leader = Leadership("keeper", "leader", 5)
    leader.take(ledger)

    given.step_clock(ledger, seconds)

    with ledger.transaction() as connection:
        leader.check(connection)
    assert leader.take(ledger)
    assert not Leadership("keeper", "other", 5).take(ledger)


@BACK
def test_a_lost_doorbell_is_found_after_a_step(ledger: Ledger, seconds: float) -> None:
    given.enqueued(ledger, "a")
    given.step_clock(ledger, seconds)

    move_back(ledger, None)
    given.age(ledger, "dispatched_at", 6, "a")

    assert [ring.id for ring in take_lost(ledger, None, "celery", None, 5)] == ["a"]


@BACK
def test_in_doubt_a_job_is_rung_a_minute_after_a_step(ledger: Ledger, seconds: float) -> None:
    given.enqueued(ledger, "a")
    given.step_clock(ledger, seconds)

    move_back(ledger, None)
    assert not take_unsure(ledger, None, "celery")
    given.age(ledger, "dispatched_at", 61, "a")

    assert [ring.id for ring in take_unsure(ledger, None, "celery")] == ["a"]


@BACK
@pytest.mark.parametrize("kind", ["countdown", "retry"])
def test_what_is_scheduled_is_late_by_less_than_its_delay(
    ledger: Ledger, seconds: float, kind: str
) -> None:
    # Given a job that is to run in 30 s
    if kind == "countdown":
        given.enqueued(ledger, "a", delay=30)
    else:
        finish(ledger, [given.retry(given.running(ledger, "a"), 30)])

    # When the clock steps back
    given.step_clock(ledger, seconds)
    assert move_back(ledger, None) == 1

    # Then it runs in 30 s
    assert 29 < late_by(ledger, "a", "run_at") <= 30
    given.age(ledger, "run_at", 30, "a")
    assert [ring.id for ring in dispatch_due(ledger, None)] == ["a"]


@BACK
@pytest.mark.parametrize("delay", [None, 10], ids=["queued", "scheduled"])
def test_what_expires_does_so_late_by_less_than_its_time(
    ledger: Ledger, seconds: float, delay: float | None
) -> None:
    given.enqueued(ledger, "a", delay=delay, expires=30)

    given.step_clock(ledger, seconds)
    move_back(ledger, None)

    assert 29 < late_by(ledger, "a", "expires_at") <= 30
    given.age(ledger, "expires_at", 30, "a")
    assert not claim(ledger, given.lease(ledger), ["a"])
    assert expire_late(ledger, None).count == 1


def test_times_of_before_are_moved_back_once_and_no_others(ledger: Ledger) -> None:
    # Given jobs of before a step, one that waits for its replacement, and one of after it
    given.enqueued(ledger, "soon", delay=30)
    given.enqueued(ledger, "queued")
    finish(ledger, [given.retry(given.running(ledger, "replaced"), float("inf"))])
    given.step_clock(ledger, -HOUR)
    given.enqueued(ledger, "later", delay=HOUR)

    assert move_back(ledger, None) == 3
    assert move_back(ledger, None) == 0

    assert late_by(ledger, "later", "run_at") > HOUR - 5
    ((run_at,),) = ledger.execute(
        "SELECT run_at = 'infinity' FROM ledger.jobs WHERE id = 'replaced'"
    )
    assert run_at


def test_what_waited_for_longer_than_the_step_is_late_by_the_step(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", delay=2 * HOUR)
    given.step_clock(ledger, HOUR + MINUTE)  # an hour and a minute pass

    given.step_clock(ledger, -HOUR)

    assert move_back(ledger, None) == 0
    assert 2 * HOUR - MINUTE - 5 < late_by(ledger, "a", "run_at") < 2 * HOUR


@BACK
def test_a_step_back_drops_no_result_early(ledger: Ledger, seconds: float) -> None:
    finish(ledger, [given.success(given.running(ledger, "a"))])
    given.step_clock(ledger, seconds)

    assert drop_old(ledger, None, succeeded_days=0.5, failed_days=0.5) == 0


@BACK
def test_a_worker_that_died_before_the_step_puts_its_jobs_at_risk(
    ledger: Ledger, seconds: float
) -> None:
    # Given a worker that died, and one that has renewed since the step
    given.running(ledger, "a", lease_id=given.lease(ledger, 15))
    mine = given.lease(ledger, 15)
    given.step_clock(ledger, seconds)
    renew(ledger, mine, 15)

    assert wanted(ledger, mine, ["celery"]).slots == 1


@pytest.mark.parametrize(
    ("passed", "stepped"),
    [(10.0, 0.0), (10.9, 0.0), (9.2, 0.0), (-3590.0, -3600.0), (3610.0, 3600.0), (7.0, -3.0)],
)
def test_two_looks_tell_a_step_from_a_slow_answer(
    ledger: Ledger, passed: float, stepped: float
) -> None:
    first = look_at(ledger, lambda: 100.0)
    later = Look(first.started, first.clock + timedelta(seconds=passed), 110.0, 110.0)

    assert first.stepped(later) == pytest.approx(stepped)
    assert first.is_gap(later) is (stepped != 0.0)

    slow = Look(first.started, first.clock + timedelta(seconds=15), 110.0, 118.0)
    assert not first.is_gap(slow)


def test_what_was_put_off_is_late_by_no_step(ledger: Ledger) -> None:
    # Given a job that waits, at most a minute, for a worker that knows its task
    given.enqueued(ledger, "a", task="theirs")
    given.enqueued(ledger, "b", task="ours")
    given.lease(ledger, tasks=["ours"])
    put_off(ledger, ["a", "b"], ["mine"])

    # When the clock steps back by an hour
    given.step_clock(ledger, -HOUR)
    move_back(ledger, None)

    # Then it waits as long as before
    assert late_by(ledger, "a", "run_at") <= LONGEST
    assert late_by(ledger, "b", "run_at") <= LONGEST
