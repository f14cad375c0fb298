"""A worker is granted the tasks that it knows; what nobody knows waits, says why, comes back."""

from __future__ import annotations

import time

import pytest

from tests.ledger import given
from worker.jobs.job import Job
from worker.jobs.states import State
from worker.ledger import strangers
from worker.ledger.claim import adopt, claim, claim_suspects
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due
from worker.ledger.finish import finish
from worker.ledger.lease import open_lease, tell_tasks
from worker.ledger.strangers import put_off, unknown_tasks
from worker.ledger.suspects import wanted


def wait_of(ledger: Ledger, job_id: str) -> float:
    """Seconds until a job that was put off is due."""
    (row,) = ledger.execute(
        "SELECT extract(epoch FROM run_at - clock_timestamp()) AS wait FROM ledger.jobs"
        " WHERE id = :id",
        {"id": job_id},
    )
    return float(row.wait)


def untouched(job: Job) -> bool:
    """Whether no attempt was used up."""
    return (job.attempt, job.lost, job.attempts) == (0, 0, ())


def test_a_worker_is_granted_the_tasks_that_it_knows(ledger: Ledger) -> None:
    mine = given.enqueued(ledger, "a", "c", task="mine")
    given.enqueued(ledger, "b", task="theirs")
    ours = given.lease(ledger, tasks=["mine", "other"])
    assert [one.fence.id for one in claim(ledger, ours, ["a", "b", "c"])] == mine
    foreign = [given.job("x", task="theirs"), given.job("y", task="mine")]
    assert [one.fence.id for one in adopt(ledger, ours, foreign)] == ["y"]
    assert [given.state_of(ledger, job_id) for job_id in "bx"] == [State.QUEUED] * 2


def test_a_worker_that_does_not_say_what_it_knows_is_granted_all_and_an_empty_one_nothing(
    ledger: Ledger,
) -> None:
    given.enqueued(ledger, "a", task="any")
    assert claim(ledger, given.lease(ledger, tasks=[]), ["a"]) == []
    assert len(claim(ledger, given.lease(ledger), ["a"])) == 1


def test_suspects_are_granted_to_who_knows_them_and_want_places_of_nobody_else(
    ledger: Ledger,
) -> None:
    given.enqueued(ledger, "a", task="theirs")
    given.enqueued(ledger, "b", task="mine")
    ledger.execute("UPDATE ledger.jobs SET suspicion = 1")
    ours = given.lease(ledger, tasks=["mine"])
    isolated = given.lease(ledger, tasks=["mine"], isolated=True)
    assert wanted(ledger, ours, ["celery"]).slots == 0, "that place is for the one that it knows"
    got = claim_suspects(ledger, isolated, ["celery"], 5, idle=True)
    assert [one.fence.id for one in got] == ["b"]
    theirs = given.lease(ledger, tasks=["theirs"])
    assert wanted(ledger, theirs, ["celery"]).slots == 1, "who knows it has no place for it"


def test_the_oldest_suspect_that_is_known_decides(ledger: Ledger) -> None:
    # Given a suspect of another app that must run alone, before one of this worker's
    given.enqueued(ledger, "a", task="theirs")
    given.enqueued(ledger, "b", task="mine")
    ledger.execute("UPDATE ledger.jobs SET suspicion = CASE id WHEN 'a' THEN 2 ELSE 1 END")
    isolated = given.lease(ledger, tasks=["mine"], isolated=True)
    got = claim_suspects(ledger, isolated, ["celery"], 5, idle=False)
    assert [one.fence.id for one in got] == ["b"]


def test_what_nobody_living_knows_backs_off_says_why_and_uses_up_no_attempt(
    ledger: Ledger,
) -> None:
    ours = given.lease(ledger, tasks=["shop.order", "celery.chord"])
    given.enqueued(ledger, "a", task="shop.ordr")
    given.enqueued(ledger, "b", task="shop.order")
    (told,) = put_off(ledger, ["a", "b"], ["shop.order", "celery.chord"])
    job = given.job_of(ledger, "a")
    assert job.state is State.SCHEDULED and untouched(job)
    assert job.error == told.why
    assert (
        "no living worker knows the task 'shop.ordr', the nearest name is 'shop.order'" in told.why
    )
    assert given.state_of(ledger, "b") is State.QUEUED, "a known one is nobody's business here"
    assert unknown_tasks(ledger) == [("shop.ordr", 1)]
    # Then it waits half as long as it has waited, up to a minute
    assert 0 < wait_of(ledger, "a") <= strangers.SHORTEST
    for age, wait in ((30.0, 15.0), (1e6, strangers.LONGEST)):
        given.make_due(ledger, "a")
        dispatch_due(ledger, None)
        given.age(ledger, "created_at", age, "a")
        assert claim(ledger, ours, ["a"]) == []
        put_off(ledger, ["a"], ["shop.order"])
        assert wait - 5 < wait_of(ledger, "a") <= wait + 5
    assert untouched(given.job_of(ledger, "a"))


def test_what_another_living_worker_of_the_queue_knows_comes_back_soon(ledger: Ledger) -> None:
    given.lease(ledger, tasks=["mine"])
    given.lease(ledger, tasks=["theirs"])
    given.enqueued(ledger, "a", task="theirs")
    given.age(ledger, "created_at", 1e6, "a")
    (told,) = put_off(ledger, ["a"], ["mine"])
    assert told.is_served and unknown_tasks(ledger) == []
    assert 0 < wait_of(ledger, "a") <= strangers.PAUSE
    given.make_due(ledger, "a")
    dispatch_due(ledger, None)
    (got,) = claim(ledger, given.lease(ledger, tasks=["theirs"]), ["a"])
    assert got.fence.attempt == 1
    assert given.job_of(ledger, "a").error is None, "it is no reason any more"


@pytest.mark.parametrize("who", ["of another queue", "expired", "isolated"])
def test_who_cannot_take_it_does_not_count_as_knowing_it(ledger: Ledger, who: str) -> None:
    if who == "of another queue":
        open_lease(ledger, "w", ["other"], 600, tasks=["theirs"])
    else:
        lease = given.lease(ledger, tasks=["theirs"], isolated=who == "isolated")
        if who == "expired":
            given.expire(ledger, lease)
    given.enqueued(ledger, "a", task="theirs")
    (told,) = put_off(ledger, ["a"], ["mine"])
    assert not told.is_served


@pytest.mark.parametrize("how", ["opens", "learns"])
def test_it_comes_back_at_once_when_a_worker_that_knows_it_is_there(
    ledger: Ledger, how: str
) -> None:
    learner = given.lease(ledger, tasks=["mine"])
    given.enqueued(ledger, "a", "b", task="theirs")
    given.enqueued(ledger, "c", task="nobodys")
    (one,) = given.claimed(ledger, "retried", task="theirs")
    finish(ledger, [given.retry(one.fence, error="no living hope")])
    put_off(ledger, ["a", "b", "c"], ["mine"])
    if how == "opens":
        open_lease(ledger, "w", ["celery"], 600, tasks=["theirs"])
    else:
        tell_tasks(ledger, learner, ["mine", "theirs"])
    assert sorted(ring.id for ring in dispatch_due(ledger, None)) == ["a", "b"]
    assert given.state_of(ledger, "retried") is State.SCHEDULED, "a retry keeps its time"


def test_a_great_many_are_rung_for_at_a_bounded_rate(ledger: Ledger) -> None:
    given.lease(ledger, tasks=["theirs"])
    ids = [f"j{number:04}" for number in range(2000)]
    given.enqueued(ledger, *ids, task="theirs")
    for start in range(0, 2000, 500):
        put_off(ledger, ids[start : start + 500], ["mine"])
    assert wait_of(ledger, ids[0]) <= strangers.PAUSE
    assert wait_of(ledger, ids[-1]) > 1500 / strangers.RATE - 1


def test_what_is_recalled_at_once_is_bounded_and_the_rest_comes_by_itself(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "RECALLED", 2)
    given.enqueued(ledger, "a", "b", "c", task="theirs")
    put_off(ledger, ["a", "b", "c"], ["mine"])

    open_lease(ledger, "w", ["celery"], 600, tasks=["theirs"])

    due = {ring.id for ring in dispatch_due(ledger, None)}
    (left,) = {"a", "b", "c"} - due
    assert 0 < wait_of(ledger, left) <= strangers.LONGEST


def test_many_unknown_names_take_no_long_time_to_explain(ledger: Ledger) -> None:
    # Given a worker that knows many tasks, and a batch of jobs of a name each that nobody knows
    known = [f"shop.department{number % 40}.tasks.do_thing_{number}" for number in range(3000)]
    given.lease(ledger, tasks=known)
    ids = [f"j{number:03}" for number in range(200)]
    for job_id in ids:
        given.enqueued(ledger, job_id, task=f"shop.department{job_id}.tasks.do_thing_{job_id}")

    # When they are put off
    began = time.process_time()
    told = put_off(ledger, ids, known)

    # Then each says why, and the search for near names has not kept the claims waiting
    assert len(told) == len(ids)
    assert all(not one.is_served and "no living worker knows" in one.why for one in told)
    assert sum("the nearest name is" in one.why for one in told) >= 1
    assert time.process_time() - began < 1.0
