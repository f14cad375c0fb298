from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.ledger import given
from worker.errors import LeaseLost
from worker.jobs.job import Finish, Ring
from worker.jobs.states import State
from worker.ledger import dispatch as dispatch_module
from worker.ledger.database import Ledger
from worker.ledger.dispatch import dispatch_due, take_lost, take_unsure, waiting_lists
from worker.ledger.finish import finish
from worker.ledger.leader import Leadership


def seq_of(ledger: Ledger, job_id: str) -> int:
    ((seq,),) = ledger.execute(
        "SELECT dispatch_seq FROM ledger.jobs WHERE id = :id", {"id": job_id}
    )
    return int(seq)


def test_what_is_due_is_queued_and_what_is_not_waits(ledger: Ledger) -> None:
    given.enqueued(ledger, "due", "later", delay=600, priority=3)
    given.make_due(ledger, "due")

    (ring,) = dispatch_due(ledger, None)

    assert ring == Ring("due", "celery\x06\x163", seq_of(ledger, "due"))
    assert given.state_of(ledger, "due") is State.QUEUED
    assert given.state_of(ledger, "later") is State.SCHEDULED


def test_a_job_is_due_at_its_time_by_the_databases_clock(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", delay=0.2)
    assert dispatch_due(ledger, None) == []

    (ring,) = given.until(lambda: dispatch_due(ledger, None), 5)

    ((early,),) = ledger.execute("SELECT dispatched_at < run_at FROM ledger.jobs")
    assert ring.id == "a" and early is False


def test_two_dispatchers_at_once_dispatch_each_job_once(
    ledger: Ledger, open_ledger: Callable[..., Ledger]
) -> None:
    ids = given.enqueued(ledger, *(f"j{number:03}" for number in range(300)), delay=600)
    given.make_due(ledger, *ids)
    doors = [open_ledger() for _ in range(4)]

    def dispatch_all(door: Ledger) -> list[str]:
        rings: list[Ring] = []
        while more := dispatch_due(door, None):
            rings += more
        return [ring.id for ring in rings]

    found = given.all_at_once([lambda door=door: dispatch_all(door) for door in doors])  # type: ignore[misc] # a lambda's default

    assert sorted(job_id for part in found for job_id in part) == ids


def test_a_job_that_waits_for_its_replacement_is_never_due(ledger: Ledger) -> None:
    fence = given.running(ledger, "a")
    finish(ledger, [Finish(fence, State.SCHEDULED, "replaced", delay=float("inf"))])

    assert dispatch_due(ledger, None) == []


def test_every_list_with_a_waiting_job_is_found(ledger: Ledger) -> None:
    assert waiting_lists(ledger) == []
    for queue, priority in (("q", 0), ("q", 9), ("p", 0), ("p", 0)):
        given.enqueued(ledger, queue=queue, priority=priority)
    given.enqueued(ledger, queue="later", delay=60)

    assert sorted(waiting_lists(ledger)) == ["p", "q", "q\x06\x169"]


def test_below_the_front_of_the_list_a_job_was_popped_and_lost(ledger: Ledger) -> None:
    # Given three jobs of one list, all rung for long ago, of which the second is next to be popped
    given.enqueued(ledger, "a", "b", "c")
    given.age(ledger, "dispatched_at", 60, "a", "b", "c")
    before = seq_of(ledger, "a")

    # When the lost ones are taken
    (ring,) = take_lost(ledger, None, "celery", seq_of(ledger, "b"), grace=5)

    # Then the first alone was lost, and gets a number above all
    assert ring.id == "a"
    assert ring.seq == seq_of(ledger, "a") > seq_of(ledger, "c") > before


def test_in_an_empty_list_everything_was_lost(ledger: Ledger) -> None:
    given.enqueued(ledger, "a", "b")
    given.enqueued(ledger, "elsewhere", queue="other")
    given.age(ledger, "dispatched_at", 60, "a", "b", "elsewhere")

    assert {ring.id for ring in take_lost(ledger, None, "celery", None, grace=5)} == {"a", "b"}


def test_nothing_is_lost_before_the_grace_is_over(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")

    assert take_lost(ledger, None, "celery", None, grace=5) == []


def test_what_was_rung_again_gets_a_grace_of_its_own(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    given.age(ledger, "dispatched_at", 60, "a")
    assert take_lost(ledger, None, "celery", None, grace=5)

    assert take_lost(ledger, None, "celery", None, grace=5) == []


def test_nobody_rings_for_suspects_and_running_jobs(ledger: Ledger) -> None:
    given.enqueued(ledger, "suspect")
    ledger.execute("UPDATE ledger.jobs SET suspicion = 1")
    given.running(ledger, "running")
    given.age(ledger, "dispatched_at", 6000, "suspect", "running")

    assert take_lost(ledger, None, "celery", None, grace=5) == []
    assert take_unsure(ledger, None, "celery") == []


def test_lost_jobs_are_taken_in_bounded_batches(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "BATCH", 2)
    given.enqueued(ledger, "a", "b", "c")
    given.age(ledger, "dispatched_at", 60, "a", "b", "c")

    sizes = [len(take_lost(ledger, None, "celery", None, grace=5)) for _ in range(3)]

    assert sizes == [2, 1, 0]


def test_in_doubt_a_job_is_rung_after_a_minute_then_two_then_four(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    for seconds in (60, 120, 240, 480):
        given.age(ledger, "dispatched_at", seconds - 5, "a")
        assert take_unsure(ledger, None, "celery") == []
        given.age(ledger, "dispatched_at", 6, "a")
        assert [ring.id for ring in take_unsure(ledger, None, "celery")] == ["a"]


def test_in_doubt_a_job_is_rung_at_least_every_hour(ledger: Ledger) -> None:
    given.enqueued(ledger, "a")
    ledger.execute("UPDATE ledger.jobs SET rings = 1000")
    given.age(ledger, "dispatched_at", 3601, "a")

    assert take_unsure(ledger, None, "celery")


@pytest.mark.parametrize(
    "duty",
    [
        lambda ledger, lead: dispatch_due(ledger, lead),
        lambda ledger, lead: take_lost(ledger, lead, "celery", None, 5),
        lambda ledger, lead: take_unsure(ledger, lead, "celery"),
    ],
)
def test_without_the_lead_nothing_is_dispatched(
    ledger: Ledger, duty: Callable[[Ledger, Leadership], object]
) -> None:
    given.enqueued(ledger, "due", delay=600)
    given.make_due(ledger, "due")

    with pytest.raises(LeaseLost):
        duty(ledger, Leadership("keeper", "nobody", 5))

    assert given.state_of(ledger, "due") is State.SCHEDULED
